//! Simulated AWS accounts.
