//! The sandbox seen through the AWS SDK for Rust.

mod accounts;
mod clients;
mod ec2;
mod faults;
mod iam;
mod identity;
mod kms;
mod organizations;
mod speed;
