//! What is explained.

use ami_share_core::{
    Hub,
    ids::ExecutionName,
    share::{Image, Source, Target},
};

/// An attempt that failed in a target.
#[derive(Clone, Copy)]
pub struct Attempt<'a> {
    /// For the source account's role, and the target's.
    pub hub: &'a Hub,
    /// What sessions are named after.
    pub execution: &'a ExecutionName,
    /// Where the image is.
    pub source: &'a Source,
    /// What was launched or copied, or what a copy that was launched is made of.
    pub image: &'a Image,
    /// Where it failed, and under which key.
    pub target: &'a Target,
}
