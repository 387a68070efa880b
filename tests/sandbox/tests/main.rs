//! The sandbox seen through the AWS SDK for Rust.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends where it cannot go on")]

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
