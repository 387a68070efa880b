//! Harness for the end-to-end and saga tests.
