//! Suppose that the hub's functions are taken over. Whoever has the role of one calls as it, past its code and its
//! session policies, in accounts with the roles that the templates make. docs/security.md says what of it is shown here.

use std::collections::BTreeSet;

use ami_share_core::{
    ids::{AccountId, KeyArn},
    key_actions::SOURCE_KEY_ACTIONS,
    key_policy::KeyPolicy,
};
use ami_share_machine::{Deployment, root::Caller};
use ami_share_sandbox::World;
use ami_share_tests::{HUB, SOURCE, TARGET, local::Settings};
use serde_json::json;

use crate::{
    deployed,
    world::{OTHER, crowded, key_policy, make_role, snapshots_of},
};

type Names = BTreeSet<&'static str>;

/// What gives something in a source, and what takes it back.
const WRITING: [[&str; 4]; 2] = [
    ["GrantKeys", "ShareImage", "ShareKey", "ShareSnapshots"],
    ["UndoGrantKeys", "UndoShareImage", "UndoShareKey", "UndoShareSnapshots"],
];

/// What looks before something is given, or why that failed; and what looks at what is to be taken back, and the audit.
const READING: [&[&str]; 2] = [
    &["DescribeCopy", "DescribeInstance", "PlanShare", "ResolveImage", "StartShare"],
    &["AuditShares", "CreateUsageReport", "DescribeUsageReport", "PlanRevoke", "ResolveRevoke", "ResolveUndo"],
];

/// An image of the source under two keys, and nothing that is shared of it. [`OTHER`] has the roles of a source that is
/// not listed, and trusts the hub all the same.
struct Accounts {
    world: World,
    image: String,
    snapshot: String,
    key: String,
}

impl Accounts {
    fn new() -> Self {
        Self::of(deployed::deployment(false))
    }

    fn of(deployment: &Deployment) -> Self {
        let (mut world, images, keys) = crowded(deployment, &[false]);
        let roles = deployment.accounts[SOURCE].to_string().replace(SOURCE, OTHER);
        world.import_iam(OTHER, &serde_json::from_str(&roles).unwrap()).unwrap();
        let snapshot = snapshots_of(&mut world, &images[0]).remove(0);
        Self { world, image: images[0].id.clone(), snapshot, key: keys[0].clone() }
    }

    /// A session of a role of an account, as whoever has that role of the hub gets it.
    fn assume_as(&mut self, hub_role: &str, account: &str, role: &str) -> Result<Caller, String> {
        let external_id = &deployed::deployment(false).functions["ShareKey"].environment["EXTERNAL_ID"];
        let caller = Caller::role(&mut self.world, &format!("arn:aws:iam::{HUB}:role/{hub_role}")).unwrap();
        caller.assume(&mut self.world, &format!("arn:aws:iam::{account}:role/{role}"), external_id)
    }

    /// A session of a role of an account, as whoever has the role of that function gets it.
    fn assume(&mut self, function: &str, account: &str, role: &str) -> Result<Caller, String> {
        self.assume_as(&format!("AmiShare{function}FunctionRole"), account, role)
    }

    /// The functions whose roles can assume that role.
    fn assuming(&mut self, account: &str, role: &str) -> Names {
        let functions = deployed::deployment(false).functions.keys();
        functions.map(String::as_str).filter(|function| self.assume(function, account, role).is_ok()).collect()
    }

