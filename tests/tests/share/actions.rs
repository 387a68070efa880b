//! Each function calls exactly the actions that it names: what its session policies allow, and what
//! the roles in `accounts/` are held to.

use std::collections::{BTreeMap, BTreeSet};

use ami_share_sandbox::{
    ec2::LaunchPermission,
    faults::{Fault, FaultKind, Matcher},
    journal::{Entry, Outcome},
};
use ami_share_tests::{HUB, REGION, Result, SOURCE, TARGET, clients, deploy, local::Settings, sabotage, seed};
use aws_sdk_kms::types::GrantOperation;
use aws_sdk_sfn::types::ExecutionStatus;
use serde_json::{Value, json};

use crate::{Stage, ec2, image_mut, modes, steps::functions};

/// A call: the function that made it, the account role that it made it as, and the action.
type Call = (String, String, String);

/// What the functions say that they call.
fn named() -> BTreeSet<Call> {
    let mut named = BTreeSet::new();
    for (function, actions) in functions() {
        for (role, actions) in [
            ("Source", actions.source),
            ("SourceReader", actions.source_reader),
            ("Target", actions.target),
            ("Launcher", actions.launcher),
        ] {
            named.extend(actions.iter().map(|action| (function.to_owned(), role.to_owned(), (*action).to_owned())));
        }
    }
    named
}

/// The calls of the journal, but for those of functions to assume a role and of whoever is not
/// ami-share, with whether each was allowed once.
fn called(journal: &[Entry]) -> BTreeMap<Call, bool> {
    let mut called: BTreeMap<Call, bool> = BTreeMap::new();
    for entry in journal {
        let function = entry.assumed_by.as_deref().and_then(function_of);
        let Some(function) = function else { continue };
        let role = entry.principal.rsplit_once("/AmiShare").map_or(entry.principal.as_str(), |(_, role)| role);
        for action in entry.implied.iter().chain([&entry.action]) {
            let allowed = called.entry((function.to_owned(), role.to_owned(), action.clone())).or_default();
            *allowed |= entry.outcome != Outcome::Denied;
        }
    }
    called
}

/// `ShareKey` for the ARN of the role AmiShareShareKeyFunctionRole.
fn function_of(role: &str) -> Option<&str> {
    role.strip_prefix(&format!("arn:aws:iam::{HUB}:role/AmiShare"))?.strip_suffix("FunctionRole")
}

/// Tells StartShare of the image, which asks for nothing.
fn start_share(stage: &Stage) -> Result<()> {
    let event = json!({
        "version": "0", "id": "00000000-0000-0000-0000-000000000000", "source": "aws.ec2",
        "detail-type": "EC2 AMI State Change", "account": SOURCE, "time": "2026-11-24T03:00:00Z", "region": REGION,
        "resources": [], "detail": { "ImageId": stage.image.image_id, "State": "available" },
    });
    let output = deploy::aws(HUB, &stage.local.engine.endpoint())?
        .args(["lambda", "invoke", "--function-name", &stage.local.hub.function("StartShareFunction")?])
        .args(["--payload", &event.to_string(), "/dev/stdout"])
        .output()?;
    let answer = String::from_utf8_lossy(&output.stdout);
    assert!(answer.replace(' ', "").contains("\"started\":[]"), "{output:?}");
    Ok(())
}

const ATTACHING: [&str; 4] =
    ["iam:AttachRolePolicy", "iam:AttachUserPolicy", "iam:DetachRolePolicy", "iam:DetachUserPolicy"];
const WRITING: [&str; 4] = ["iam:PutRolePolicy", "iam:PutUserPolicy", "iam:DeleteRolePolicy", "iam:DeleteUserPolicy"];
/// More than there are principals and keys.
const MANY: usize = 10;

