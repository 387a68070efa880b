//! What a share costs: transitions, invocations and calls, by the number of its targets. ARCHITECTURE.md has the numbers.

use std::{collections::BTreeSet, fs};

use ami_share_machine::{Deployment, Status};
use ami_share_sandbox::{
    faults::{Fault, FaultKind, Matcher},
    journal::Entry,
};
use ami_share_tests::{
    HUB, SOURCE,
    engine::checkout,
    execution,
    local::{Local, Settings},
};
use aws_sdk_sfn::types::ExecutionStatus;
use serde_json::{Value, json};

use crate::{
    crowd::{deployment, target},
    deployed, world,
};

const SHARES: [usize; 3] = [1, 10, 50];

/// For each further target that does not re-encrypt, with one launch and one look.
const MOST_TRANSITIONS: usize = 12;

/// Of one share. The calls are those that ami-share makes, not what EC2 does with keys in its name.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Counts {
    transitions: usize,
    invocations: usize,
    hub_calls: usize,
    source_calls: usize,
    /// In each target.
    target_calls: BTreeSet<usize>,
}

impl Counts {
    fn of<'s>(
        deployment: &Deployment,
        targets: &[String],
        entered: impl Iterator<Item = &'s str>,
        journal: &[Entry],
    ) -> Self {
        let definitions = ["ShareAmi", "TakeBack"].map(|name| &deployment.definitions[name]);
        let invoking: BTreeSet<String> =
            definitions.iter().flat_map(|text| invoking(&serde_json::from_str(text).unwrap())).collect();
        let entered: Vec<&str> = entered.collect();
        let times = |state: &str| entered.iter().filter(|entered| **entered == state).count();
        assert_eq!(times("LaunchInstance"), targets.len());
        assert!(times("DescribeInstance") <= targets.len(), "one look is enough");
        let calls =
            |account: &str| journal.iter().filter(|entry| entry.via.is_none() && entry.account == account).count();
        Self {
            transitions: entered.len(),
            invocations: entered.iter().filter(|state| invoking.contains(**state)).count(),
            hub_calls: calls(HUB),
            source_calls: calls(SOURCE),
            target_calls: targets.iter().map(|target| calls(target)).collect(),
        }
    }
}

/// The states that invoke a function, those inside Maps among them.
fn invoking(definition: &Value) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (name, state) in definition["States"].as_object().into_iter().flatten() {
        if state["Resource"] == "arn:aws:states:::lambda:invoke" {
            found.insert(name.clone());
        }
        found.extend(invoking(&state["ItemProcessor"]));
    }
    found
}

fn request(image: &str, targets: &[String]) -> Value {
    let targets: Vec<Value> = targets.iter().map(|target| json!({ "accountId": target })).collect();
    json!({ "imageId": image, "targets": targets })
}

/// Proved, or taken back since every launch was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ends {
    Proved,
    TakenBack,
}

fn on_the_machine(ends: Ends) -> Vec<Counts> {
    let counts = SHARES.map(|count| {
        let targets: Vec<String> = (0..count).map(target).collect();
        let stage = world::crowd(deployment(), 1);
        let (image, machine) = (&stage.images[0].id, &stage.machine);
        if ends == Ends::TakenBack {
            let message = "an explicit deny".to_owned();
            let kind = FaultKind::Error { code: "UnauthorizedOperation".to_owned(), message, status: 403 };
            machine.world().faults.add(Fault::always(Matcher::action("ec2:RunInstances"), kind));
        }
        let seen = machine.world().journal.last_seq();
        let arn = machine.start("ShareAmi", "share", request(image, &targets), 0).unwrap();
        machine.run().unwrap();
        let mut record = machine.record(&arn);
        assert_eq!(record.status == Status::Succeeded, ends == Ends::Proved, "{:?}", record.cause);
        for child in machine.executions("TakeBack") {
            record.entered.extend(machine.record(&child).entered);
        }
        let journal = machine.world().journal.since(seen).to_vec();
        Counts::of(deployment(), &targets, record.entered.iter().map(String::as_str), &journal)
    });
    counts.to_vec()
}

/// The rows of the table in ARCHITECTURE.md, of which every second column says how it was once.
fn written(ends: Ends) -> Vec<Counts> {
    let page = fs::read_to_string(checkout().join("ARCHITECTURE.md")).unwrap();
    let how = match ends {
        Ends::Proved => "proved",
        Ends::TakenBack => "taken back",
    };
    let row = |name: &str| -> Vec<usize> {
        let row = page.lines().find_map(|line| line.strip_prefix(&format!("| {how}: {name} |")));
        let cells = row.unwrap_or_else(|| panic!("there is no row {how}: {name}")).trim_end_matches('|').split('|');
        cells.skip(1).step_by(2).map(|cell| cell.trim().parse().unwrap_or_else(|_| panic!("{name}: {cell}"))).collect()
    };
    let names =
        ["transitions", "function invocations", "calls in the hub", "calls in the source", "calls in each target"];
    let [transitions, invocations, hub, source, target] = names.map(row);
    let counts = (0..SHARES.len()).map(|index| Counts {
        transitions: transitions[index],
        invocations: invocations[index],
        hub_calls: hub[index],
        source_calls: source[index],
        target_calls: BTreeSet::from([target[index]]),
    });
    counts.collect()
}

#[test]
fn what_a_share_costs_is_as_it_is_written() {
    let [proved, taken_back] = [Ends::Proved, Ends::TakenBack].map(|ends| {
        let counts = on_the_machine(ends);
        SHARES.iter().zip(&counts).for_each(|(targets, counts)| println!("{targets}, {ends:?}: {counts:?}"));
        counts
    });
    let further = SHARES[2] - SHARES[1];
    assert!(proved[2].transitions - proved[1].transitions <= MOST_TRANSITIONS * further);
    assert_eq!(proved[0].source_calls, proved[2].source_calls);
    assert_eq!(proved, written(Ends::Proved));
    assert_eq!(taken_back, written(Ends::TakenBack));
}

#[tokio::test]
async fn what_a_share_costs_is_the_same_on_the_local_engine() {
    // Each share has targets and an image of its own: nothing is there already.
    let all: Vec<String> = (0..SHARES.iter().sum()).map(target).collect();
    let local = Local::start(Settings { targets: all.clone(), ..Settings::default() }).await.unwrap();
    let deployment = deployed::of(&local).unwrap();
    let engine = local.engine.endpoint();
    let mut rest = all.as_slice();
    let mut counts = Vec::new();
    for count in SHARES {
        let (targets, others) = rest.split_at(count);
        rest = others;
        let image =
            ami_share_tests::seed::image(&local.sandbox.endpoint(), SOURCE, &format!("golden-{count}")).await.unwrap();
        let seen = local.sandbox.world().journal.last_seq();
        let request = request(&image.image_id, targets);
        let arn =
            execution::start(&engine, &local.hub.state_machine, &format!("share-{count}"), &request).await.unwrap();
        let ended = execution::follow(&engine, &arn, |_| {}).await.unwrap();
        assert_eq!(ended.status, ExecutionStatus::Succeeded, "{:?}", ended.cause);
        let journal = local.sandbox.world().journal.since(seen).to_vec();
        counts.push(Counts::of(
            &deployment,
            targets,
            ended.states.iter().map(|entered| entered.state.as_str()),
            &journal,
        ));
    }
    assert_eq!(counts, written(Ends::Proved));
}
