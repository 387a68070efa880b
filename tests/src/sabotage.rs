//! What somebody else does to a share while it is under way, or has done before.

use ami_share_sandbox::{
    faults::{Hook, Matcher, RootCall, When},
    world::{Organization, ServiceControlPolicy},
};
use serde_json::{Value, json};

use crate::{REGION, SOURCE, TARGET};

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

/// Takes the launch permission between ShareImage and LaunchInstance.
pub fn unshare_before_launch(image: &str) -> Hook {
    Hook {
        when: When::Before,
        matcher: Matcher::action("ec2:RunInstances").in_account(TARGET),
        skip: 0,
        calls: vec![RootCall {
            account: SOURCE.to_owned(),
            region: REGION.to_owned(),
            service: "ec2".to_owned(),
            action: "ModifyImageAttribute".to_owned(),
            params: json!({ "ImageId": image, "LaunchPermission.Remove.1.UserId": TARGET }),
        }],
    }
}

/// The place of an account in an organization whose service control policies have these statements: at the root all is
/// allowed, and at the account what they say.
pub fn limited_to(statements: &[Value]) -> Organization {
    let document = json!({ "Version": "2012-10-17", "Statement": statements });
    let policy = ServiceControlPolicy::new("p-guardrail", &document).expect("the statements are a policy");
    Organization {
        organization_arn: "arn:aws:organizations::999999999999:organization/o-abcdefghij".to_owned(),
        service_control_policies: vec![vec![ServiceControlPolicy::full_access()], vec![policy]],
        ..Organization::default()
    }
}

/// The same where all is allowed but what the statement denies.
pub fn denied_by(statement: Value) -> Organization {
    limited_to(&[json!({ "Effect": "Allow", "Action": "*", "Resource": "*" }), statement])
}

/// Denies launches of instances without the tag `team`.
pub fn ask_for_team() -> Value {
    json!({
        "Sid": "AskForTeam", "Effect": "Deny", "Action": "ec2:RunInstances", "Resource": "arn:aws:ec2:*:*:instance/*",
        "Condition": { "Null": { "aws:RequestTag/team": "true" } },
    })
}
