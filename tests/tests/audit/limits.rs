//! Many images, many targets: what states pass to each other, the notification and the number of calls.

use std::collections::BTreeSet;

use ami_share_core::key_policy::USE_ACTIONS;
use ami_share_sandbox::ec2::{DeviceKind, LaunchPermission as Permission};
use ami_share_tests::TARGET;

use super::*;

/// What states pass to each other, and a notification, may take (Step Functions and SNS quotas).
const MOST_BYTES: usize = 262_144;

fn account(number: usize) -> String {
    format!("7{number:011}")
}

/// Makes images like the stage's, with snapshots of their own, that `targets` accounts can launch; every other one of
/// them may also use the keys.
async fn many(stage: &Stage, images: usize, targets: usize) -> Result<()> {
    let accounts: BTreeSet<String> = (0..targets).map(account).collect();
    {
        let mut world = stage.local.sandbox.world();
        let ec2 = world.account_mut(SOURCE).ec2.entry(REGION.to_owned()).or_default();
        let like = ec2.images.get(&stage.image.image_id).ok_or("the image was seeded")?.clone();
        let permissions: BTreeSet<Permission> = accounts.iter().cloned().map(Permission::Account).collect();
        for number in 1..=images {
            let mut image = like.clone();
            image.id = format!("ami-{number:017x}");
            image.name = format!("golden-image-{number}");
            image.permissions = permissions.clone();
            for (device, entry) in image.devices.iter_mut().enumerate() {
                let DeviceKind::Ebs(volume) = &mut entry.kind else { continue };
                let snapshot = volume.snapshot_id.clone().ok_or("an empty volume")?;
                let mut snapshot = ec2.snapshots.get(&snapshot).ok_or("the snapshot was seeded")?.clone();
                snapshot.id = format!("snap-{number:016x}{device}");
                volume.snapshot_id = Some(snapshot.id.clone());
                ec2.snapshots.insert(snapshot.id.clone(), snapshot);
            }
            ec2.images.insert(image.id.clone(), image);
        }
    }
    let shared: Vec<String> =
        accounts.into_iter().step_by(2).map(|account| format!("arn:aws:iam::{account}:root")).collect();
    for key in stage.image.key_arns() {
        let shared = &shared;
        stage
            .change_policy(key, |statements| {
                statements
                    .retain(|statement| !statement["Sid"].as_str().is_some_and(|sid| sid.starts_with("AmiShare")));
                if !shared.is_empty() {
                    let ours = |sid: &str, action: Value, condition: Value| {
                        json!({
                            "Sid": sid, "Effect": "Allow", "Principal": { "AWS": shared }, "Action": action,
                            "Resource": "*", "Condition": condition,
                        })
                    };
                    let mut condition =
                        json!({ "StringEquals": { "kms:ViaService": format!("ec2.{REGION}.amazonaws.com") } });
                    statements.push(ours("AmiShareUse", json!(USE_ACTIONS), condition.clone()));
                    condition["Bool"] = json!({ "kms:GrantIsForAWSResource": "true" });
                    statements.push(ours("AmiShareCreateGrant", json!("kms:CreateGrant"), condition));
                }
            })
            .await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_account_with_thousands_of_shares_is_audited_in_rounds_and_says_what_is_left_out() -> Result<()> {
    let stage = Stage::start(Settings::default()).await?;
    many(&stage, 300, 50).await?;
    // Only an image of the last round says what one account has its key access for.
    let last = format!("ami-{:017x}", 300);
    for (id, image) in &mut stage.local.sandbox.world().account_mut(SOURCE).ec2.get_mut(REGION).ok_or("no EC2")?.images
    {
        if *id != last {
            image.permissions.remove(&Permission::Account(account(0)));
        }
    }
    let audit = stage.audit("many", &json!({})).await?;
    let rounds = audit.ended.states.iter().filter(|entered| entered.state == "AuditShares").count();
    assert!(rounds >= 2, "{rounds} rounds for 300 images of three snapshots");
    let report = &audit.report;
    assert_eq!((&report["summary"]["images"], &report["summary"]["keys"]), (&json!(301), &json!(2)));
    assert_eq!((&report["summary"]["sharedImages"], &report["summary"]["shares"]), (&json!(300), &json!(300 * 49 + 1)));
    // One for each image and key, one for each image: nobody is on the allow-list.
    let expected = json!({ "LaunchPermissionWithoutKeyAccess": 600, "NotOnAllowList": 300 });
    assert_eq!(report["summary"]["findings"], expected);
    let cut = report["cut"].to_string();
    assert!(cut.contains("of 900 findings") && cut.contains("of 300 images"), "{cut}");
    let (findings, images) = (report["findings"].as_array(), report["images"].as_array());
    assert!(findings.is_some_and(|found| found.len() > 50) && images.is_some_and(|found| found.len() > 20));
    let rows = audit.rows(&["golden-image-"]).len();
    assert!(rows > 100, "{rows} rows");
    assert!(audit.table.contains("... and ") && audit.table.contains("LEFT OUT"));
    let bytes = report.to_string().len() + audit.table.len();
    assert!(bytes < MOST_BYTES - 10_000, "report and table take {bytes} bytes");
    assert!(audit.rows(&["WithoutKeyAccess:"]).len() > 30, "findings have their place before rows");
    Ok(())
}

#[tokio::test]
async fn one_image_with_hundreds_of_targets_fits() -> Result<()> {
    let stage = Stage::start(Settings::default()).await?;
    many(&stage, 1, 400).await?;
    let audit = stage.audit("wide", &json!({})).await?;
    assert_eq!(audit.report["summary"]["shares"], 400);
    assert_eq!(audit.report["cut"], json!([]));
    assert_eq!(audit.rows(&["golden-image-"]).len(), 400);
    let found = &audit.report["findings"][0];
    assert_eq!(found["accounts"].as_array().map(Vec::len), Some(100));
    assert!(found["message"].as_str().is_some_and(|text| text.contains("and 195 more can launch")), "{found}");
    Ok(())
}

/// They grow with images, snapshots, keys and, by hundreds, with grants.
#[tokio::test]
async fn calls_in_the_source_account_do_not_grow_with_the_number_of_targets() -> Result<()> {
    let stage = Stage::start(Settings::default()).await?;
    let mut calls = Vec::new();
    for targets in [1, 300] {
        many(&stage, 8, targets).await?;
        let audit = stage.audit(&format!("targets-{targets}"), &json!({})).await?;
        assert_eq!(audit.report["summary"]["shares"], 8 * targets);
        calls.push(audit.calls().into_iter().map(|(action, count)| (action.to_owned(), count)).collect::<Vec<_>>());
    }
    assert_eq!(calls[0], calls[1]);
    let expected = [
        ("ec2:DescribeImageAttribute", 9),
        ("ec2:DescribeImages", 1),
        ("ec2:DescribeSnapshotAttribute", 27),
        ("ec2:DescribeSnapshots", 1),
        ("ec2:GetImageBlockPublicAccessState", 1),
        ("ec2:GetSnapshotBlockPublicAccessState", 1),
        ("kms:DescribeKey", 2),
        ("kms:GetKeyPolicy", 4),
        ("kms:ListGrants", 2),
        ("kms:ListKeys", 1),
        ("kms:ListResourceTags", 2),
    ];
    assert_eq!(calls[0], expected.map(|(action, count)| (action.to_owned(), count)));

    // Of one image it is the same, but that the others under its keys matter where something is left over.
    let one = json!({ "imageId": stage.image.image_id });
    let audit = stage.audit("one", &one).await?;
    assert_eq!(audit.calls()["ec2:DescribeImageAttribute"], 9);
    assert_eq!(audit.calls()["ec2:DescribeSnapshotAttribute"], 3);
    assert!(!audit.calls().contains_key("kms:ListKeys"));
    stage.let_launch(&stage.image.image_id, to_account(TARGET)).await?;
    many(&stage, 0, 0).await?;
    let audit = stage.audit("one-with-nothing-left", &one).await?;
    assert_eq!(audit.calls()["ec2:DescribeImageAttribute"], 1);
    Ok(())
}
