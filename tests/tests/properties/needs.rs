//! Shares that need one key and one principal: whoever takes back the last of them takes the access along, nobody before,
//! and where nobody can say, it stays.

use ami_share_machine::{Record, Status, root::Caller, services::Fault};
use ami_share_sandbox::faults::{Fault as SandboxFault, FaultKind, Matcher};
use ami_share_tests::{HUB, REGION, SOURCE, TARGET};
use serde_json::{Value, json};

use crate::{
    check,
    deployed::{self, TARGETS},
    request::Asked,
    world::{self, ELSEWHERE, Stage, role},
};

/// Two images, under one key pair or in two Regions, and a principal in the target.
fn stage(seed: u64, elsewhere: bool) -> Stage {
    let stage = world::with_images(deployed::deployment(false), seed, &[false, elsewhere]);
    world::make_principals(&mut stage.machine.world(), TARGET, &[REGION, ELSEWHERE]);
    stage
}

fn share(stage: &Stage, image: usize, action: &str) -> Value {
    let image = &stage.images[image];
    json!({
        "imageId": image.id,
        "source": image.source(),
        "targets": [{ "accountId": TARGET, "principals": [role(TARGET)] }],
        "action": action,
    })
}

fn revoke(stage: &Stage, image: usize, force: bool) -> Value {
    let image = &stage.images[image];
    json!({ "imageId": image.id, "source": image.source(), "targets": [TARGET], "force": force })
}

/// Runs executions that begin at these times; how each ended.
fn run_all(stage: &Stage, machine: &str, executions: &[(&str, Value, u64)]) -> Vec<Record> {
    let start =
        |(name, input, delay): &(&str, Value, u64)| stage.machine.start(machine, name, input.clone(), *delay).unwrap();
    let started: Vec<String> = executions.iter().map(start).collect();
    stage.machine.run().unwrap();
    started.iter().map(|arn| stage.machine.record(arn)).collect()
}

fn run(stage: &Stage, machine: &str, name: &str, input: Value) -> Record {
    run_all(stage, machine, &[(name, input, 0)]).remove(0)
}

fn succeed(records: &[Record]) {
    for record in records {
        assert_eq!(record.status, Status::Succeeded, "{:?} {:?}", record.error, record.cause);
    }
}

fn share_both(stage: &Stage) {
    for (image, name) in ["first", "second"].into_iter().enumerate() {
        succeed(&[run(stage, "ShareAmi", name, share(stage, image, "apply"))]);
    }
}

fn cause(record: &Record) -> &str {
    record.cause.as_deref().unwrap_or_default()
}

fn is_attached(stage: &Stage) -> bool {
    let target = stage.machine.world().snapshot(TARGET);
    let is_ours = |arn: &Value| arn.as_str().is_some_and(|arn| arn.ends_with(":policy/AmiShareKeyAccess"));
    target["iam"]["roles"]["app-deployer"]["attached"].as_array().into_iter().flatten().any(is_ours)
}

/// The launcher and the principal can launch the image.
fn assert_usable(stage: &Stage, image: usize) {
    let principals = vec![role(TARGET)];
    let asked = Asked { account: TARGET.to_owned(), mode: None, principals, keep: false, always: false };
    check::can_launch(&mut stage.machine.world(), &stage.images[image], &asked).unwrap();
}

fn assert_nothing_is_missing(stage: &Stage, name: &str, image: usize) {
    let plan = run(stage, "ShareAmi", name, share(stage, image, "plan"));
    assert_eq!(plan.output.unwrap_or_default()["calls"], json!([]), "{:?}", plan.cause);
}

#[test]
fn two_revokes_at_once_leave_none_of_the_access_that_each_kept_for_the_other() {
    for seed in 0..12 {
        let stage = stage(seed, false);
        let before = check::picture(&stage);
        share_both(&stage);
        let revokes = [("one", revoke(&stage, 0, true), 0), ("other", revoke(&stage, 1, true), seed % 4 * 200)];
        succeed(&run_all(&stage, "RevokeShare", &revokes));
        check::unchanged(&before, &check::picture(&stage), &check::Kept::new())
            .unwrap_or_else(|why| panic!("{seed}: {why}"));
    }
}

