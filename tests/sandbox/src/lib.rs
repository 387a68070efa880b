//! Several AWS accounts in one process: EC2, IAM, KMS, STS and Organizations as far as
//! sharing an encrypted image needs them, with every permission really evaluated.
//!
//! No other emulator checks what this application is about: whether a launch in
//! one account may use the keys of another. Here every call is evaluated against
//! service control policies, identity policies, session policy, key policy and grants, so a permission that
//! is left out makes the launch fail, and as late and as silently as in AWS.
//!
//! ```no_run
//! # async fn start() -> std::io::Result<()> {
//! use ami_share_sandbox::{Sandbox, Settings};
//!
//! let sandbox = Sandbox::start(Settings::default()).await?;
//! println!("AWS_ENDPOINT_URL={}", sandbox.endpoint());
//! // … calls by the AWS SDK, the AWS CLI or boto3 …
//! for entry in sandbox.world().journal.entries() {
//!     println!("{} {} {:?}", entry.account, entry.action, entry.outcome);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Who calls
//!
//! The access key id names the caller; secrets and signatures are not checked.
//!
//! - Twelve digits: the root user of that account, for seeding. Accounts come into
//!   being when they are first used.
//! - A key that CreateAccessKey or AssumeRole issued: that user or session.
//! - [`sts::issue_session`]: a session as an AWS service gets one, for roles that
//!   nobody else may assume (Lambda's, Auto Scaling's).
//! - Any other key: whoever the STS at [`Settings::upstream_sts`] says it is. Roles
//!   known there must be mirrored with [`World::import_iam`], or they may do nothing.
//!
//! # Layout
//!
//! - [`world`]: accounts, settings, clock, ids, snapshots of an account's state.
//! - `server`, [`http`], [`wire`]: from an HTTP request to a handler and back, over a socket or in this process
//!   ([`respond_at_once`]).
//! - [`auth`]: callers, and whether they may; [`policy`]: documents, on iam-rs; `authorization`: encoded refusals.
//! - [`sts`], [`iam`], [`kms`], [`ec2`], [`organizations`]: the services.
//! - [`journal`]: every call, with what came of it. [`faults`]: what goes wrong on demand.
//!
//! # Control over HTTP
//!
//! All bodies are JSON, in camelCase.
//!
//! | request | does |
//! |---|---|
//! | `GET /_sandbox/health` | answers when the sandbox is up |
//! | `GET /_sandbox/journal?since=N` | `entries` after number N ([`journal::Entry`]), and the `last` number |
//! | `DELETE /_sandbox/journal` | forgets the entries |
//! | `POST /_sandbox/faults` | adds one [`faults::Fault`] or a list of them |
//! | `GET`, `DELETE /_sandbox/faults` | shows, removes all faults and hooks |
//! | `POST /_sandbox/hooks` | adds one [`faults::Hook`] or a list of them |
//! | `GET /_sandbox/snapshot/{account}` | [`World::snapshot`] |
//! | `GET`, `POST /_sandbox/settings` | shows the [`Settings`], changes those that are named |
//! | `POST /_sandbox/organization` | `{"account", "organization": {"organizationArn", "unitArns", "state", "delegatedAdministrator", "serviceControlPolicies": [[{"id", "document"}]]} or null}` |
//! | `GET`, `POST /_sandbox/iam/{account}` | [`World::export_iam`], [`World::import_iam`] |
//! | `POST /_sandbox/sessions` | `{"roleArn", "sessionName"}`: [`sts::issue_session`] |
//! | `POST /_sandbox/reset` | forgets everything but the settings |
//!
//! A fault, such as the second and third ListGrants of an account throttled:
//!
//! ```json
//! { "match": { "account": "111111111111", "action": "kms:ListGrants" },
//!   "skip": 1, "count": 2, "kind": "throttle" }
//! ```
//!
//! A hook: just before the first RunInstances of B a permission is taken away.
//!
//! ```json
//! { "when": "before", "match": { "account": "222222222222", "action": "ec2:RunInstances" },
//!   "calls": [{ "account": "222222222222", "region": "us-east-1", "service": "iam",
//!               "action": "DetachRolePolicy",
//!               "params": { "RoleName": "AmiShareLauncher", "PolicyArn": "arn:aws:iam::222222222222:policy/AmiShareKeyAccess" } }] }
//! ```
//!
//! # What it does not model
//!
//! Permission boundaries, resource control policies, groups, multi-region
//! keys, custom key stores, instance store images, networks. A session never expires.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends where it cannot go on")]

pub mod auth;
mod authorization;
mod control;
pub mod ec2;
pub mod faults;
pub mod http;
pub mod iam;
pub mod journal;
pub mod kms;
pub mod organizations;
pub mod policy;
mod server;
pub mod sts;
pub mod wire;
pub mod world;

pub use server::{Sandbox, respond_at_once};
pub use world::{Settings, World};
