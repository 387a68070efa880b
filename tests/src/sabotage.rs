//! What somebody else does to a share while it is under way.

use ami_share_sandbox::faults::{Hook, Matcher, RootCall, When};
use serde_json::json;

use crate::{REGION, TARGET};

/// Takes the key access from the target's launcher between GrantPrincipals and LaunchInstance: the
/// proof dies.
pub fn detach_before_launch() -> Hook {
    Hook {
        when: When::Before,
        matcher: Matcher::action("ec2:RunInstances").in_account(TARGET),
        skip: 0,
        calls: vec![RootCall {
            account: TARGET.to_owned(),
            region: REGION.to_owned(),
            service: "iam".to_owned(),
            action: "DetachRolePolicy".to_owned(),
            params: json!({
                "RoleName": "AmiShareLauncher",
                "PolicyArn": format!("arn:aws:iam::{TARGET}:policy/AmiShareKeyAccess"),
            }),
        }],
    }
}
