//! Roles and policies with an IAM path, and sessions with a source identity, as guardrails of some organizations ask for.

use std::collections::BTreeSet;

use ami_share_tests::{Result, SOURCE, TARGET, local::Settings};
use serde_json::json;

use crate::{Stage, merge};

#[tokio::test]
async fn roles_and_policies_may_have_a_path_and_sessions_the_name_of_their_execution() -> Result<()> {
    let stage = Stage::start(Settings {
        iam_path: "/platform/ami-share/".to_owned(),
        source_identity: true,
        ..Settings::default()
    })
    .await?;
    let audit = &stage.local.hub.stack.resources["AuditSharesStateMachine"];
    for access in ["policy", "grant"] {
        let mut request = stage.request(json!({ "principals": [stage.target().principal] }));
        merge(&mut request, json!({ "keyAccess": access }));
        let shared = stage.run(access, &request).await?;
        assert!(shared.succeeded(), "{access}: {}", shared.summary());
        assert_eq!(shared.report()["targets"][0]["status"], "proved", "{access}");

        let callers: BTreeSet<&str> = shared.journal.iter().map(|entry| entry.principal.as_str()).collect();
        for role in ["AmiShareSource", "AmiShareSourceReader", "AmiShareTarget", "AmiShareLauncher"] {
            let caller = format!(":role/platform/ami-share/{role}");
            assert!(callers.iter().any(|arn| arn.ends_with(&caller)), "{access}: {role} of {callers:?}");
        }
        let assumed: Vec<_> = shared.journal.iter().filter(|entry| entry.action == "sts:AssumeRole").collect();
        assert!(assumed.len() > 5, "{access}: {}", assumed.len());
        for entry in assumed {
            let sent = &entry.parameters;
            let identity = sent["SourceIdentity"].as_str().unwrap();
            assert!(identity.starts_with(&format!("{access}-")) && sent["RoleSessionName"] == identity, "{sent}");
        }

        let audit = stage.run_on(audit, &format!("{access}-audit"), &json!({})).await?;
        assert_eq!(audit.report()["findings"], json!([]), "{access}: {}", audit.summary());

        let revoked = stage.revoke(&format!("{access}-revoke"), json!({ "force": true })).await?;
        for account in [SOURCE, TARGET] {
            assert_eq!(revoked.after[account], shared.before[account], "{access}: {account}");
        }
    }
    Ok(())
}
