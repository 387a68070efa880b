//! The sandbox seen through the AWS SDK for Rust.

mod ec2;
mod faults;
mod iam;
mod identity;
mod kms;
