//! What is explained.

use ami_share_core::{
    Hub,
    ids::ExecutionName,
    share::{Image, Source, Target},
};
use aws_config::SdkConfig;

/// An attempt that failed in a target.
#[derive(Clone, Copy)]
pub struct Attempt<'a> {
    pub hub: &'a Hub,
    /// The session of the step that asks, as the launcher.
    pub launcher: &'a SdkConfig,
    pub execution: &'a ExecutionName,
    pub source: &'a Source,
    pub image: &'a Image,
    pub target: &'a Target,
}