/// EC2 names the image that went first still, and no note does: it had found the access in place.
#[test]
fn of_two_revokes_in_a_row_the_last_takes_the_access_however_late_ec2_is() {
    for seed in 0..4 {
        let stage = stage(seed, false);
        let before = check::picture(&stage);
        share_both(&stage);
        let look = Matcher::action("ec2:DescribeImages").in_account(SOURCE);
        stage.machine.world().faults.add(SandboxFault::always(look, FaultKind::Stale { writes: usize::MAX }));
        succeed(&[run(&stage, "RevokeShare", "one", revoke(&stage, 1, true))]);
        let last = run(&stage, "RevokeShare", "other", revoke(&stage, 0, true));
        let report = last.output.clone().unwrap_or_default();
        assert_eq!(report["kept"], json!([]), "{seed}: {report:#}");
        succeed(&[last]);
        check::unchanged(&before, &check::picture(&stage), &check::Kept::new())
            .unwrap_or_else(|why| panic!("{seed}: {why}"));
    }
}

#[test]
fn two_shares_that_fail_at_once_leave_nothing_and_say_what_is_true() {
    let mut at_once = 0;
    for seed in 0..24 {
        let stage = stage(seed, false);
        let before = check::picture(&stage);
        let code = "InsufficientInstanceCapacity".to_owned();
        let kind = FaultKind::Error { code, message: "There is no room.".to_owned(), status: 400 };
        let launch = Matcher::action("ec2:RunInstances").in_account(TARGET);
        stage.machine.world().faults.add(SandboxFault::always(launch, kind));
        let shares = [("one", share(&stage, 0, "apply"), 0), ("other", share(&stage, 1, "apply"), 0)];
        let ended = run_all(&stage, "ShareAmi", &shares);
        check::unchanged(&before, &check::picture(&stage), &check::Kept::new())
            .unwrap_or_else(|why| panic!("{seed}: {why}"));
        // Whoever looked before the other one had marked its note left the access to it, and the other one took it.
        let all_taken = "Everything that this execution had added was taken back";
        let all = ended.iter().filter(|record| cause(record).contains(all_taken)).count();
        for record in &ended {
            assert_eq!(record.error.as_deref(), Some("LaunchFailed"), "{seed}: {}", cause(record));
            let kept = cause(record).contains("keeps access to keys, as it can launch");
            assert!(cause(record).contains(all_taken) || kept && all == 1, "{seed}: {}", cause(record));
        }
        at_once += u32::from(all == 2);
    }
    assert!(at_once > 0, "in no case both had marked their notes before either looked");
}

/// IAM is global: the principal needs its policy for the image in the other Region too.
#[test]
fn a_policy_stays_attached_for_an_image_in_another_region_and_goes_with_it() {
    for (revoked, stands) in [(0, 1), (1, 0)] {
        let stage = stage(7, true);
        let before = check::picture(&stage);
        share_both(&stage);
        let first = run(&stage, "RevokeShare", "revoke", revoke(&stage, revoked, true));
        succeed(std::slice::from_ref(&first));
        // The first share is the one that gave it.
        let kept = json!([{ "accountId": TARGET, "imageId": stage.images[1].id }]);
        let kept = if revoked == 0 { kept } else { json!([]) };
        assert_eq!(first.output.unwrap_or_default()["kept"], kept);
        assert!(is_attached(&stage));
        assert_nothing_is_missing(&stage, "plan", stands);
        assert_usable(&stage, stands);
        succeed(&[run(&stage, "RevokeShare", "rest", revoke(&stage, stands, true))]);
        check::unchanged(&before, &check::picture(&stage), &check::Kept::new()).unwrap();
    }
}

