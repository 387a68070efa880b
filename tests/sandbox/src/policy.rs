//! Policy documents, parsed once and evaluated with iam-rs.

/// A parsed policy document.
#[derive(Debug)]
pub struct Policy;
