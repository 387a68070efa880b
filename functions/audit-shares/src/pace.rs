//! How hard AWS is asked.

/// How many calls are made at a time.
pub(crate) const CONCURRENCY: usize = 8;

/// How often a call is tried that EC2 throttles. The SDK's adaptive mode also slows down for the ones after it.
pub(crate) const ATTEMPTS: u32 = 10;