/// Refuses these actions to a role of the account, by a policy of its own.
fn deny(stage: &Stage, account: &str, role: &str, action: &str, condition: &Value) {
    let mut statement = json!({ "Effect": "Deny", "Action": action, "Resource": "*" });
    if !condition.is_null() {
        statement["Condition"] = condition.clone();
    }
    let document = json!({ "Version": "2012-10-17", "Statement": [statement] }).to_string();
    let parameters = [("RoleName", role), ("PolicyName", "guardrail"), ("PolicyDocument", document.as_str())];
    Caller::root(account).call(&mut stage.machine.world(), "iam", "PutRolePolicy", &parameters).unwrap();
}

fn allow_again(stage: &Stage, account: &str, role: &str) {
    let parameters = [("RoleName", role), ("PolicyName", "guardrail")];
    Caller::root(account).call(&mut stage.machine.world(), "iam", "DeleteRolePolicy", &parameters).unwrap();
}

#[test]
fn a_region_that_cannot_be_asked_keeps_the_access_until_it_is_forced() {
    let stage = stage(8, true);
    let before = check::picture(&stage);
    share_both(&stage);
    let there = json!({ "StringEquals": { "aws:RequestedRegion": ELSEWHERE } });
    deny(&stage, SOURCE, "AmiShareSourceReader", "ec2:DescribeImages", &there);
    let unknown = run(&stage, "RevokeShare", "unknown", revoke(&stage, 0, false));
    assert_eq!(unknown.error.as_deref(), Some("RevokeIncomplete"), "{}", cause(&unknown));
    let said = format!("nobody can say which images of account {SOURCE} in {ELSEWHERE} need it");
    assert!(cause(&unknown).contains(&said), "{}", cause(&unknown));
    assert!(is_attached(&stage));
    let source = stage.machine.world().snapshot(SOURCE);
    assert!(!source["ec2"][REGION].to_string().contains(TARGET), "what does not depend on it is taken");
    assert_usable(&stage, 1);
    succeed(&[run(&stage, "RevokeShare", "forced", revoke(&stage, 0, true))]);
    assert!(!is_attached(&stage));
    allow_again(&stage, SOURCE, "AmiShareSourceReader");
    succeed(&[run(&stage, "RevokeShare", "rest", revoke(&stage, 1, true))]);
    check::unchanged(&before, &check::picture(&stage), &check::Kept::new()).unwrap();
}

/// What keeps ResolveUndo from knowing what others need.
#[derive(Debug, Clone, Copy)]
enum Unasked {
    TableRefuses,
    TableThrottles,
    Ec2Refuses,
    Ec2Throttles,
}

#[test]
fn where_nobody_can_be_asked_what_another_execution_gave_too_stays() {
    for unasked in [Unasked::TableRefuses, Unasked::TableThrottles, Unasked::Ec2Refuses, Unasked::Ec2Throttles] {
        let stage = stage(9, false);
        let before = check::picture(&stage);
        let of_two = |action: &str| Matcher { session: Some("two-*".to_owned()), ..Matcher::action(action) };
        let refused = |code: &str| FaultKind::Error { code: code.to_owned(), message: "No.".to_owned(), status: 403 };
        let terminate = of_two("ec2:TerminateInstances");
        stage.machine.world().faults.add(SandboxFault::once(terminate, refused("UnauthorizedOperation")));
        let looks = |kind| SandboxFault::always(of_two("ec2:DescribeImages").in_account(SOURCE), kind).after(1);
        match unasked {
            Unasked::TableRefuses => deny(&stage, HUB, &undo_role(), "dynamodb:Query", &Value::Null),
            Unasked::TableThrottles => {
                stage.machine.set_faults_of("Query", (1..1_000).map(|number| (number, Fault::Throttled)));
            }
            Unasked::Ec2Refuses => stage.machine.world().faults.add(looks(refused("UnauthorizedOperation"))),
            Unasked::Ec2Throttles => stage.machine.world().faults.add(looks(FaultKind::Throttle)),
        }
        let shares = ["one", "two"].map(|name| (name, share(&stage, 0, "apply"), 0));
        let ended = run_all(&stage, "ShareAmi", &shares);
        let resolutions = noted(&stage, "resolution");
        assert_eq!(resolutions.len(), 2);
        for resolution in resolutions {
            assert_eq!(resolution["launchPermissions"], json!([TARGET]), "one came too late to be at once");
        }
        succeed(&ended[..1]);
        let (two, cause) = (&ended[1], cause(&ended[1]));
        assert_eq!(two.status, Status::Failed, "{unasked:?}");
        // What is known to be given by the other one too is no more than that.
        let from_the_table = matches!(unasked, Unasked::TableRefuses | Unasked::TableThrottles);
        let said = format!("ResolveUndo in account {TARGET} failed with");
        assert_eq!(cause.contains(&said), from_the_table, "{unasked:?}: {cause}");
        let found = if from_the_table { 2 } else { 1 };
        assert_eq!(noted(&stage, "gift").len(), found, "{unasked:?}: what stays, stays noted");
        assert_usable(&stage, 0);

        match unasked {
            Unasked::TableRefuses => allow_again(&stage, HUB, &undo_role()),
            Unasked::TableThrottles => stage.machine.set_faults_of("Query", []),
            Unasked::Ec2Refuses | Unasked::Ec2Throttles => stage.machine.world().faults.clear(),
        }
        assert_nothing_is_missing(&stage, "plan", 0);
        succeed(&[run(&stage, "RevokeShare", "revoke", revoke(&stage, 0, true))]);
        check::unchanged(&before, &check::picture(&stage), &check::Kept::new()).unwrap();
    }
}

