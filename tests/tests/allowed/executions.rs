//! Whole executions, for accounts in every place of an organization.

use ami_share_sandbox::{
    faults::{Fault, FaultKind, Matcher},
    world::Organization,
};
use ami_share_tests::{
    HUB, Result, SOURCE, TARGET,
    clients::root_of,
    local::{self, Local, Settings},
    seed,
    stop::{Stopper, hold_after},
};
use aws_sdk_sfn::types::ExecutionStatus;
use serde_json::{Value, json};

use crate::{ASIDE, INNER, MANAGEMENT, MIDDLE, ORGANIZATION, OUTER, others, place, put, questions, run};

/// Ready to be a target, and on no list of accounts.
const MEMBER: &str = "444444444444";

fn request(image: &seed::Image, targets: &[&str]) -> Value {
    let targets: Vec<Value> =
        targets.iter().map(|account| json!({ "accountId": account, "launch": { "prove": "always" } })).collect();
    json!({ "imageId": image.image_id, "targets": targets })
}

fn settings(organization: local::Organization) -> Settings {
    let targets = vec![MEMBER.to_owned()];
    Settings { organization: local::Organization { targets, ..organization }, ..Settings::default() }
}

/// The unit [`OUTER`] is allowed, and the management account is asked as the role of accounts/organization.yaml.
async fn start() -> Result<(Local, seed::Image)> {
    let units = vec![OUTER.to_owned()];
    let asked_in = Some(MANAGEMENT.to_owned());
    let local = Local::start(settings(local::Organization { units, asked_in, ..Default::default() })).await?;
    let image = seed::image(&local.sandbox.endpoint(), SOURCE, "golden-image").await?;
    put(&mut local.sandbox.world(), MANAGEMENT, place(MANAGEMENT, &[]));
    Ok((local, image))
}

/// Refused, with nothing but questions to Organizations asked.
async fn assert_refused(local: &Local, name: &str, request: &Value, error: &str, says: &[&str]) -> Result<()> {
    let (found, cause, journal) = run(local, name, request).await?;
    assert_eq!(found, error, "{name}: {cause}");
    for said in says {
        assert!(cause.contains(said), "{name}: the cause does not say {said:?}: {cause}");
    }
    assert!(others(&journal).is_empty(), "{name}: {:#?}", others(&journal));
    Ok(())
}

#[tokio::test]
async fn an_account_is_allowed_for_as_long_as_it_is_in_an_allowed_unit_at_any_depth() -> Result<()> {
    let (local, image) = start().await?;
    let request = request(&image, &[MEMBER, TARGET]);
    put(&mut local.sandbox.world(), MEMBER, place(MANAGEMENT, &[INNER, MIDDLE, OUTER]));
    let (error, cause, journal) = run(&local, "three-deep", &request).await?;
    assert_eq!(error, "", "{cause}");
    // ResolveImage, ShareKey and ShareImage; TARGET is listed.
    let each = [
        ("organizations:DescribeAccount", MEMBER),
        ("organizations:ListParents", MEMBER),
        ("organizations:ListParents", INNER),
        ("organizations:ListParents", MIDDLE),
    ];
    assert_eq!(questions(&journal), [each, each, each].concat());

    put(&mut local.sandbox.world(), MEMBER, place(MANAGEMENT, &[ASIDE]));
    let says = [MEMBER, "in no organizational unit that is allowed", OUTER, "AllowedOrganizationalUnits"];
    assert_refused(&local, "moved-out", &request, "TargetNotAllowed", &says).await?;

    put(&mut local.sandbox.world(), MEMBER, place(MANAGEMENT, &[OUTER]));
    let (error, cause, _) = run(&local, "moved-back", &request).await?;
    assert_eq!(error, "", "{cause}");
    Ok(())
}