    /// Everything that gives an account something of the source: each call, and what it was answered.
    fn give(&mut self, caller: &Caller, account: &str) -> [(&'static str, Result<(), String>); 4] {
        let Self { world, image, snapshot, key } = self;
        let launch = [("ImageId", image.as_str()), ("LaunchPermission.Add.1.UserId", account)];
        let copy = [("SnapshotId", snapshot.as_str()), ("CreateVolumePermission.Add.1.UserId", account)];
        let arn = KeyArn::parse(key.as_str()).unwrap();
        let policy = KeyPolicy::parse(&arn, &key_policy(world, key)).unwrap();
        let merged = policy.with(&[AccountId::parse(account).unwrap()]).unwrap().unwrap().to_text().unwrap();
        let put = json!({ "KeyId": key, "PolicyName": "default", "Policy": merged });
        let grant = json!({
            "KeyId": key,
            "Operations": SOURCE_KEY_ACTIONS.map(|action| action.trim_start_matches("kms:")),
            "GranteePrincipal": format!("arn:aws:iam::{account}:root"),
            "RetiringPrincipal": format!("arn:aws:iam::{SOURCE}:role/AmiShareSource"),
        });
        [
            ("ec2:ModifyImageAttribute", caller.call(world, "ec2", "ModifyImageAttribute", &launch).map(drop)),
            ("ec2:ModifySnapshotAttribute", caller.call(world, "ec2", "ModifySnapshotAttribute", &copy).map(drop)),
            ("kms:PutKeyPolicy", caller.call_kms(world, "PutKeyPolicy", &put).map(drop)),
            ("kms:CreateGrant", caller.call_kms(world, "CreateGrant", &grant).map(drop)),
        ]
    }
}

#[test]
fn a_source_that_is_not_listed_is_reached_only_by_what_takes_back() {
    let mut accounts = Accounts::new();
    assert_eq!(accounts.assuming(OTHER, "AmiShareSource"), Names::from(WRITING[1]));
    assert_eq!(accounts.assuming(OTHER, "AmiShareSourceReader"), READING[1].iter().copied().collect());
}

#[test]
fn what_only_looks_at_a_source_can_give_nothing_there() {
    let mut accounts = Accounts::new();
    assert_eq!(accounts.assuming(SOURCE, "AmiShareSource"), WRITING.concat().into_iter().collect());
    assert_eq!(accounts.assuming(SOURCE, "AmiShareSourceReader"), READING.concat().into_iter().collect());
    let reader = accounts.assume("AuditShares", SOURCE, "AmiShareSourceReader").unwrap();
    for (call, answer) in accounts.give(&reader, TARGET) {
        assert!(answer.is_err_and(|refusal| refusal.contains("not authorized")), "{call}");
    }
    let writer = accounts.assume("ShareImage", SOURCE, "AmiShareSource").unwrap();
    for (call, answer) in accounts.give(&writer, TARGET) {
        assert_eq!(answer, Ok(()), "{call}");
    }
}

const TARGET_ROLES: [(&str, &[&str]); 2] = [
    (
        "AmiShareTarget",
        &[
            "DescribeCopy",
            "DescribeInstance",
            "GrantPrincipals",
            "ResolveImage",
            "ResolveRevoke",
            "UndoGrantPrincipals",
        ],
    ),
    (
        "AmiShareLauncher",
        &[
            "CheckUsage",
            "CopyImage",
            "DescribeCopy",
            "DescribeInstance",
            "LaunchInstance",
            "ResolveImage",
            "TerminateInstance",
            "UndoCopyImage",
            "UndoLaunchInstance",
            "VerifyVolumes",
        ],
    ),
];

#[test]
fn each_role_of_a_target_is_assumed_by_the_functions_that_need_it_only() {
    let mut accounts = Accounts::new();
    for (role, functions) in TARGET_ROLES {
        assert_eq!(accounts.assuming(TARGET, role), functions.iter().copied().collect(), "{role}");
    }
}

/// A role like those of a deployment beside this one, whose lists are others, or like one that somebody made: it may
/// assume whatever trusts it, and knows the external id.
#[test]
fn a_role_of_the_hub_that_is_named_alike_is_trusted_by_no_account() {
    let mut accounts = Accounts::new();
    let anything = json!({ "Version": "2012-10-17", "Statement": [
        { "Effect": "Allow", "Action": "sts:AssumeRole", "Resource": "*" },
    ]});
    let anything = anything.to_string();
    let roles = [
        (SOURCE, "AmiShareSource"),
        (SOURCE, "AmiShareSourceReader"),
        (TARGET, "AmiShareTarget"),
        (TARGET, "AmiShareLauncher"),
    ];
    for name in ["AmiShareTestShareKeyFunctionRole", "AmiShareFunctionRole", "AmiShareShareKeyFunctionRole2"] {
        make_role(&mut accounts.world, HUB, name);
        let policy = [("RoleName", name), ("PolicyName", "any"), ("PolicyDocument", anything.as_str())];
        Caller::root(HUB).call(&mut accounts.world, "iam", "PutRolePolicy", &policy).unwrap();
        for (account, role) in roles {
            let refusal = accounts.assume_as(name, account, role).unwrap_err();
            assert!(refusal.contains("no resource-based policy allows"), "{name}, {role}: {refusal}");
        }
    }
    // And with another external id none of the right ones is.
    let caller = Caller::role(&mut accounts.world, &format!("arn:aws:iam::{HUB}:role/AmiShareShareKeyFunctionRole"));
    let source = format!("arn:aws:iam::{SOURCE}:role/AmiShareSource");
    assert!(caller.unwrap().assume(&mut accounts.world, &source, "another").is_err());
}

/// What AWS can limit by the account that gets it: [`OTHER`] is none of those that the source's owner listed.
#[test]
fn the_source_gives_no_grant_and_no_snapshot_to_an_account_that_it_does_not_list() {
    let mut accounts = Accounts::new();
    let writer = accounts.assume("ShareKey", SOURCE, "AmiShareSource").unwrap();
    let refused = ["ec2:ModifySnapshotAttribute", "kms:CreateGrant"];
    for (call, answer) in accounts.give(&writer, OTHER) {
        assert_eq!(answer.is_err(), refused.contains(&call), "{call}: {answer:?}");
    }
    // In one call with an account that is listed, neither gets it; and what somebody else gave can be taken.
    let Accounts { world, snapshot, .. } = &mut accounts;
    let of = ("SnapshotId", snapshot.as_str());
    let both = [of, ("CreateVolumePermission.Add.1.UserId", TARGET), ("CreateVolumePermission.Add.2.UserId", OTHER)];
    assert!(writer.call(world, "ec2", "ModifySnapshotAttribute", &both).is_err());
    let taken = [of, ("CreateVolumePermission.Remove.1.UserId", OTHER)];
    writer.call(world, "ec2", "ModifySnapshotAttribute", &taken).unwrap();
}

#[test]
fn a_key_without_the_tag_keeps_its_policy_and_gets_no_grant() {
    let mut accounts = Accounts::new();
    let untagged = Caller::root(SOURCE).call_kms(&mut accounts.world, "CreateKey", &json!({})).unwrap();
    accounts.key = untagged["KeyMetadata"]["Arn"].as_str().unwrap().to_owned();
    let writer = accounts.assume("ShareKey", SOURCE, "AmiShareSource").unwrap();
    for (call, answer) in accounts.give(&writer, TARGET) {
        assert_eq!(answer.is_err(), call.starts_with("kms:"), "{call}: {answer:?}");
    }
}

#[test]
fn where_only_tagged_images_are_shared_no_other_is() {
    let deployment = deployed::start(Settings { only_tagged_images: true, ..Settings::default() });
    let mut accounts = Accounts::of(&deployment);
    let writer = accounts.assume("ShareImage", SOURCE, "AmiShareSource").unwrap();
    for (tagged, to) in [(false, TARGET), (true, OTHER)] {
        if tagged {
            let tag = [
                ("ResourceId.1", accounts.image.as_str()),
                ("Tag.1.Key", "ami-share:shareable"),
                ("Tag.1.Value", "true"),
            ];
            Caller::root(SOURCE).call(&mut accounts.world, "ec2", "CreateTags", &tag).unwrap();
        }
        let [(call, answer), ..] = accounts.give(&writer, to);
        assert_eq!((call, answer.is_ok()), ("ec2:ModifyImageAttribute", tagged));
    }
}

/// It can end any grant on a key with the tag, and none on another.
#[test]
fn the_role_that_revokes_grants_is_for_one_function_and_for_tagged_keys() {
    let mut without = Accounts::new();
    assert_eq!(without.assuming(SOURCE, "AmiShareGrantRevoker"), Names::new(), "its owner has not asked for it");
    let mut accounts = Accounts::of(&deployed::start(Settings { revoke_foreign_grants: true, ..Settings::default() }));
    assert_eq!(accounts.assuming(SOURCE, "AmiShareGrantRevoker"), Names::from(["UndoGrantKeys"]));
    let revoker = accounts.assume("UndoGrantKeys", SOURCE, "AmiShareGrantRevoker").unwrap();
    for (call, answer) in accounts.give(&revoker, TARGET) {
        assert!(answer.is_err(), "{call}");
    }
    let Accounts { world, key, .. } = &mut accounts;
    let root = Caller::root(SOURCE);
    let grant =
        json!({ "KeyId": key, "GranteePrincipal": format!("arn:aws:iam::{TARGET}:root"), "Operations": ["Decrypt"] });
    let made = root.call_kms(world, "CreateGrant", &grant).unwrap();
    let revoke = json!({ "KeyId": key, "GrantId": made["GrantId"] });
    let tag = |value: &str| json!({ "KeyId": key, "Tags": [{ "TagKey": "ami-share:shareable", "TagValue": value }] });
    for (value, revoked) in [("false", false), ("true", true)] {
        root.call_kms(world, "TagResource", &tag(value)).unwrap();
        assert_eq!(revoker.call_kms(world, "RevokeGrant", &revoke).is_ok(), revoked, "{value}");
    }
}

/// Whatever it holds.
#[test]
fn nothing_is_made_public_and_no_key_loses_its_administrators() {
    let mut accounts = Accounts::new();
    let writer = accounts.assume("ShareKey", SOURCE, "AmiShareSource").unwrap();
    let Accounts { world, snapshot, key, .. } = &mut accounts;
    let public = [("SnapshotId", snapshot.as_str()), ("CreateVolumePermission.Add.1.Group", "all")];
    let refusal = writer.call(world, "ec2", "ModifySnapshotAttribute", &public).unwrap_err();
    assert!(refusal.contains("explicit deny"), "{refusal}");
    let locked = json!({ "Version": "2012-10-17", "Statement": [
        { "Effect": "Allow", "Principal": { "AWS": format!("arn:aws:iam::{OTHER}:root") }, "Action": "kms:*", "Resource": "*" },
    ]});
    for bypass in [false, true] {
        let put = json!({ "KeyId": key, "PolicyName": "default", "Policy": locked.to_string(),
            "BypassPolicyLockoutSafetyCheck": bypass });
        assert!(writer.call_kms(world, "PutKeyPolicy", &put).is_err(), "{bypass}");
    }
    let grant = accounts.give(&writer, TARGET)[3].1.clone();
    assert_eq!(grant, Ok(()));
    let Accounts { world, key, .. } = &mut accounts;
    let listed = Caller::root(SOURCE).call_kms(world, "ListGrants", &json!({ "KeyId": key })).unwrap();
    let id = &listed["Grants"][0]["GrantId"];
    let revoke = json!({ "KeyId": key, "GrantId": id });
    assert!(writer.call_kms(world, "RevokeGrant", &revoke).is_err());
}