#[tokio::test]
async fn functions_call_exactly_the_actions_that_they_name() -> Result<()> {
    let settings = Settings { inline_policies: true, decode_messages: true, ..Settings::default() };
    let mut stage = Stage::start(settings).await?;
    let sandbox = stage.local.sandbox.endpoint();
    let (role, user) = (stage.target().principal.clone(), modes::user(&stage, "app-user").await?);
    // It is made of the same keys.
    let (root_key, data_key) = (&stage.image.volumes[0].key_arn, &stage.image.volumes[1].key_arn);
    let other_image = seed::image_under(&sandbox, SOURCE, "other-image", root_key, data_key).await?;
    // Whether it is encrypted by default is asked where something is not.
    let plain = stage.image.volumes[1].snapshot_id.clone();
    if let Some(snapshot) = ec2(&mut stage.local.sandbox.world(), SOURCE).snapshots.get_mut(&plain) {
        snapshot.key = None;
    }
    // Whether there is room for another policy is asked where there are ten.
    {
        let mut world = stage.local.sandbox.world();
        let iam = &mut world.account_mut(TARGET).iam;
        iam.attached_quota = 2 * MANY;
        let entity = &mut iam.users.get_mut("app-user").expect("it was made").entity;
        entity.attached.set(crate::plan::other_policies(MANY), 0, 0);
    }
    stage.keep();
    let copy = json!({ "mode": "copyImage", "kmsKeyId": "alias/app-volumes" });
    let at_launch = json!({ "mode": "atLaunch", "kmsKeyId": "alias/app-volumes" });
    let fault = |action: &str, kind: FaultKind| {
        stage.local.sandbox.world().faults.add(Fault::once(Matcher::action(action).in_account(TARGET), kind));
    };
    let refused = || FaultKind::Error { code: "InternalRefusal".to_owned(), message: "No.".to_owned(), status: 400 };
    let fails = || FaultKind::Fail { reason: "Client.InternalError".to_owned() };
    let denied = |actions: &[&str]| {
        for action in actions {
            let refused = || FaultKind::Error { code: "AccessDenied".into(), message: "No.".into(), status: 403 };
            (0..MANY).for_each(|_| fault(action, refused()));
        }
    };
    // AWS says no more of one that it did not encode, and is asked all the same.
    let unauthorized = |action: &str| {
        let message = "You are not authorized. Encoded authorization failure message: made-up".to_owned();
        fault(action, FaultKind::Error { code: "UnauthorizedOperation".to_owned(), message, status: 403 });
    };
    // Whether Allowed AMIs are the reason is asked, and it passes.
    let hidden = |action: &str| {
        let message = format!("Not authorized for images: [{}]", stage.image.image_id);
        fault(action, FaultKind::Error { code: "AuthFailure".to_owned(), message, status: 400 });
    };
    type Trouble<'t> = Box<dyn Fn() + 't>;
    let runs: [(&str, &str, Value, Value, &str, Trouble<'_>); 11] = [
        ("default", "attach", json!([]), Value::Null, "", Box::new(|| hidden("ec2:RunInstances"))),
        ("copy", "attach", json!([role, user]), copy.clone(), "", Box::new(|| hidden("ec2:CopyImage"))),
        ("refused-copy", "attach", json!([]), copy.clone(), "AccessDenied", Box::new(|| unauthorized("ec2:CopyImage"))),
        (
            "refused-launch",
            "attach",
            json!([]),
            copy.clone(),
            "AccessDenied",
            Box::new(|| ["ec2:RunInstances", "ec2:DeregisterImage"].into_iter().for_each(unauthorized)),
        ),
        (
            "refused-termination",
            "attach",
            json!([]),
            Value::Null,
            "AccessDenied",
            // Its undo is refused too, once.
            Box::new(|| ["ec2:TerminateInstances"; 2].into_iter().for_each(unauthorized)),
        ),
        (
            "failed-copy",
            "inline",
            json!([role, user]),
            copy,
            "CopyFailed",
            Box::new(|| fault("ec2:CopyImage", fails())),
        ),
        (
            "dead-instance",
            "attach",
            json!([role, user]),
            at_launch,
            "InstanceDied",
            Box::new(|| stage.local.sandbox.world().faults.add_hook(sabotage::detach_before_launch())),
        ),
        (
            "running-instance",
            "attach",
            json!([]),
            Value::Null,
            "Aws",
            Box::new(|| fault("ec2:DescribeVolumes", refused())),
        ),
        (
            "needed-by-another-image",
            "attach",
            json!([]),
            Value::Null,
            "InstanceDied",
            Box::new(|| {
                (0..3).for_each(|_| fault("ec2:RunInstances", fails()));
                let target = LaunchPermission::Account(TARGET.to_owned());
                image_mut(&mut stage.local.sandbox.world(), &other_image).permissions.insert(target);
            }),
        ),
        // The undo, which may not detach either, looks whether anything is attached.
        ("not-attached", "attach", json!([role, user]), Value::Null, "AccessDenied", Box::new(|| denied(&ATTACHING))),
        ("not-inline", "inline", json!([role, user]), Value::Null, "AccessDenied", Box::new(|| denied(&WRITING))),
    ];
    let mut journal = Vec::new();
    for (name, access, principals, reencrypt, error, trouble) in runs {
        stage.reset();
        trouble();
        let mut request = stage.request(json!({ "principals": principals, "reencrypt": reencrypt }));
        request["principalAccess"] = json!(access);
        let run = stage.run(name, &request).await?;
        assert_eq!(run.error(), error, "{name}: {}", run.summary());
        stage.local.sandbox.world().faults.clear();
        journal.extend(run.journal);
        if run.ended.status == ExecutionStatus::Succeeded {
            // What is noted of it would keep what the others gave.
            let all = json!({ "imageId": stage.image.image_id, "targets": "all", "copies": true, "force": true });
            let revoked = stage.run_on(&stage.local.hub.revoke_share, &format!("{name}-revoke"), &all).await?;
            assert!(revoked.succeeded(), "{name}: {}", revoked.summary());
        }
    }
    stage.reset();
    (0..3).for_each(|_| fault("ec2:RunInstances", fails()));
    let mut by_grant = stage.request(json!({}));
    by_grant["keyAccess"] = json!("grant");
    let run = stage.run("by-grant", &by_grant).await?;
    assert_eq!(run.error(), "InstanceDied", "by-grant: {}", run.summary());
    journal.extend(run.journal);

    stage.reset();
    let run = stage.run("passed-on", &by_grant).await?;
    assert!(run.succeeded(), "passed-on: {}", run.summary());
    let kms = aws_sdk_kms::Client::new(&clients::root_of(TARGET, &sandbox));
    let key = &stage.image.volumes[0].key_arn;
    let grant = kms.create_grant().key_id(key).grantee_principal(&role).operations(GrantOperation::Decrypt);
    grant.send().await?;
    let revoke = json!({ "imageId": stage.image.image_id, "targets": [TARGET] });
    let mut planned = revoke.clone();
    (planned["action"], planned["foreignGrants"]) = (json!("plan"), json!("revoke"));
    for (name, request) in [("plan-passed-on", &planned), ("revoke-passed-on", &revoke)] {
        let run = stage.run_on(&stage.local.hub.revoke_share, name, request).await?;
        assert!(run.succeeded(), "{name}: {}", run.summary());
        journal.extend(run.journal);
    }

    stage.reset();
    let mut plan = stage.request(json!({}));
    plan["action"] = json!("plan");
    let run = stage.run("plan", &plan).await?;
    assert!(run.succeeded(), "plan: {}", run.summary());
    journal.extend(run.journal);

    stage.reset();
    let kept =
        json!({ "reencrypt": { "mode": "copyImage", "kmsKeyId": "alias/app-volumes" }, "launch": { "keep": true } });
    let kept = stage.request(kept);
    // The second one finds the copy of the first.
    for name in ["kept", "kept-again"] {
        let run = stage.run(name, &kept).await?;
        assert!(run.succeeded(), "{name}: {}", run.summary());
        journal.extend(run.journal);
    }
    let audit = &stage.local.hub.stack.resources["AuditSharesStateMachine"];
    let run = stage.run_on(audit, "audit", &json!({})).await?;
    assert!(run.succeeded(), "audit: {}", run.summary());
    journal.extend(run.journal);
    let revoke = json!({ "imageId": stage.image.image_id, "targets": [TARGET], "copies": true, "instances": true });
    let mut planned = revoke.clone();
    planned["action"] = json!("plan");
    // The second revoke finds nothing noted, and looks for what is there without a note.
    for (name, request) in [("plan-revoke", &planned), ("revoke", &revoke), ("revoke-again", &revoke)] {
        let run = stage.run_on(&stage.local.hub.revoke_share, name, request).await?;
        assert!(run.succeeded(), "{name}: {}", run.summary());
        journal.extend(run.journal);
    }
    let seen = stage.local.sandbox.world().journal.last_seq();
    start_share(&stage)?;
    journal.extend(stage.local.sandbox.world().journal.since(seen).to_vec());

    let by_session: Vec<&Entry> = journal
        .iter()
        .filter(|entry| entry.reason.as_deref().is_some_and(|reason| reason.contains("session policy")))
        .collect();
    assert!(by_session.is_empty(), "denied by a session policy: {by_session:#?}");
    let (named, called) = (named(), called(&journal));
    let not_named: Vec<&Call> = called.keys().filter(|call| !named.contains(*call)).collect();
    let not_called: Vec<&Call> = named.iter().filter(|call| !called.contains_key(*call)).collect();
    let never_allowed: Vec<&Call> = called.iter().filter(|(_, allowed)| !**allowed).map(|(call, _)| call).collect();
    assert!(
        not_named.is_empty() && not_called.is_empty() && never_allowed.is_empty(),
        "called but not named: {not_named:#?}\nnamed but not called: {not_called:#?}\nnever allowed: {never_allowed:#?}"
    );
    Ok(())
}