#[tokio::test]
async fn an_account_that_is_not_in_an_allowed_unit_is_refused_and_says_why() -> Result<()> {
    let (local, image) = start().await?;
    let request = request(&image, &[TARGET, MEMBER]);
    let elsewhere = "arn:aws:organizations::888888888888:organization/o-zzzzzzzzzz";
    let suspended = Organization { state: Some("SUSPENDED".to_owned()), ..place(MANAGEMENT, &[OUTER]) };
    let other = Organization { organization_arn: elsewhere.to_owned(), ..place(MANAGEMENT, &[OUTER]) };
    for (name, place, says) in [
        ("in-no-organization", None, "not in the organization that account 999999999999 may ask about"),
        ("in-another-organization", Some(other), "not in the organization that account 999999999999 may ask about"),
        ("below-the-root", Some(place(MANAGEMENT, &[])), "in no organizational unit"),
        ("in-another-unit", Some(place(MANAGEMENT, &[INNER, ASIDE])), "in no organizational unit that is allowed"),
        ("suspended", Some(suspended), "its state is SUSPENDED"),
    ] {
        local.sandbox.world().set_organization(MEMBER, place);
        assert_refused(&local, name, &request, "TargetNotAllowed", &[MEMBER, says]).await?;
    }
    Ok(())
}

#[tokio::test]
async fn where_organizations_cannot_be_asked_nobody_is_allowed_but_listed_accounts() -> Result<()> {
    let (local, image) = start().await?;
    put(&mut local.sandbox.world(), MEMBER, place(MANAGEMENT, &[OUTER]));
    let unlisted = request(&image, &[MEMBER]);
    let refusal = FaultKind::Error {
        code: "AccessDeniedException".to_owned(),
        message: "You don't have permissions to access this resource.".to_owned(),
        status: 400,
    };
    for call in ["organizations:DescribeAccount", "organizations:ListParents"] {
        local.sandbox.world().faults.add(Fault::once(Matcher::action(call), refusal.clone()));
        let says = [MANAGEMENT, call, "accounts/organization.yaml", "OrganizationsRoleArn"];
        let name = call.trim_start_matches("organizations:");
        assert_refused(&local, name, &unlisted, "AccessDenied", &says).await?;
    }
    // Each action of the role is needed.
    let iam = aws_sdk_iam::Client::new(&root_of(MANAGEMENT, &local.sandbox.endpoint()));
    let allow = async |name: &str, actions: Value| {
        let statement = json!({ "Effect": "Allow", "Action": actions, "Resource": "*" });
        let document = json!({ "Version": "2012-10-17", "Statement": [statement] }).to_string();
        let put = iam.put_role_policy().role_name("AmiShareOrganization").policy_name(name);
        put.policy_document(document).send().await.map(drop)
    };
    for (allowed, missing) in [("DescribeAccount", "ListParents"), ("ListParents", "DescribeAccount")] {
        allow("AskOrganizations", json!(format!("organizations:{allowed}"))).await?;
        let says = [MANAGEMENT, missing, "no identity-based policy allows"];
        assert_refused(&local, &format!("without-{missing}"), &unlisted, "AccessDenied", &says).await?;
    }
    allow("AskOrganizations", json!(["organizations:DescribeAccount", "organizations:ListParents"])).await?;
    // A fault that passes is waited for, and not taken for an answer.
    for (name, kind) in [("throttled", FaultKind::Throttle), ("server-error", FaultKind::ServerError)] {
        for _ in 0..4 {
            let fault = Fault::once(Matcher::action("organizations:DescribeAccount"), kind.clone());
            local.sandbox.world().faults.add(fault);
        }
        let (error, cause, _) = run(&local, name, &unlisted).await?;
        assert_eq!(error, "", "{name}: {cause}");
        assert!(local.sandbox.world().faults.faults().is_empty(), "{name}: a fault did not strike");
    }
    // The management account has left: it is in no organization any more.
    local.sandbox.world().set_organization(MANAGEMENT, None);
    assert_refused(&local, "no-organization", &unlisted, "AccessDenied", &["it is in no organization"]).await?;
    local.sandbox.world().account_mut(MANAGEMENT).iam.roles.remove("AmiShareOrganization");
    let says = ["role AmiShareOrganization cannot be assumed", "accounts/organization.yaml"];
    assert_refused(&local, "no-role", &unlisted, "AccessDenied", &says).await?;

    let (error, cause, journal) = run(&local, "listed", &request(&image, &[TARGET])).await?;
    assert_eq!(error, "", "{cause}");
    assert_eq!(questions(&journal), []);
    Ok(())
}

