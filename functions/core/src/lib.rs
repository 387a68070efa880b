//! Shared by every step.
