//! A journal of every call.

#[derive(Debug, Default)]
pub struct Journal {}