#[tokio::test]
async fn a_hub_that_manages_the_organization_asks_itself() -> Result<()> {
    let organizations = vec![ORGANIZATION.to_owned()];
    let local = Local::start(settings(local::Organization { organizations, ..Default::default() })).await?;
    let image = seed::image(&local.sandbox.endpoint(), SOURCE, "golden-image").await?;
    let request = request(&image, &[MEMBER]);
    put(&mut local.sandbox.world(), MEMBER, place(HUB, &[INNER]));

    // Any member but the management account is refused.
    let member = place(MANAGEMENT, &[]);
    for (name, place, says) in [("stranger", None, "it is in no organization"), ("member", Some(member), "permissions")]
    {
        local.sandbox.world().set_organization(HUB, place);
        let (error, cause, journal) = run(&local, name, &request).await?;
        assert_eq!(error, "AccessDenied", "{name}: {cause}");
        assert!(cause.contains(HUB) && cause.contains(says), "{name}: {cause}");
        assert_eq!(journal.len(), 1, "{name}: {journal:#?}");
    }
    put(&mut local.sandbox.world(), HUB, place(HUB, &[]));
    let (error, cause, journal) = run(&local, "managed", &request).await?;
    assert_eq!(error, "", "{cause}");
    assert_eq!(questions(&journal), [("organizations:DescribeAccount", MEMBER); 3]);

    let delegated = Organization { delegated_administrator: true, ..place(MANAGEMENT, &[]) };
    put(&mut local.sandbox.world(), HUB, delegated);
    put(&mut local.sandbox.world(), MEMBER, place(MANAGEMENT, &[]));
    let (error, cause, _) = run(&local, "delegated", &request).await?;
    assert_eq!(error, "", "{cause}");

    let another = |organization: Organization| Organization {
        organization_arn: organization.organization_arn.replace(ORGANIZATION, "o-zzzzzzzzzz"),
        ..organization
    };
    put(&mut local.sandbox.world(), HUB, another(place(HUB, &[])));
    put(&mut local.sandbox.world(), MEMBER, another(place(HUB, &[])));
    let (error, cause, journal) = run(&local, "not-the-allowed-one", &request).await?;
    assert_eq!(error, "TargetNotAllowed", "{cause}");
    assert!(cause.contains("in the organization o-zzzzzzzzzz, which is not allowed"), "{cause}");
    assert_eq!(journal.len(), 1, "{journal:#?}");
    Ok(())
}

#[tokio::test]
async fn what_was_given_is_taken_back_from_an_account_that_has_left() -> Result<()> {
    let (local, image) = start().await?;
    let stopper = Stopper::new(&local).await?;
    put(&mut local.sandbox.world(), MEMBER, place(MANAGEMENT, &[OUTER]));
    let before = [SOURCE, MEMBER].map(|account| local.sandbox.world().snapshot(account));
    let mut definition = stopper.definition();
    hold_after(&mut definition, "LaunchInstance")?;
    let arn = stopper.start(&definition, "left", &request(&image, &[MEMBER])).await?;
    stopper.entered(&arn, "Hold").await?;
    local.sandbox.world().set_organization(MEMBER, None);
    stopper.stop_held(&arn).await?;
    let undone = stopper.follow_undo(&arn).await?;
    assert_eq!(undone.status, ExecutionStatus::Succeeded, "{:?}", undone.cause);
    put(&mut local.sandbox.world(), MEMBER, place(MANAGEMENT, &[OUTER]));
    let after = [SOURCE, MEMBER].map(|account| local.sandbox.world().snapshot(account));
    assert_eq!(after, before);
    Ok(())
}
