//! Several AWS accounts in one process: EC2, IAM, KMS and STS as far as sharing
//! an encrypted image needs them, with every permission really evaluated.

pub mod auth;
mod control;
pub mod ec2;
pub mod faults;
mod http;
pub mod iam;
pub mod journal;
pub mod kms;
pub mod policy;
mod server;
pub mod sts;
pub mod wire;
pub mod world;

pub use server::Sandbox;
pub use world::{Settings, World};
