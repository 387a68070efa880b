//! Key policies as they are in real accounts: full, with statements that KMS would not take today, without the account's
//! own, with a Deny. Each share of an image under such a key ends in a clear error or works, nobody's
//! statement is lost, and whoever administers the key can still do so.

use std::sync::Arc;

use ami_share_core::key_policy::USE_ACTIONS;
use ami_share_sandbox::{
    faults::{Fault, FaultKind, Matcher},
    policy::{Policy, PolicyKind},
    world::Versioned,
};
use ami_share_tests::{Result, SOURCE, TARGET, clients::root_of, local::Settings, seed};
use serde_json::{Value, json};

use crate::{
    Run, Stage,
    foreign::{ADMINISTRATOR, as_administrator, foreign, shared_with},
    key_mut,
    refused::problems,
};

/// Neither source nor target of anything.
const STRANGER: &str = "444444444444";

/// The id that a role had that was deleted since.
const ORPHAN: &str = "AROA0123456789ABCDEFG";

/// Gives the root volume's key a policy that KMS would not take today, as it may have one from
/// before.
pub(crate) fn old_policy(stage: &Stage, change: impl FnOnce(&mut Value)) {
    let mut world = stage.local.sandbox.world();
    let key = key_mut(&mut world, stage.image.key_arns()[0]);
    let text = key.policy.latest().text.clone();
    let mut document: Value = serde_json::from_str(&text).expect("it is JSON");
    change(&mut document);
    let new = document.to_string();
    // One that cannot be evaluated any more goes on as it was, and reads differently.
    let mut policy = Policy::parse(&new, PolicyKind::Key)
        .or_else(|_| Policy::parse(&text, PolicyKind::Key))
        .expect("KMS took one of them");
    policy.text = new;
    key.policy = Versioned::new(Arc::new(policy));
}

pub(crate) fn push_statement(document: &mut Value, statement: Value) {
    document["Statement"].as_array_mut().expect("a list").push(statement);
}

/// A statement that does nothing and whose Sid makes the policy's text `bytes` long.
fn fill(document: &mut Value, bytes: usize) {
    let statement = |sid: String| {
        json!({
            "Sid": sid,
            "Effect": "Deny",
            "Principal": { "AWS": format!("arn:aws:iam::{STRANGER}:root") },
            "Action": "kms:Decrypt",
            "Resource": "*",
        })
    };
    push_statement(document, statement(String::new()));
    let missing = bytes - document.to_string().len();
    let last = document["Statement"].as_array_mut().and_then(|list| list.last_mut()).expect("there is one");
    *last = statement("x".repeat(missing));
    assert_eq!(document.to_string().len(), bytes);
}

