//! Allowed AMIs: which images of others an account can see and use in a Region ("Control the discovery and use of AMIs in
//! Amazon EC2 with Allowed AMIs", EC2 user guide). Criteria are compared by provider only.

use super::Request;
use super::images::Image;
use crate::auth::Context;
use crate::wire::{ApiError, Reply, Xml};

const DISABLED: &str = "disabled";
const ENABLED: &str = "enabled";

/// The account's setting. Its own images are always allowed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AllowedImages {
    /// `audit-mode` or `enabled`, or nothing.
    pub state: Option<String>,
    /// The providers of each criterion; an image needs to meet one.
    pub criteria: Vec<Vec<String>>,
    /// Whether the organization has set it, by a declarative policy.
    pub by_organization: bool,
}

impl AllowedImages {
    fn allows(&self, image: &Image, viewer: &str) -> bool {
        let meets = |providers: &Vec<String>| providers.is_empty() || providers.contains(&image.owner);
        image.owner == viewer || self.criteria.iter().any(meets)
    }

    /// Whether the account of this setting, `viewer`, cannot see the image for it.
    pub(super) fn hides(&self, image: &Image, viewer: &str) -> bool {
        self.state.as_deref() == Some(ENABLED) && !self.allows(image, viewer)
    }

    /// `ImageAllowed` of DescribeImages; nothing where nobody has turned it on.
    pub(super) fn verdict(&self, image: &Image, viewer: &str) -> Option<bool> {
        self.state.is_some().then(|| self.allows(image, viewer))
    }
}

pub(super) fn get(request: &mut Request<'_>) -> Reply {
    request.authorize("*", &Context::new())?;
    request.end_dry_run()?;
    let setting = request.ec2().map(|ec2| ec2.allowed_images.clone()).unwrap_or_default();
    let mut xml = Xml::new();
    xml.elem("state", setting.state.as_deref().unwrap_or(DISABLED))
        .elem("managedBy", if setting.by_organization { "declarative-policy" } else { "account" })
        .items("imageCriterionSet", &setting.criteria, |xml, providers| {
            xml.items("imageProviderSet", providers, |xml, provider| {
                xml.text(provider);
            });
        });
    Ok(xml.finish())
}

pub(super) fn enable(request: &mut Request<'_>) -> Reply {
    let state = request.params.require("AllowedImagesSettingsState")?.to_owned();
    request.authorize("*", &Context::new())?;
    if ![ENABLED, "audit-mode"].contains(&state.as_str()) {
        return Err(ApiError::bad_request("InvalidParameterValue", format!("Invalid value '{state}'")));
    }
    request.end_dry_run()?;
    request.ec2_mut().allowed_images.state = Some(state.clone());
    let mut xml = Xml::new();
    xml.elem("allowedImagesSettingsState", state);
    Ok(xml.finish())
}

pub(super) fn replace_criteria(request: &mut Request<'_>) -> Reply {
    let criteria = request.params.structs("ImageCriterion").iter().map(|given| given.list("ImageProvider")).collect();
    request.authorize("*", &Context::new())?;
    request.end_dry_run()?;
    request.ec2_mut().allowed_images.criteria = criteria;
    Ok(super::returns_true())
}
