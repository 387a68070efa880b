//! Organizations: whom it answers, and what a policy can tell of an account by its place.

use crate::accounts::{A, B, Clients, HUB, allow, as_role, code, role, root, sandbox};
use ami_share_sandbox::{Sandbox, world::Organization};
use aws_sdk_organizations::types::{AccountState, ParentType};
use serde_json::json;

const ORGANIZATION: &str = "arn:aws:organizations::999999999999:organization/o-abcdefghij";
const INNER: &str = "ou-ab12-22222222";
const OUTER: &str = "ou-ab12-11111111";

fn place(units: &[&str]) -> Organization {
    let arn = |unit| format!("arn:aws:organizations::{HUB}:ou/o-abcdefghij/{unit}");
    Organization {
        organization_arn: ORGANIZATION.to_owned(),
        unit_arns: units.iter().map(arn).collect(),
        ..Organization::default()
    }
}

/// B is two units deep in the organization that the hub manages.
async fn organization() -> Sandbox {
    let sandbox = sandbox().await;
    sandbox.world().set_organization(HUB, Some(place(&[])));
    sandbox.world().set_organization(B, Some(place(&[INNER, OUTER])));
    sandbox
}

async fn parent(clients: &Clients, child: &str) -> (String, ParentType) {
    let answer = clients.organizations.list_parents().child_id(child).send().await.unwrap();
    let parent = &answer.parents()[0];
    (parent.id().unwrap().to_owned(), parent.r#type().unwrap().clone())
}

#[tokio::test]
async fn the_management_account_sees_members_and_what_they_are_in() {
    let sandbox = organization().await;
    let hub = root(&sandbox, HUB);
    let found = hub.organizations.describe_account().account_id(B).send().await.unwrap().account.unwrap();
    assert_eq!(found.arn(), Some("arn:aws:organizations::999999999999:account/o-abcdefghij/222222222222"));
    assert_eq!(found.state(), Some(&AccountState::Active));
    assert_eq!(parent(&hub, B).await, (INNER.to_owned(), ParentType::OrganizationalUnit));
    assert_eq!(parent(&hub, INNER).await, (OUTER.to_owned(), ParentType::OrganizationalUnit));
    assert_eq!(parent(&hub, OUTER).await, ("r-ab12".to_owned(), ParentType::Root));
    assert_eq!(parent(&hub, HUB).await.1, ParentType::Root);

    let suspended = Organization { state: Some("SUSPENDED".to_owned()), ..place(&[INNER]) };
    sandbox.world().set_organization(B, Some(suspended));
    let found = hub.organizations.describe_account().account_id(B).send().await.unwrap().account.unwrap();
    assert_eq!(found.state(), Some(&AccountState::Suspended));
}

#[tokio::test]
async fn an_account_outside_is_not_found() {
    let sandbox = organization().await;
    let hub = root(&sandbox, HUB);
    let elsewhere = Organization {
        organization_arn: "arn:aws:organizations::888888888888:organization/o-zzzzzzzzzz".to_owned(),
        ..place(&["ou-zz99-11111111"])
    };
    sandbox.world().set_organization(A, Some(elsewhere));
    for outside in [A, "777777777777"] {
        let answer = hub.organizations.describe_account().account_id(outside).send().await;
        assert_eq!(code(answer), "AccountNotFoundException", "{outside}");
    }
    for outside in [A, "ou-zz99-11111111", "ou-ab12-99999999"] {
        let answer = hub.organizations.list_parents().child_id(outside).send().await;
        assert_eq!(code(answer), "ChildNotFoundException", "{outside}");
    }
}

#[tokio::test]
async fn only_the_management_account_and_delegated_administrators_are_answered() {
    let sandbox = organization().await;
    let ask = async |account| code(root(&sandbox, account).organizations.describe_account().account_id(B).send().await);
    assert_eq!(ask(B).await, "AccessDeniedException");
    assert_eq!(ask(A).await, "AWSOrganizationsNotInUseException");
    let administrator = Organization { delegated_administrator: true, ..place(&[]) };
    sandbox.world().set_organization(A, Some(administrator));
    assert_eq!(ask(A).await, "no error");
}

#[tokio::test]
async fn the_callers_policies_must_allow_it() {
    let sandbox = organization().await;
    let admin = root(&sandbox, HUB);
    let asker = role(&admin, "asker", &format!("arn:aws:iam::{HUB}:root")).await;
    let asker = as_role(&sandbox, &asker);
    let ask = async || code(asker.organizations.describe_account().account_id(B).send().await);
    assert_eq!(ask().await, "AccessDeniedException");
    let mine = "arn:aws:organizations::999999999999:account/o-abcdefghij/*";
    let statement = json!([{ "Effect": "Allow", "Action": "organizations:DescribeAccount", "Resource": mine }]);
    allow(&admin, "asker", statement).await;
    assert_eq!(ask().await, "no error");
    assert_eq!(code(asker.organizations.list_parents().child_id(B).send().await), "AccessDeniedException");
}

#[tokio::test]
async fn a_policy_can_tell_a_role_by_its_accounts_place() {
    let sandbox = organization().await;
    let hub = root(&sandbox, HUB);
    let target = role(&root(&sandbox, B), "target", &format!("arn:aws:iam::{HUB}:root")).await;
    let caller = role(&hub, "caller", &format!("arn:aws:iam::{HUB}:root")).await;
    let caller = as_role(&sandbox, &caller);
    for (condition, expected) in [
        (json!({ "StringEquals": { "aws:ResourceOrgID": ["o-abcdefghij"] } }), "no error"),
        (json!({ "StringEquals": { "aws:ResourceOrgID": ["o-zzzzzzzzzz"] } }), "AccessDenied"),
        (json!({ "ForAnyValue:StringLike": { "aws:ResourceOrgPaths": [format!("*/{INNER}/*")] } }), "no error"),
        (
            json!({ "ForAnyValue:StringLike": { "aws:ResourceOrgPaths": ["*/x/*", format!("*/{OUTER}/*")] } }),
            "no error",
        ),
        (json!({ "ForAnyValue:StringLike": { "aws:ResourceOrgPaths": ["*/ou-ab12-33333333/*"] } }), "AccessDenied"),
    ] {
        let statement = json!([{
            "Effect": "Allow", "Action": "sts:AssumeRole", "Resource": "*", "Condition": condition,
        }]);
        allow(&hub, "caller", statement).await;
        let assumed = caller.sts.assume_role().role_arn(&target).role_session_name("run-1").send().await;
        assert_eq!(code(assumed), expected, "{condition}");
    }
    sandbox.world().set_organization(B, None);
    let assumed = caller.sts.assume_role().role_arn(&target).role_session_name("run-1").send().await;
    assert_eq!(code(assumed), "AccessDenied");
}
