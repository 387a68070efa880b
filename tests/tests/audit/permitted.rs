//! The function calls exactly what it says that it calls, and needs all of it.

use ami_share_sandbox::journal::Outcome;
use ami_share_tests::TARGET;

use super::*;

#[tokio::test]
async fn the_audit_calls_exactly_the_actions_that_it_names_and_needs_each() -> Result<()> {
    let stage = Stage::start(Settings::default()).await?;
    stage.share_plainly("share", &stage.image, TARGET).await?;
    let audit = stage.audit("whole", &json!({})).await?;
    assert_eq!(audit.report["status"], "clean", "{:#}", audit.report);
    let mut named: Vec<&str> = audit_shares::ACTIONS.source_reader.to_vec();
    named.sort_unstable();
    assert_eq!(audit.calls().into_keys().collect::<Vec<_>>(), named);
    let by_whom: Vec<&Entry> = audit.journal.iter().filter(|entry| entry.account == SOURCE).collect();
    let role = format!("arn:aws:iam::{HUB}:role/AmiShareAuditSharesFunctionRole");
    assert!(by_whom.iter().all(|entry| entry.assumed_by.as_deref() == Some(&role)), "{by_whom:#?}");
    // No key here has a second policy.
    let went = |entry: &Entry| entry.outcome == Outcome::Allowed || entry.code.as_deref() == Some("NotFoundException");
    assert!(audit.journal.iter().all(went), "{:#?}", audit.journal);
    let accounts: Vec<&str> = audit.journal.iter().map(|entry| entry.account.as_str()).collect();
    assert!(accounts.iter().all(|account| [SOURCE, HUB].contains(account)), "no target is asked: {accounts:?}");

    let iam = aws_sdk_iam::Client::new(&root_of(SOURCE, &stage.local.sandbox.endpoint()));
    for action in named {
        let deny =
            json!({ "Version": "2012-10-17", "Statement": [{ "Effect": "Deny", "Action": action, "Resource": "*" }] });
        let put = iam.put_role_policy().role_name("AmiShareSourceReader").policy_name("Without");
        put.policy_document(deny.to_string()).send().await?;
        let audit = stage.try_audit(&format!("without-{}", action.replace(':', "-")), &json!({})).await?;
        // A key that may not be read is one finding among others; of one whose state or tags are not known, and of settings
        // that may not be read, that is said; all else is the end of the audit.
        let goes_on = match action {
            "kms:GetKeyPolicy" | "kms:ListGrants" => Some(vec!["KeyNotRead"; 2]),
            "kms:DescribeKey" | "kms:ListResourceTags" => Some(vec![]),
            "ec2:GetImageBlockPublicAccessState" | "ec2:GetSnapshotBlockPublicAccessState" => Some(vec![]),
            _ => None,
        };
        if let Some(expected) = goes_on {
            assert_eq!(audit.ended.status, ExecutionStatus::Succeeded, "{action}: {:?}", audit.ended.cause);
            let kinds: Vec<&str> = audit.findings().into_iter().map(|(kind, _, _)| kind).collect();
            assert_eq!(kinds, expected, "{action}");
        } else {
            assert_eq!(audit.ended.status, ExecutionStatus::Failed, "{action}");
            assert_eq!(audit.ended.error.as_deref(), Some("AccessDenied"), "{action}");
            assert!(audit.ended.cause.is_some_and(|cause| cause.contains(action)), "{action}");
        }
        let said = format!("account {SOURCE} refused {action}");
        assert!(audit.table.contains(&said), "{action}: {}", audit.table);
        iam.delete_role_policy().role_name("AmiShareSourceReader").policy_name("Without").send().await?;
    }
    let audit = stage.audit("again", &json!({})).await?;
    assert_eq!(audit.report["status"], "clean", "{:#}", audit.report);
    Ok(())
}
