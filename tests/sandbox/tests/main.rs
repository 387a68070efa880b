//! The sandbox seen through the AWS SDK for Rust.

mod accounts;
#[path = "../../src/checkout.rs"]
#[expect(dead_code, unreachable_pub, reason = "the same file is a module of ami-share-tests")]
mod checkout;
mod clients;
mod ec2;
mod faults;
mod iam;
mod identity;
mod kms;
mod organizations;
mod speed;
