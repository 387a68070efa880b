//! UndoLaunchInstance: instances by their client tokens, and by the ids that were noted.

use super::*;

fn launched(stage: &Stage, image: &Value, execution: &str, launches: u64) -> String {
    let target = json!({ "accountId": TARGET, "principalChanges": [], "mode": "none", "launch": {} });
    let input = json!({
        "execution": execution, "source": source(), "image": image, "target": target, "launchImageId": image["imageId"],
        "launches": launches,
    });
    let ended = stage.call("LaunchInstance", &input);
    assert_eq!(ended.error, None);
    ended.answer["instanceId"].as_str().unwrap().to_owned()
}

fn undo(stage: &Stage, instances: Value) -> Vec<String> {
    let target = json!({ "accountId": TARGET, "instances": instances, "copies": [], "principalChanges": [] });
    let taken = stage.undo("UndoLaunchInstance", &json!({ "execution": "undo", "source": source(), "target": target }));
    assert!(taken.iter().all(|(call, _, from)| call == "ec2:TerminateInstances" && from.is_empty()), "{taken:?}");
    taken.into_iter().map(|(_, id, _)| id).collect()
}

fn is_alive(stage: &Stage, id: &str) -> bool {
    let described = stage.ec2(TARGET, "DescribeInstances", &[("InstanceId.1", id)]);
    !described.contains("<name>shutting-down</name>") && !described.contains("<name>terminated</name>")
}

#[test]
fn an_instance_is_found_by_its_token_or_its_id_and_others_stay() {
    let stage = Stage::new();
    let image = stage.shared_image();
    let [lost, again, noted, other] = [("lost", 0), ("lost", 2), ("noted", 0), ("other", 0)]
        .map(|(execution, launches)| launched(&stage, &image, execution, launches));
    // A backup that inherits the tags has no token.
    let tags = [
        ("TagSpecification.1.ResourceType", "instance"),
        ("TagSpecification.1.Tag.1.Key", "ami-share:execution"),
        ("TagSpecification.1.Tag.1.Value", "lost"),
    ];
    let run = [("ImageId", image["imageId"].as_str().unwrap()), ("MinCount", "1"), ("MaxCount", "1")];
    let run: Vec<(&str, &str)> = run.into_iter().chain(tags).collect();
    let tagged = element(&stage.ec2(TARGET, "RunInstances", &run), "instanceId").unwrap();
    stage.pass(60_000);
    let instances = json!([{ "execution": "lost" }, { "execution": "elsewhere", "instanceId": noted }]);
    let mut taken = undo(&stage, instances.clone());
    taken.sort();
    let mut ours = [lost.clone(), again.clone(), noted.clone()];
    ours.sort();
    assert_eq!(taken, ours);
    assert!(ours.iter().all(|id| !is_alive(&stage, id)));
    assert!(is_alive(&stage, &other) && is_alive(&stage, &tagged));
    assert_eq!(undo(&stage, instances), Vec::<String>::new(), "on their way out already");
}

#[test]
fn an_instance_that_nobody_knows_any_more_is_as_good_as_terminated() {
    let stage = Stage::new();
    assert_eq!(
        undo(&stage, json!([{ "execution": "noted", "instanceId": "i-0123456789abcdef0" }])),
        Vec::<String>::new()
    );
}