/// How a share of an image under an odd key ends.
enum Ends {
    Well,
    /// Before anything is changed, with this error, which says all of this.
    Refused(&'static str, &'static [&'static str]),
    /// On the way, and everything is taken back.
    Failed(&'static str, &'static [&'static str]),
}

use Ends::{Failed, Refused, Well};

/// Shares by grant under policies that ami-share cannot read. A revoke looks for statements of
/// ours in them, which may be there from other shares: it takes the grants back, and says that it could not look.
const NOT_LOOKED_AT: [(&str, &str); 1] = [("deny-get-grant", "refused kms:GetKeyPolicy")];

/// A policy of the key under the root volume.
struct Odd {
    name: &'static str,
    make: fn(&mut Value),
    /// With `keyAccess` policy, and grant.
    by_policy: Ends,
    by_grant: Ends,
}

fn statement(sid: &str, effect: &str, rest: &Value) -> Value {
    let mut statement = json!({ "Sid": sid, "Effect": effect, "Principal": "*", "Resource": "*" });
    for (element, value) in rest.as_object().into_iter().flatten() {
        statement[element] = value.clone();
    }
    statement
}

/// Only the administrator's statement is left, and one that allows ami-share's roles these actions.
fn without_root(document: &mut Value, actions: &[&str]) {
    let statements = document["Statement"].as_array_mut().expect("a list");
    statements.retain(|statement| statement["Sid"] == "Key administrators");
    if !actions.is_empty() {
        let roles = ["AmiShareSource", "AmiShareSourceReader"].map(|role| format!("arn:aws:iam::{SOURCE}:role/{role}"));
        let roles = json!({ "AWS": roles });
        statements.push(statement("Image sharing", "Allow", &json!({ "Principal": roles, "Action": actions })));
    }
}

/// Denied to everybody but the administrator.
fn deny_others(action: &str) -> Value {
    let administrator = format!("arn:aws:iam::{SOURCE}:role/{ADMINISTRATOR}");
    let others = json!({ "ArnNotEquals": { "aws:PrincipalArn": administrator } });
    statement("Only administrators", "Deny", &json!({ "Action": action, "Condition": others }))
}

fn odd_policies() -> Vec<Odd> {
    const READ: [&str; 2] = ["kms:DescribeKey", "kms:GetKeyPolicy"];
    vec![
        Odd {
            name: "full",
            make: |document| fill(document, 32_700),
            by_policy: Refused("KeyPolicyTooLarge", &["32768", "keyAccess grant"]),
            by_grant: Well,
        },
        Odd {
            name: "orphan",
            make: |document| {
                let principal = json!({ "AWS": [ORPHAN] });
                push_statement(
                    document,
                    statement("Leaver", "Allow", &json!({ "Principal": principal, "Action": "kms:Decrypt" })),
                );
            },
            by_policy: Refused("KeyPolicyConflict", &["statement Leaver names AROA0123456789ABCDEFG", "deleted"]),
            by_grant: Well,
        },
        Odd {
            name: "no-action",
            make: |document| push_statement(document, statement("Old", "Allow", &json!({}))),
            by_policy: Refused("KeyPolicyConflict", &["statement Old has no Action"]),
            by_grant: Well,
        },
        Odd {
            name: "no-resource",
            make: |document| {
                push_statement(document, json!({ "Effect": "Deny", "Principal": "*", "Action": "kms:Encrypt" }));
            },
            by_policy: Refused("KeyPolicyConflict", &["statement 3 (without Sid) has no Resource"]),
            by_grant: Well,
        },
        Odd {
            name: "our-sid",
            make: |document| {
                push_statement(document, statement("AmiShareUse", "Deny", &json!({ "Action": "kms:Encrypt" })));
            },
            by_policy: Refused("KeyPolicyConflict", &["AmiShareUse", "give it another Sid"]),
            by_grant: Well,
        },
        // Somebody else's, who may do less than ami-share writes, and would gain by its being put right.
        Odd {
            name: "our-sid-less",
            make: |document| {
                let stranger = json!({ "AWS": format!("arn:aws:iam::{STRANGER}:root") });
                push_statement(
                    document,
                    statement("AmiShareUse", "Allow", &json!({ "Principal": stranger, "Action": "kms:DescribeKey" })),
                );
            },
            by_policy: Refused(
                "KeyPolicyConflict",
                &[
                    "in statement AmiShareUse, its Action is \"kms:DescribeKey\" and its Condition is missing",
                    "another Sid",
                ],
            ),
            by_grant: Well,
        },
        // A replica key's, with the policy of the key in another Region: a stranger would gain access.
        Odd {
            name: "another-region",
            make: |document| {
                let stranger = json!({ "AWS": format!("arn:aws:iam::{STRANGER}:root") });
                let mut ours =
                    statement("AmiShareUse", "Allow", &json!({ "Principal": stranger, "Action": USE_ACTIONS }));
                ours["Condition"] = json!({ "StringEquals": { "kms:ViaService": "ec2.us-east-1.amazonaws.com" } });
                push_statement(document, ours);
            },
            by_policy: Refused("KeyPolicyConflict", &["kms:ViaService of another Region", STRANGER, "allow-list"]),
            by_grant: Well,
        },
        Odd {
            name: "resource",
            make: |document| {
                let resource =
                    json!({ "Action": "kms:Decrypt", "Resource": format!("arn:aws:kms:eu-west-1:{SOURCE}:key/*") });
                push_statement(document, statement("Old", "Allow", &resource));
            },
            by_policy: Refused("KeyPolicyConflict", &["statement Old has Resource arn:aws:kms:"]),
            by_grant: Well,
        },
        // Administered by a role only, and ami-share's role is not named.
        Odd {
            name: "no-root",
            make: |document| without_root(document, &[]),
            by_policy: Refused(
                "AccessDenied",
                &["kms:DescribeKey", "AmiShareSourceReader", "let IAM of account 111111111111 decide"],
            ),
            by_grant: Refused(
                "AccessDenied",
                &["kms:DescribeKey", "AmiShareSourceReader", "let IAM of account 111111111111 decide"],
            ),
        },
        Odd {
            name: "no-root-read",
            make: |document| without_root(document, &READ),
            by_policy: Failed(
                "AccessDenied",
                &["kms:PutKeyPolicy", "let IAM of account 111111111111 decide", "taken back"],
            ),
            by_grant: Refused("AccessDenied", &["kms:ListGrants", "let IAM of account 111111111111 decide"]),
        },
        Odd {
            name: "no-root-ours",
            make: |document| {
                let grants = ["kms:PutKeyPolicy", "kms:CreateGrant", "kms:ListGrants"];
                without_root(document, &[READ.as_slice(), &grants].concat());
            },
            by_policy: Well,
            by_grant: Well,
        },
        // As people guard a key against other accounts.
        Odd {
            name: "deny-accounts",
            make: |document| {
                let foreign = json!({ "StringNotEquals": { "kms:CallerAccount": SOURCE } });
                push_statement(
                    document,
                    statement("No others", "Deny", &json!({ "Action": "kms:*", "Condition": foreign })),
                );
            },
            by_policy: Failed("InstanceDied", &["denied by statement No others", "taken back"]),
            by_grant: Failed("InstanceDied", &["denied by statement No others", "taken back"]),
        },
        Odd {
            name: "deny-put",
            make: |document| push_statement(document, deny_others("kms:PutKeyPolicy")),
            by_policy: Failed("AccessDenied", &["kms:PutKeyPolicy", "explicit deny", "taken back"]),
            by_grant: Well,
        },
        Odd {
            name: "deny-get",
            make: |document| push_statement(document, deny_others("kms:GetKeyPolicy")),
            by_policy: Refused("AccessDenied", &["kms:GetKeyPolicy", "explicit deny"]),
            by_grant: Well,
        },
        Odd {
            name: "deny-grants",
            make: |document| push_statement(document, deny_others("kms:CreateGrant")),
            by_policy: Failed(
                "InstanceDied",
                &["kms:CreateGrant", "denied by statement Only administrators", "taken back"],
            ),
            by_grant: Failed("AccessDenied", &["kms:CreateGrant", "explicit deny", "taken back"]),
        },
    ]
}

fn policy(stage: &Stage, key: &str) -> Result<Value> {
    let mut world = stage.local.sandbox.world();
    Ok(serde_json::from_str(&key_mut(&mut world, key).policy.latest().text)?)
}

/// Whether the administrator can read the policy, and write it: without the statement that KMS would not take, and
/// without one under a Sid of ours that is not ours, if there is such.
async fn is_administered(stage: &Stage, key: &str) -> Result<bool> {
    let kms = as_administrator(stage)?;
    let read = kms.get_key_policy().key_id(key).policy_name("default").send().await?;
    let mut document: Value = serde_json::from_str(read.policy().unwrap_or_default())?;
    let statements = document["Statement"].as_array_mut().ok_or("no list")?;
    statements.retain(|statement| {
        statement["Action"] != Value::Null && statement["Resource"] == "*" && !statement.to_string().contains(ORPHAN)
    });
    Ok(kms.put_key_policy().key_id(key).policy(document.to_string()).send().await.is_ok())
}

/// What is not as it should be of one share.
fn judge(name: &str, ends: &Ends, run: &Run) -> Vec<String> {
    let (error, says, before) = match ends {
        Well if run.succeeded() => return vec![],
        Well => return vec![format!("{name}: {}", run.summary())],
        Refused(error, says) => (*error, *says, true),
        Failed(error, says) => (*error, *says, false),
    };
    if before {
        return problems(name, run, error, &says.iter().map(|said| (*said).to_owned()).collect::<Vec<_>>());
    }
    let mut found = Vec::new();
    if run.error() != error || says.iter().any(|said| !run.cause().contains(said)) {
        found.push(format!("{name}: not {error} that says {says:?} but {}", run.summary()));
    }
    if !run.differences().is_empty() {
        found.push(format!("{name}: {}", run.differences()));
    }
    found
}

/// What is not as it was of the policy `before`, but for our statements, which name the target where it is shared.
fn compare(name: &str, before: &Value, after: &Value, shared: bool) -> Vec<String> {
    let mut found = Vec::new();
    if foreign(after) != foreign(before) {
        found.push(format!("{name}: the statements were {before:#}\nand are {after:#}"));
    }
    let expected = if shared { vec![vec![TARGET]; 2] } else { shared_with(before) };
    if shared_with(after) != expected {
        found.push(format!("{name}: our statements name {:?}", shared_with(after)));
    }
    found
}

#[tokio::test]
async fn every_odd_policy_ends_in_a_clear_error_or_works_and_nothing_is_lost() -> Result<()> {
    let stage = Stage::start(Settings::default()).await?;
    let key = stage.image.key_arns()[0];
    let mut found = Vec::new();
    for odd in odd_policies() {
        for (access, ends) in [("policy", &odd.by_policy), ("grant", &odd.by_grant)] {
            stage.reset();
            old_policy(&stage, odd.make);
            let before = policy(&stage, key)?;
            let untouched = stage.local.sandbox.world().snapshot(SOURCE);
            let mut request = stage.request(json!({}));
            request["keyAccess"] = json!(access);
            let name = format!("{}-{access}", odd.name);
            let works = matches!(ends, Well);
            if works {
                let reason = FaultKind::Fail { reason: "Server.InternalError".to_owned() };
                stage.local.sandbox.world().faults.add(Fault::once(Matcher::action("ec2:RunInstances"), reason));
                let undone = format!("{name}-undone");
                let run = stage.run(&undone, &request).await?;
                found.extend(judge(&undone, &Failed("InstanceDied", &["taken back"]), &run));
                found.extend(compare(&undone, &before, &policy(&stage, key)?, false));
            }
            let run = stage.run(&name, &request).await?;
            found.extend(judge(&name, ends, &run));
            found.extend(compare(&name, &before, &policy(&stage, key)?, works && access == "policy"));
            if works {
                let revoked = format!("{name}-revoked");
                let request = json!({ "imageId": stage.image.image_id, "targets": [TARGET] });
                let run = stage.run_on(&stage.local.hub.revoke_share, &revoked, &request).await?;
                match NOT_LOOKED_AT.iter().find(|(share, _)| *share == name) {
                    None => found.extend(judge(&revoked, &Well, &run)),
                    Some((_, said)) if run.error() == "RevokeIncomplete" && run.cause().contains(said) => {}
                    Some((_, said)) => found.push(format!("{revoked}: does not say {said}: {}", run.summary())),
                }
                found.extend(compare(&revoked, &before, &policy(&stage, key)?, false));
                if run.after[SOURCE] != untouched {
                    found.push(format!(
                        "{revoked}: the source account was {untouched:#}\nand is {:#}",
                        run.after[SOURCE]
                    ));
                }
            }
            if !is_administered(&stage, key).await? {
                found.push(format!("{name}: the administrator cannot write the policy any more"));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
    Ok(())
}

/// One that is on the way out has no policy that can be written: the error is KMS's own id of it.
#[tokio::test]
async fn a_key_policy_that_names_somebody_deleted_is_refused_and_the_statement_named() -> Result<()> {
    let stage = Stage::start(Settings::default()).await?;
    let sandbox = stage.local.sandbox.endpoint();
    let (kms, iam) =
        (aws_sdk_kms::Client::new(&root_of(SOURCE, &sandbox)), aws_sdk_iam::Client::new(&root_of(SOURCE, &sandbox)));
    let role = seed::role(&sandbox, SOURCE, "leaver").await?;
    let user = iam.create_user().user_name("leaver").send().await?.user.ok_or("no user")?;
    let key = stage.image.key_arns()[1];
    let mut policy = seed::key_policy(SOURCE, "golden-image-key-admin");
    for (sid, arn) in [("Of the role", &role), ("Of the user", &user.arn)] {
        push_statement(
            &mut policy,
            json!({
                "Sid": sid, "Effect": "Allow", "Principal": { "AWS": [arn] }, "Action": "kms:Decrypt", "Resource": "*",
            }),
        );
    }
    kms.put_key_policy().key_id(key).policy(policy.to_string()).send().await?;
    let id = iam.get_role().role_name("leaver").send().await?.role.ok_or("no role")?.role_id;
    iam.delete_role().role_name("leaver").send().await?;
    iam.delete_user().user_name("leaver").send().await?;
    let run = stage.run("leavers", &stage.request(json!({}))).await?;
    let says = [key, "statement Of the role names", &id, "statement Of the user names", &user.user_id, "deleted"];
    let found = problems("leavers", &run, "KeyPolicyConflict", &says.map(str::to_owned));
    assert!(found.is_empty(), "{}", found.join("\n"));
    Ok(())
}

/// The statements that docs/permissions.md asks for, where a key's policy does not leave it to IAM.
fn documented_statements() -> Result<Vec<Value>> {
    let page = std::fs::read_to_string(ami_share_tests::checkout::checkout().join("docs/permissions.md"))?;
    let (_, after) = page.split_once("<!-- key policy -->").ok_or("the page has no key policy")?;
    let code = after.split_once("```json").and_then(|(_, code)| code.split_once("```")).ok_or("it is no JSON")?.0;
    Ok(serde_json::from_str(code)?)
}

#[tokio::test]
async fn the_key_policy_of_the_documents_is_enough_for_plan_share_revoke_and_audit() -> Result<()> {
    let stage = Stage::start(Settings::default()).await?;
    let statements = documented_statements()?;
    for key in stage.image.key_arns() {
        let mut document = policy(&stage, key)?;
        without_root(&mut document, &[]);
        for statement in &statements {
            push_statement(&mut document, statement.clone());
        }
        aws_sdk_kms::Client::new(&root_of(SOURCE, &stage.local.sandbox.endpoint()))
            .put_key_policy()
            .key_id(key)
            .policy(document.to_string())
            .bypass_policy_lockout_safety_check(true)
            .send()
            .await?;
    }
    let audit = stage.local.hub.stack.resources.get("AuditSharesStateMachine").ok_or("there is no audit")?;
    for access in ["policy", "grant"] {
        let mut request = stage.request(json!({ "launch": { "prove": "always" } }));
        request["keyAccess"] = json!(access);
        let mut plan = request.clone();
        plan["action"] = json!("plan");
        let revoke = json!({ "imageId": stage.image.image_id, "targets": [TARGET] });
        for (name, machine, input) in [
            ("plan", &stage.local.hub.state_machine, &plan),
            ("share", &stage.local.hub.state_machine, &request),
            ("audit", audit, &json!({})),
            ("revoke", &stage.local.hub.revoke_share, &revoke),
            ("audit-after", audit, &json!({})),
        ] {
            let run = stage.run_on(machine, &format!("{name}-{access}"), input).await?;
            assert!(run.succeeded(), "{name} by {access}: {}", run.summary());
            let found = &run.report()["summary"]["findings"];
            assert!(!name.starts_with("audit") || *found == json!({}), "{name} by {access}: {found}");
        }
    }
    Ok(())
}

/// As in the policy of a replica key that was copied from the key's in another Region.
#[tokio::test]
async fn the_undo_of_a_repair_puts_back_what_was_there() -> Result<()> {
    let stage = Stage::start(Settings::default()).await?;
    let key = stage.image.key_arns()[0];
    let request = stage.request(json!({}));
    let run = stage.run("first", &request).await?;
    assert!(run.succeeded(), "{}", run.summary());
    let right = policy(&stage, key)?;
    old_policy(&stage, |document| {
        for statement in document["Statement"].as_array_mut().expect("a list") {
            if let Some(via) = statement.pointer_mut("/Condition/StringEquals/kms:ViaService") {
                *via = json!("ec2.us-east-1.amazonaws.com");
            }
        }
    });
    let wrong = policy(&stage, key)?;
    assert_ne!(wrong, right);
    let reason = FaultKind::Fail { reason: "Server.InternalError".to_owned() };
    stage.local.sandbox.world().faults.add(Fault::once(Matcher::action("ec2:RunInstances"), reason));
    let run = stage.run("undone", &request).await?;
    assert_eq!(run.error(), "InstanceDied", "{}", run.summary());
    assert!(run.writes().contains(&"kms:PutKeyPolicy"), "it was never put right");
    assert_eq!(policy(&stage, key)?, wrong, "{}", run.summary());
    let run = stage.run("again", &request).await?;
    assert!(run.succeeded(), "{}", run.summary());
    assert_eq!(policy(&stage, key)?, right);
    Ok(())
}

/// KMS refuses a policy for one account and does not say which.
#[tokio::test]
async fn accounts_that_kms_refuses_are_named_and_everything_is_taken_back() -> Result<()> {
    let targets = [TARGET, "555555555555", "666666666666", "777777777777", "888888888888"].map(str::to_owned);
    let mut stage = Stage::start(Settings { targets: targets.to_vec(), ..Settings::default() }).await?;
    let unknown = [targets[1].clone(), targets[3].clone()];
    stage.local.sandbox.world().unknown_to_kms.extend(unknown.clone());
    let mut request = stage.request(json!({}));
    request["targets"] = targets.iter().map(|account| json!({ "accountId": account })).collect();
    for (access, error) in [("policy", "KeyPolicyConflict"), ("grant", "Aws")] {
        request["keyAccess"] = json!(access);
        let run = stage.run(access, &request).await?;
        assert_eq!(run.error(), error, "{access}: {}", run.summary());
        for account in &targets {
            assert_eq!(
                run.cause().contains(account),
                unknown.contains(account),
                "{access}: {account}: {}",
                run.cause()
            );
        }
        assert_eq!(run.differences(), "", "{access}");
    }

    // What was stored of a plan, before KMS was busy, is this execution's own.
    request["keyAccess"] = json!("policy");
    crate::merge(&mut request, json!({ "action": "plan" }));
    let plan = stage.run("plan", &request).await?;
    crate::merge(&mut request, json!({ "action": "apply", "planHash": plan.report()["planHash"] }));
    let throttled = Fault::once(Matcher::action("kms:PutKeyPolicy"), FaultKind::Throttle).after(3);
    stage.local.sandbox.world().faults.add(throttled);
    let run = stage.run("planned", &request).await?;
    assert_eq!(run.error(), "KeyPolicyConflict", "{}", run.summary());
    assert!(unknown.iter().all(|account| run.cause().contains(account)), "{}", run.cause());
    assert_eq!(run.differences(), "");

    // Of one account only, and where it is none of the new ones.
    let mut request = stage.request(json!({ "accountId": targets[1] }));
    let run = stage.run("alone", &request).await?;
    assert!(run.cause().contains(&format!("KMS refuses {} ", targets[1])), "{}", run.cause());
    let gone = json!({ "Principal": { "AWS": format!("arn:aws:iam::{STRANGER}:root") }, "Action": "kms:DescribeKey" });
    old_policy(&stage, |document| push_statement(document, statement("Once shared", "Allow", &gone)));
    stage.local.sandbox.world().unknown_to_kms = [STRANGER.to_owned()].into();
    stage.keep();
    request["targets"][0]["accountId"] = json!(TARGET);
    let run = stage.run("before", &request).await?;
    assert_eq!(run.error(), "KeyPolicyConflict", "{}", run.summary());
    assert!(run.cause().contains("as it is, without anybody new"), "{}", run.cause());
    assert!(!run.cause().contains(TARGET), "{}", run.cause());
    assert_eq!(run.differences(), "");
    Ok(())
}
