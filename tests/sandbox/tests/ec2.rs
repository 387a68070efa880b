//! EC2 seen through the AWS SDK: two accounts, A that owns images and B that
//! they are shared with.

mod api;
mod copies;
mod guardrails;
mod images;
mod launch;
mod sharing;
mod stage;
mod usage;
mod volumes;
