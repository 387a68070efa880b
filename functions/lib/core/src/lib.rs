//! What every step of ami-share has in common.
//!
//! # Layout
//!
//! - [`ids`]: account ids, image ids, key ARNs and the like, checked when they are made.
//! - [`request`]: the input of the state machine, parsed with every problem named at once.
//! - [`share`]: what the states pass to each other.
//! - [`revoke`]: the same of revoke-share, and its request.
//! - [`error`]: the one error enum; its names are the contract with `statemachine/share-ami.asl.json`.
//! - [`aws`]: from an SDK error to one of ours.
//! - [`refusal`], [`authorization`]: which kind of policy refused a call, and which statement.
//! - [`environment`]: what Lambda gives a function for the SDKs, and whom it trusts.
//! - [`settings`]: settings of the deployment.
//! - [`hub`]: the roles a step assumes, and the clock.
//! - [`arns`], [`digest`], [`tokens`], [`key_actions`]: what calls of several steps name.
//! - [`allow_list`]: who may ever be a target.
//! - [`sources`]: whose images may be shared.
//! - [`key_policy`]: reading, merging and taking back statements of a key policy.
//! - [`plan`]: what a plan and the steps that carry it out agree on.
//! - [`polling`]: how long to wait between two looks at what takes its time.
//! - [`principal_policy`]: the inline policy of a principal that may use one key.
//! - [`mark`]: what a take-back writes on a note before it looks.
//! - [`take_back`]: what is taken back, and what became of it.
//! - [`usage`]: what uses an image that is to be revoked.
//! - [`words`]: what reports say.
//! - [`room`]: how what states hand on shares the room for it.
//! - [`step`]: the Lambda adapter.
//!
//! This crate has no EC2, KMS or IAM client: a step's `Cargo.toml` shows which services it reaches.

#![warn(missing_docs)]

pub mod allow_list;
pub mod arns;
pub mod authorization;
pub mod aws;
pub mod digest;
pub mod environment;
pub mod error;
pub mod hub;
pub mod ids;
pub mod key_actions;
pub mod key_policy;
pub mod mark;
pub mod plan;
pub mod polling;
pub mod principal_policy;
pub mod refusal;
pub mod request;
pub mod revoke;
pub mod room;
pub mod settings;
pub mod share;
pub mod sources;
pub mod step;
pub mod take_back;
pub mod tokens;
pub mod usage;
pub mod words;

pub use error::{Error, Problem};
pub use hub::Hub;
