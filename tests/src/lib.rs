//! Runs ami-share as it would be deployed, on one machine: its template and role templates on a
//! local engine (ministack: CloudFormation, Lambda, Step Functions, EventBridge), its functions'
//! EC2, KMS, IAM, STS and Organizations calls against the sandbox.
//!
//! # Layout
//! - [`checkout`]: where files and programs are
//! - [`local`]: all of it, started and seeded, in one call
//! - [`engine`]: the local engine as a child process
//! - [`asl_format`]: the format of the state machines' definitions
//! - [`pictures`]: pictures of the state machines, made from their definitions
//! - [`template`], [`deploy`]: reading and deploying the templates
//! - [`roles`]: the deployed roles, as the sandbox's accounts have them
//! - [`seed`]: an encrypted image in the source account, a principal and a key in the target
//! - [`sabotage`]: what somebody else does to a share while it is under way
//! - [`execution`]: starting an execution and following it
//! - [`operator`]: somebody of the hub account who holds some of the stack's policies
//! - [`notices`]: what the hub's topic tells its subscribers
//! - [`filter_pattern`]: which lines of the logs count for a metric
//! - [`stop`]: stopping an execution in a given state, and what undo-share then does
//! - [`report`]: what an execution did, as a table and as JSON

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends where it cannot go on")]

pub mod asl_format;
pub mod checkout;
pub mod clients;
pub mod deploy;
pub mod engine;
pub mod execution;
pub mod filter_pattern;
pub mod local;
pub mod notices;
pub mod operator;
pub mod pictures;
pub mod report;
pub mod roles;
pub mod sabotage;
pub mod seed;
pub mod stop;
pub mod template;

/// What the harness cannot do anything about ends the test or the demo with a sentence.
pub type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

/// The Region of everything that runs here.
pub const REGION: &str = "eu-west-1";
/// The account that runs the state machine.
pub const HUB: &str = "333333333333";
/// The account that owns the image.
pub const SOURCE: &str = "111111111111";
/// The account that the image is shared with.
pub const TARGET: &str = "222222222222";
