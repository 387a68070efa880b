//! Fifty executions for one image at the same time, each for a target of its own, with stale reads of the key policies
//! that they all write.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::OnceLock,
};

use ami_share_core::key_policy::{GRANT_SID, USE_SID};
use ami_share_machine::{Deployment, Status};
use ami_share_sandbox::faults::{Fault, FaultKind, Matcher};
use ami_share_tests::local::Settings;
use serde_json::{Value, json};

use crate::{
    Tally, add,
    check::{self, Checked},
    deployed, hold,
    request::Asked,
    world::{self, Stage},
};

const EXECUTIONS: usize = 50;

pub(crate) fn target(index: usize) -> String {
    format!("5{index:011}")
}

pub(crate) fn deployment() -> &'static Deployment {
    static DEPLOYED: OnceLock<Deployment> = OnceLock::new();
    DEPLOYED.get_or_init(|| {
        let targets = (0..EXECUTIONS).map(target).collect();
        deployed::start(Settings { targets, ..Settings::default() })
    })
}

/// Each fifth one finds no room for its proof, and takes everything back while others share.
fn fails(index: usize) -> bool {
    index % 5 == 3
}

#[test]
fn fifty_at_once_lose_none_of_each_others_access() {
    use proptest::prelude::*;
    let seeds = any::<u64>().no_shrink();
    hold("fifty at once lose none of each other's access", (2, 20_260_107), "crowd", seeds, crowd);
}

fn crowd(tally: &Tally, seed: u64) -> Checked {
    let stage = world::crowd(deployment(), seed);
    let foreign = statements(&stage, false);
    let mut arns = Vec::new();
    for index in 0..EXECUTIONS {
        let request = json!({ "imageId": stage.images[0].id, "targets": [{ "accountId": target(index) }] });
        let delay = seed.rotate_left(u32::try_from(index).unwrap_or_default()) % 20_000;
        arns.push(stage.machine.start("ShareAmi", &format!("share-{index:02}"), request, delay)?);
        faults(index).into_iter().for_each(|fault| stage.machine.world().faults.add(fault));
    }
    stage.machine.run()?;
    add(&tally.executions, EXECUTIONS as u64);
    add(&tally.calls, stage.machine.calls());
    stage.machine.world().faults.clear();
    for (index, arn) in arns.iter().enumerate() {
        let record = stage.machine.record(arn);
        add(&tally.succeeded, u64::from(record.status == Status::Succeeded));
        let expected = if fails(index) { Status::Failed } else { Status::Succeeded };
        if record.status != expected {
            return Err(format!("share {index} ended in {:?}: {:?} {:?}", record.status, record.error, record.cause));
        }
    }
    if statements(&stage, false) != foreign {
        return Err("a foreign statement is not what it was".to_owned());
    }
    let shared: BTreeSet<String> = (0..EXECUTIONS).filter(|index| !fails(*index)).map(target).collect();
    for (key, ours) in statements(&stage, true) {
        for statement in ours {
            let statement: Value = serde_json::from_str(&statement).unwrap_or_default();
            let named = statement["Principal"]["AWS"].as_array().cloned().unwrap_or_default();
            let named: BTreeSet<String> =
                named.iter().filter_map(|arn| arn.as_str()?.split(':').nth(4).map(str::to_owned)).collect();
            if named != shared {
                let lost: Vec<_> = shared.symmetric_difference(&named).collect();
                return Err(format!("{} of {key}: not as it should be for {lost:?}", statement["Sid"]));
            }
        }
    }
    let mut world = stage.machine.world();
    check::locks_are_free(&stage)?;
    for account in &shared {
        let asked = Asked { account: account.clone(), mode: None, principals: Vec::new(), keep: false, always: false };
        check::can_launch(&mut world, &stage.images[0], &asked)?;
    }
    Ok(())
}

/// Three reads of key policies are stale for each execution, at different moments: by a change, or by some. A fourth
/// one in a row would be believed, as a policy that somebody put back.
fn faults(index: usize) -> Vec<Fault> {
    let read = Matcher { session: Some(format!("share-{index:02}*")), ..Matcher::action("kms:GetKeyPolicy") };
    // ResolveImage makes the first two.
    let first = u32::try_from(index % 5).unwrap_or_default();
    let mut faults: Vec<Fault> = [first, first + 1, first + 3]
        .into_iter()
        .enumerate()
        .map(|(nth, skip)| Fault::once(read.clone(), FaultKind::Stale { writes: 1 + (index + nth) % 6 }).after(skip))
        .collect();
    if fails(index) {
        let code = "InsufficientInstanceCapacity".to_owned();
        let kind = FaultKind::Error { code, message: "There is no room.".to_owned(), status: 400 };
        faults.push(Fault::always(Matcher::action("ec2:RunInstances").in_account(&target(index)), kind));
    }
    faults
}

/// Our statements of each key, or everybody else's, as they are written.
fn statements(stage: &Stage, ours: bool) -> BTreeMap<String, Vec<String>> {
    let mut world = stage.machine.world();
    let is_ours = |statement: &Value| statement["Sid"] == USE_SID || statement["Sid"] == GRANT_SID;
    let mut found = BTreeMap::new();
    for key in &stage.keys {
        let policy: Value = serde_json::from_str(&world::key_policy(&mut world, key)).unwrap_or_default();
        let all = policy["Statement"].as_array().into_iter().flatten();
        let wanted = all.filter(|statement| is_ours(statement) == ours).map(Value::to_string).collect();
        found.insert(key.clone(), wanted);
    }
    found
}
