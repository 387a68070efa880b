//! Shares by grants: that they do all that a key policy would, need every operation they have, leave
//! the policies and everybody else's grants alone, and are taken back whole.

use std::collections::BTreeMap;

use ami_share_sandbox::{
    World,
    faults::{Fault, FaultKind, Matcher},
    kms::Grant,
};
use ami_share_tests::{Result, SOURCE, TARGET, clients::root_of, deploy, execution, local::Settings};
use aws_sdk_kms::{error::ProvideErrorMetadata, types::GrantOperation};
use serde_json::{Value, json};

use crate::{Run, Stage, key_mut, merge};

const THIRD: &str = "333333333333";
const FOURTH: &str = "444444444444";

/// What a target's grant allows: as in AWS's example for Auto Scaling.
const OPERATIONS: [&str; 8] = [
    "CreateGrant",
    "Decrypt",
    "DescribeKey",
    "Encrypt",
    "GenerateDataKey",
    "GenerateDataKeyWithoutPlaintext",
    "ReEncryptFrom",
    "ReEncryptTo",
];

/// What a launch is known to need of it, and what the grants of earlier versions allowed.
const NEEDED: [&str; 5] = ["CreateGrant", "Decrypt", "DescribeKey", "GenerateDataKeyWithoutPlaintext", "ReEncryptFrom"];

impl Stage {
    fn by_grant(&self, fields: Value) -> Value {
        let mut request = self.request(fields);
        merge(&mut request, json!({ "keyAccess": "grant" }));
        request
    }

    /// The texts of the policies of the image's keys.
    fn policy_texts(&self) -> Vec<String> {
        let mut world = self.local.sandbox.world();
        self.image.key_arns().iter().map(|arn| key_mut(&mut world, arn).policy.latest().text.clone()).collect()
    }

    /// The grants on the image's keys, in the order of the keys.
    fn grants(&self) -> Vec<Grant> {
        let mut world = self.local.sandbox.world();
        self.image.key_arns().iter().flat_map(|arn| key_mut(&mut world, arn).grants.clone()).collect()
    }

    /// Runs with one change made to the world while the targets wait for their access.
    async fn run_and_change(
        &self,
        name: &str,
        request: &Value,
        change: impl Fn(&mut World),
    ) -> Result<execution::Ended> {
        let engine = self.local.engine.endpoint();
        let arn = execution::start(&engine, &self.local.hub.state_machine, name, request).await?;
        execution::follow(&engine, &arn, |entered| {
            if entered.state == "WaitForAccess" {
                change(&mut self.local.sandbox.world());
            }
        })
        .await
    }
}

fn is_write_of_kms(run: &Run, action: &str) -> bool {
    run.journal.iter().any(|entry| entry.write && entry.action == action)
}

#[tokio::test]
async fn grants_do_all_that_a_policy_would_in_every_mode_and_only_once() -> Result<()> {
    let sandbox = ami_share_sandbox::Settings { grant_delay_ms: 1500, ..Default::default() };
    let stage = Stage::start(Settings { sandbox, ..Settings::default() }).await?;
    for mode in ["none", "atLaunch", "copyImage"] {
        stage.reset();
        let reencrypt =
            if mode == "none" { Value::Null } else { json!({ "mode": mode, "kmsKeyId": "alias/app-volumes" }) };
        let request = stage.by_grant(json!({ "reencrypt": reencrypt }));
        let policies = stage.policy_texts();
        let run = stage.run(mode, &request).await?;
        assert!(run.succeeded(), "{mode}: {}", run.summary());
        assert!(!is_write_of_kms(&run, "kms:PutKeyPolicy") && !run.ended.entered("ShareKey"), "{mode}");
        assert_eq!(stage.policy_texts(), policies, "{mode}");
        let grants = stage.grants();
        assert_eq!(grants.len(), 2, "{mode}");
        for grant in grants {
            assert_eq!(grant.name.as_deref(), Some("ami-share-222222222222"), "{mode}");
            assert_eq!(grant.grantee, "arn:aws:iam::222222222222:root", "{mode}");
            assert_eq!(grant.operations, OPERATIONS, "{mode}");
        }
        let keys: Vec<Value> =
            stage.image.key_arns().iter().map(|arn| json!({ "keyArn": arn, "accountIds": [TARGET] })).collect();
        let mut reported = run.report()["changed"]["grants"].as_array().cloned().unwrap_or_default();
        reported.sort_by_key(Value::to_string);
        let mut keys = keys;
        keys.sort_by_key(Value::to_string);
        assert_eq!(reported, keys, "{mode}");
        assert_eq!(run.report()["changed"]["keys"], json!([]), "{mode}");

        let again = stage.run(&format!("{mode}-again"), &request).await?;
        assert_eq!(again.report()["status"], "alreadyShared", "{mode}: {}", again.summary());
        assert_eq!(again.writes(), [""; 0], "{mode}");
    }
    Ok(())
}

