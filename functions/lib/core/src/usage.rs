//! What uses an image that is to be revoked.

use serde::{Deserialize, Serialize};

use crate::ids::{AccountId, ImageId};

/// Resources of one kind in one account that use an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Use {
    /// The target that has them.
    pub account_id: AccountId,
    /// The image, or a copy of it that is to go.
    pub image_id: ImageId,
    /// All of one kind.
    pub resource: UsingResource,
    /// How many there are, named or not.
    pub count: u64,
    /// Some of them; none where only EC2's usage report names them.
    pub ids: Vec<String>,
}

/// What an image can be used by, as far as it is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum UsingResource {
    /// Launched from it, and not terminated.
    Instance,
    /// With it in one of the versions that are looked at.
    LaunchTemplate,
}

impl UsingResource {
    /// As EC2's usage reports name it ("ImageUsageResourceType", EC2 API reference).
    pub fn name(self) -> &'static str {
        match self {
            Self::Instance => "ec2:Instance",
            Self::LaunchTemplate => "ec2:LaunchTemplate",
        }
    }

    /// The kind that EC2 calls so; nothing for others.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Instance, Self::LaunchTemplate].into_iter().find(|resource| resource.name() == name)
    }
}

impl Use {
    /// The most ids that are named.
    pub const IDS: usize = 5;
}

impl std::fmt::Display for Use {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let resource = match self.resource {
            UsingResource::Instance => "instance",
            UsingResource::LaunchTemplate => "launch template",
        };
        let plural = if self.count == 1 { "" } else { "s" };
        write!(f, "account {} has {} {resource}{plural} of {}", self.account_id, self.count, self.image_id)?;
        match self.ids.as_slice() {
            [] => write!(f, " (says EC2's usage report)"),
            ids if (ids.len() as u64) < self.count => write!(f, " ({}, ...)", ids.join(", ")),
            ids => write!(f, " ({})", ids.join(", ")),
        }
    }
}