/// Its target keeps what it has until the note is put right or removed; others keep nothing.
#[test]
fn a_note_that_nobody_can_read_stops_the_take_back_of_its_target_alone() {
    let both = [TARGET, TARGETS[1]];
    for by in ["RevokeShare", "UndoShare"] {
        let stage = stage(10, false);
        let before = check::picture(&stage);
        let mut request = share(&stage, 0, "apply");
        request["targets"] = json!([{ "accountId": TARGET, "principals": [role(TARGET)] }, { "accountId": both[1] }]);
        let arn = stage.machine.start("ShareAmi", "share", request, 0).unwrap();
        stage.note_unreadably(TARGET);
        if by == "UndoShare" {
            stage.machine.fail_in(&arn, "SettleShare");
        }
        stage.machine.run().unwrap();
        let take_back = |name: &str| {
            let revoke = json!({ "imageId": stage.images[0].id, "targets": both, "force": true });
            let undo = json!({ "detail": { "executionArn": arn } });
            run(&stage, by, name, if by == "UndoShare" { undo } else { revoke })
        };
        let ended = take_back("unread");
        let (error, state) =
            if by == "UndoShare" { ("UndoIncomplete", "ResolveUndo") } else { ("RevokeIncomplete", "ResolveRevoke") };
        assert_eq!(ended.error.as_deref(), Some(error), "{}", cause(&ended));
        for said in [format!("{state} in account {TARGET} failed with Aws"), "cannot be read".to_owned()] {
            assert!(cause(&ended).contains(&said), "{said} is not in {}", cause(&ended));
        }
        assert!(!cause(&ended).contains(both[1]), "{}", cause(&ended));
        assert_usable(&stage, 0);
        check::others_unchanged(&before, &check::picture(&stage), &stage, &[TARGET.to_owned()].into()).unwrap();
        stage.remove_unreadable(TARGET);
        succeed(&[take_back("read")]);
        check::unchanged(&before, &check::picture(&stage), &check::Kept::new()).unwrap();
    }
}

fn undo_role() -> String {
    let role = &deployed::deployment(false).functions["ResolveUndo"].role_arn;
    role.rsplit('/').next().unwrap_or_default().to_owned()
}

/// What the items of the table have under that name.
fn noted(stage: &Stage, name: &str) -> Vec<Value> {
    let table = stage.machine.table();
    let texts = table.items().filter_map(|item| item.get(name)?["S"].as_str().map(str::to_owned));
    texts.map(|text| serde_json::from_str(&text).unwrap()).collect()
}