#[tokio::test]
async fn a_launch_needs_operations_of_the_grant_and_the_error_says_which() -> Result<()> {
    let stage = Stage::start(Settings::default()).await?;
    let key = stage.image.volumes[0].key_arn.clone();
    for gone in NEEDED {
        stage.reset();
        let take_away = |world: &mut World| {
            for grant in &mut key_mut(world, &key).grants {
                grant.operations.retain(|operation| operation != gone);
            }
        };
        let ended = stage.run_and_change(gone, &stage.by_grant(json!({})), take_away).await?;
        let cause = ended.cause.unwrap_or_default();
        assert_eq!(ended.error.as_deref(), Some("InstanceDied"), "{gone}: {cause}");
        assert!(cause.contains("key grant") && cause.contains(&format!("allows kms:{gone},")), "{gone}: {cause}");
        assert!(cause.contains(&key), "{gone}: {cause}");
    }
    stage.reset();
    let revoke = |world: &mut World| key_mut(world, &key).grants.clear();
    let ended = stage.run_and_change("revoked", &stage.by_grant(json!({})), revoke).await?;
    let cause = ended.cause.unwrap_or_default();
    assert_eq!(ended.error.as_deref(), Some("InstanceDied"), "{cause}");
    let all =
        "allows kms:DescribeKey, kms:CreateGrant, kms:Decrypt, kms:ReEncryptFrom, kms:GenerateDataKeyWithoutPlaintext";
    assert!(cause.contains("key grant") && cause.contains(all), "{cause}");
    Ok(())
}

#[tokio::test]
async fn whatever_step_fails_the_grants_go_and_those_of_others_stay() -> Result<()> {
    let mut stage = Stage::start(Settings::default()).await?;
    let kms = aws_sdk_kms::Client::new(&root_of(SOURCE, &stage.local.sandbox.endpoint()));
    for key in stage.image.key_arns() {
        let grant = || kms.create_grant().key_id(key).operations(GrantOperation::Decrypt);
        // The same name to the same account, the same name to another, and one without a name.
        let name = "ami-share-222222222222";
        grant().name(name).grantee_principal("arn:aws:iam::222222222222:root").send().await?;
        grant().name(name).grantee_principal("arn:aws:iam::999999999999:root").send().await?;
        grant().grantee_principal("arn:aws:iam::222222222222:root").send().await?;
    }
    stage.keep();
    let failing = deploy::deploy_failing_function(&stage.local.engine).await?;
    let request = stage.by_grant(json!({ "reencrypt": { "mode": "copyImage", "kmsKeyId": "alias/app-volumes" } }));
    for step in ["GrantKeys", "ShareSnapshots", "ShareImage", "GrantPrincipals", "TerminateInstance", "Report"] {
        stage.reset();
        let function = format!("{step}Function");
        let name = format!("without-{step}");
        let machine = stage.local.hub.share_ami_with(&stage.local.engine, &name, &function, &failing);
        let run = stage.run_on(&machine.await?, step, &request).await?;
        assert_eq!(run.error(), "InjectedFailure", "{step}: {}", run.summary());
        assert_eq!(run.differences(), "", "{step}");
        assert_eq!(is_write_of_kms(&run, "kms:CreateGrant"), step != "GrantKeys", "{step}");
    }
    Ok(())
}

#[tokio::test]
async fn executions_that_share_a_key_need_no_lock_and_lose_nothing() -> Result<()> {
    let targets = [TARGET, THIRD, FOURTH].map(str::to_owned).to_vec();
    let stage = Stage::start(Settings { targets: targets.clone(), ..Settings::default() }).await?;
    let policies = stage.policy_texts();
    let engine = stage.local.engine.endpoint();
    let mut executions = BTreeMap::new();
    for account in &targets {
        let request = stage.by_grant(json!({ "accountId": account }));
        let arn = execution::start(&engine, &stage.local.hub.state_machine, account, &request).await?;
        executions.insert(account.clone(), arn);
    }
    for (account, arn) in executions {
        let ended = execution::follow(&engine, &arn, |_| {}).await?;
        assert_eq!(ended.status.as_str(), "SUCCEEDED", "{account}: {:?} {:?}", ended.error, ended.cause);
        assert!(!ended.entered("UndoShareKey"), "{account}");
    }
    assert_eq!(stage.grants().len(), 6);
    assert_eq!(stage.policy_texts(), policies);
    Ok(())
}

#[tokio::test]
async fn a_key_with_as_many_grants_as_it_may_have_is_said_to_and_nothing_stays() -> Result<()> {
    let sandbox = ami_share_sandbox::Settings { grants_per_key: 1, ..Default::default() };
    let mut stage = Stage::start(Settings { sandbox, ..Settings::default() }).await?;
    let kms = aws_sdk_kms::Client::new(&root_of(SOURCE, &stage.local.sandbox.endpoint()));
    let full = stage.image.key_arns()[1].to_owned();
    let grantee = "arn:aws:iam::999999999999:root";
    kms.create_grant().key_id(&full).operations(GrantOperation::Decrypt).grantee_principal(grantee).send().await?;
    stage.keep();
    let run = stage.run("full", &stage.by_grant(json!({}))).await?;
    assert_eq!(run.error(), "QuotaExceeded", "{}", run.summary());
    assert!(run.cause().contains(&full) && run.cause().contains("keyAccess policy"), "{}", run.cause());
    assert_eq!(run.differences(), "");
    Ok(())
}

