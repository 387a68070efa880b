//! STS: AssumeRole, GetCallerIdentity, and whom an access key belongs to.

/// The access keys that the sandbox issued.
#[derive(Debug, Default)]
pub struct Credentials {}
