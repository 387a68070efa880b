//! Block public access, for images and for snapshots, of an account and Region ("Block public access to your AMIs", EC2 user
//! guide; "Block public access for Amazon EBS snapshots", EBS user guide). Neither is on here until somebody turns it on.

use super::Request;
use crate::auth::Context;
use crate::wire::{ApiError, Reply, Xml};

const UNBLOCKED: &str = "unblocked";

/// What the account lets nobody make public.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PublicAccess {
    /// `block-new-sharing`, or nothing.
    pub images: Option<String>,
    /// `block-all-sharing` or `block-new-sharing`, or nothing.
    pub snapshots: Option<String>,
}

impl PublicAccess {
    /// # Errors
    /// Where something is to be made public while it may not. The text is made up.
    pub(super) fn check(state: Option<&str>) -> Result<(), ApiError> {
        match state {
            None => Ok(()),
            Some(state) => Err(ApiError::bad_request(
                "OperationNotPermitted",
                format!("Block public access is enabled for this account: {state}"),
            )),
        }
    }
}

pub(super) fn get_of_images(request: &mut Request<'_>) -> Reply {
    get(request, "imageBlockPublicAccessState", |access| &access.images)
}

pub(super) fn get_of_snapshots(request: &mut Request<'_>) -> Reply {
    get(request, "state", |access| &access.snapshots)
}

fn get(request: &mut Request<'_>, element: &str, of: impl Fn(&PublicAccess) -> &Option<String>) -> Reply {
    request.authorize("*", &Context::new())?;
    request.end_dry_run()?;
    let state = request.ec2().and_then(|ec2| of(&ec2.public_access).clone());
    let mut xml = Xml::new();
    xml.elem(element, state.as_deref().unwrap_or(UNBLOCKED)).elem("managedBy", "account");
    Ok(xml.finish())
}

pub(super) fn enable_of_images(request: &mut Request<'_>) -> Reply {
    let state = request.params.require("ImageBlockPublicAccessState")?.to_owned();
    enable(request, "imageBlockPublicAccessState", &["block-new-sharing"], state, |access| &mut access.images)
}

pub(super) fn enable_of_snapshots(request: &mut Request<'_>) -> Reply {
    let state = request.params.require("State")?.to_owned();
    enable(request, "state", &["block-all-sharing", "block-new-sharing"], state, |access| &mut access.snapshots)
}

fn enable(
    request: &mut Request<'_>,
    element: &str,
    known: &[&str],
    state: String,
    of: impl Fn(&mut PublicAccess) -> &mut Option<String>,
) -> Reply {
    request.authorize("*", &Context::new())?;
    if !known.contains(&state.as_str()) {
        return Err(ApiError::bad_request("InvalidParameterValue", format!("Invalid value '{state}'")));
    }
    request.end_dry_run()?;
    *of(&mut request.ec2_mut().public_access) = Some(state.clone());
    let mut xml = Xml::new();
    xml.elem(element, state);
    Ok(xml.finish())
}