#[tokio::test]
async fn a_reply_that_is_lost_leaves_no_second_grant_and_none_behind() -> Result<()> {
    let stage = Stage::start(Settings::default()).await?;
    let every = Fault::always(Matcher::action("kms:CreateGrant").in_account(SOURCE), FaultKind::ReplyLost);
    // More than the SDK tries again.
    stage.local.sandbox.world().faults.add(Fault { count: 4, ..every.clone() });
    let run = stage.run("lost", &stage.by_grant(json!({}))).await?;
    assert!(run.succeeded(), "{}", run.summary());
    assert_eq!(stage.grants().len(), 2);

    stage.reset();
    stage.local.sandbox.world().faults.add(every);
    let run = stage.run("never-answered", &stage.by_grant(json!({}))).await?;
    assert_eq!(run.error(), "Unavailable", "{}", run.summary());
    assert!(is_write_of_kms(&run, "kms:RetireGrant"));
    assert_eq!(run.differences(), "");
    Ok(())
}

#[tokio::test]
async fn each_way_is_looked_at_by_itself() -> Result<()> {
    let stage = Stage::start(Settings::default()).await?;
    let run = stage.run("policy", &stage.request(json!({}))).await?;
    assert!(run.succeeded(), "{}", run.summary());
    let policies = stage.policy_texts();
    let run = stage.run("grant", &stage.by_grant(json!({}))).await?;
    assert_eq!(run.report()["status"], "shared", "{}", run.summary());
    assert_eq!((stage.grants().len(), stage.policy_texts()), (2, policies));
    let again = stage.run("policy-again", &stage.request(json!({}))).await?;
    assert_eq!(again.report()["status"], "alreadyShared", "{}", again.summary());
    Ok(())
}

/// A grant that is made from a grant allows no more than that one does.
#[tokio::test]
async fn a_target_makes_the_grant_of_aws_s_example_for_auto_scaling_from_its_own() -> Result<()> {
    let stage = Stage::start(Settings::default()).await?;
    let target = root_of(TARGET, &stage.local.sandbox.endpoint());
    let service = "autoscaling.amazonaws.com";
    aws_sdk_iam::Client::new(&target).create_service_linked_role().aws_service_name(service).send().await?;
    let role = format!("arn:aws:iam::{TARGET}:role/aws-service-role/{service}/AWSServiceRoleForAutoScaling");
    let kms = aws_sdk_kms::Client::new(&target);
    let make = |key: &str| {
        let operations = OPERATIONS.map(GrantOperation::from).to_vec();
        kms.create_grant().key_id(key).grantee_principal(&role).set_operations(Some(operations))
    };
    // ami-share's statement for grants is for those that AWS services make.
    let run = stage.run("policy", &stage.request(json!({}))).await?;
    assert!(run.succeeded(), "{}", run.summary());
    let refused = make(stage.image.key_arns()[0]).send().await.unwrap_err();
    assert_eq!(refused.code(), Some("AccessDeniedException"));
    let run = stage.run("grant", &stage.by_grant(json!({}))).await?;
    assert!(run.succeeded(), "{}", run.summary());
    for key in stage.image.key_arns() {
        make(key).send().await?;
    }
    Ok(())
}

/// They stay ours: the share adds one of today's, an audit knows both, and a revoke takes both.
#[tokio::test]
async fn a_grant_of_an_earlier_version_is_replaced_and_taken_back_with_its_successor() -> Result<()> {
    let stage = Stage::start(Settings::default()).await?;
    let before = stage.snapshots();
    let request = stage.by_grant(json!({}));
    let run = stage.run("first", &request).await?;
    assert!(run.succeeded(), "{}", run.summary());
    for arn in stage.image.key_arns() {
        for grant in &mut key_mut(&mut stage.local.sandbox.world(), arn).grants {
            grant.operations = NEEDED.map(str::to_owned).to_vec();
        }
    }
    let audit = stage.local.hub.stack.resources.get("AuditSharesStateMachine").ok_or("there is no audit")?;
    let run = stage.run_on(audit, "audit", &json!({})).await?;
    assert_eq!(run.report()["summary"]["findings"], json!({}), "{}", run.summary());

    let run = stage.run("over-it", &request).await?;
    assert_eq!(run.report()["status"], "shared", "{}", run.summary());
    let mut operations: Vec<usize> = stage.grants().iter().map(|grant| grant.operations.len()).collect();
    operations.sort_unstable();
    assert_eq!(operations, [NEEDED.len(), NEEDED.len(), OPERATIONS.len(), OPERATIONS.len()]);
    let again = stage.run("again", &request).await?;
    assert_eq!(again.report()["status"], "alreadyShared", "{}", again.summary());
    let run = stage.run_on(audit, "audit-of-both", &json!({})).await?;
    assert_eq!(run.report()["summary"]["findings"], json!({}), "{}", run.summary());

    let run = Run { before, ..stage.revoke("revoked", json!({})).await? };
    assert_eq!(run.differences(), "");
    Ok(())
}
