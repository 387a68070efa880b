//! UndoCopyImage: the copy that an execution made, and nothing that only looks like it.

use ami_share_core::share::EXECUTION_TAG;

use super::*;

const EXECUTION: &str = "nightly-0123abcd";

/// A copy, made by CopyImage, and the backups of it.
struct Copied {
    stage: Stage,
    image: String,
    copy: String,
    noted_at: u64,
    before: Vec<String>,
}

/// Has CopyImage make a copy, which takes that long; the target has snapshots of its own before.
fn copied(delay_ms: u64) -> Copied {
    let stage = Stage::new();
    let image = stage.shared_image();
    let key = Caller::root(TARGET).call_kms(&mut stage.machine.world(), "CreateKey", &json!({})).unwrap();
    let volume = stage.ec2(TARGET, "CreateVolume", &[("AvailabilityZone", "eu-west-1a"), ("Size", "8")]);
    stage.ec2(TARGET, "CreateSnapshot", &[("VolumeId", &element(&volume, "volumeId").unwrap())]);
    stage.pass(60_000);
    let noted_at = stage.machine.time_of_day_ms();
    let before = stage.has("snapshots");
    stage.pass(60_000);
    stage.machine.world().settings.copy_delay_ms = delay_ms;
    let target = json!({
        "accountId": TARGET, "principalChanges": [], "mode": "copyImage", "kmsKeyId": key["KeyMetadata"]["Arn"],
        "launch": {},
    });
    let input = json!({ "execution": EXECUTION, "source": source(), "image": image, "target": target });
    let ended = stage.call("CopyImage", &input);
    assert_eq!(ended.error, None);
    let copy = ended.answer["copyId"].as_str().unwrap().to_owned();
    Copied { stage, image: image["imageId"].as_str().unwrap().to_owned(), copy, noted_at, before }
}

impl Copied {
    fn input(&self, noted: bool) -> Value {
        let mut made = json!({ "execution": EXECUTION, "of": self.image, "notedAt": self.noted_at });
        if noted {
            made["copyId"] = json!(self.copy);
        }
        let target = json!({ "accountId": TARGET, "instances": [], "copies": [made], "principalChanges": [] });
        json!({ "execution": "undo", "source": source(), "target": target })
    }

    fn snapshots(&self) -> Vec<String> {
        let mut snapshots = self.stage.has("snapshots");
        snapshots.retain(|id| !self.before.contains(id));
        snapshots
    }

    /// What the removal of all is told as.
    fn removal(&self) -> Vec<(String, String, Vec<String>)> {
        let one = |call: &str, id: &String| (call.to_owned(), id.clone(), vec![]);
        let snapshots = self.snapshots().into_iter().map(|id| one("ec2:DeleteSnapshot", &id));
        [one("ec2:DeregisterImage", &self.copy)].into_iter().chain(snapshots).collect()
    }

    fn nothing_is_left(&self) {
        assert_eq!(self.stage.has("images"), Vec::<String>::new());
        assert_eq!(self.stage.has("snapshots"), self.before);
    }
}

/// The tags that CopyImage gives, as parameters of a call.
fn inherited(kinds: &[&str]) -> Vec<(String, String)> {
    let of = |index: usize, field: &str| format!("TagSpecification.{}.{field}", index + 1);
    let tags = kinds.iter().enumerate().flat_map(|(index, kind)| {
        [
            (of(index, "ResourceType"), (*kind).to_owned()),
            (of(index, "Tag.1.Key"), EXECUTION_TAG.to_owned()),
            (of(index, "Tag.1.Value"), EXECUTION.to_owned()),
        ]
    });
    tags.collect()
}

/// What a target's owner may have made with the copy's tags on it, each in a way that tags are inherited.
fn back_up(copied: &Copied) {
    let stage = &copied.stage;
    let call = |action: &str, own: &[(&str, &str)], kinds: &[&str]| {
        let tags = inherited(kinds);
        let tags = tags.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let parameters: Vec<(&str, &str)> = own.iter().copied().chain(tags).collect();
        stage.ec2(TARGET, action, &parameters)
    };
    let (copy, snapshot) = (copied.copy.as_str(), copied.snapshots().remove(0));
    let backup = [("SourceImageId", copy), ("SourceRegion", REGION), ("Name", "backup"), ("CopyImageTags", "true")];
    call("CopyImage", &backup, &["snapshot"]);
    // A copy of the image itself, which somebody tagged like ours.
    let by_hand = [("SourceImageId", copied.image.as_str()), ("SourceRegion", REGION), ("Name", "by hand")];
    call("CopyImage", &by_hand, &["image", "snapshot"]);
    let again = [("SourceSnapshotId", snapshot.as_str()), ("SourceRegion", REGION), ("Description", "again")];
    call("CopySnapshot", &again, &["snapshot"]);
    for image in [copy, &copied.image] {
        let run = [("ImageId", image), ("InstanceType", "t3.micro"), ("MinCount", "1"), ("MaxCount", "1")];
        let launched = call("RunInstances", &run, &["instance", "volume"]);
        let instance = element(&launched, "instanceId").unwrap();
        stage.pass(60_000);
        let of = [("InstanceSpecification.InstanceId", instance.as_str()), ("CopyTagsFromSource", "volume")];
        call("CreateSnapshots", &of, &[]);
        call("CreateImage", &[("InstanceId", &instance), ("Name", &format!("of {instance}"))], &["image", "snapshot"]);
    }
    stage.pass(60_000);
}

#[test]
fn a_copy_goes_with_its_snapshots_and_what_inherits_its_tags_stays() {
    for noted in [true, false] {
        let copied = copied(5);
        copied.stage.pass(60_000);
        let removal = copied.removal();
        assert_eq!(removal.len(), 3);
        back_up(&copied);
        // With the description too.
        copied.stage.pass(7_200_000);
        let (snapshot, tags) = (&removal[1].1, inherited(&["snapshot"]));
        let again = [("SourceSnapshotId", snapshot.as_str()), ("SourceRegion", REGION)];
        let tags = tags.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        copied.stage.ec2(TARGET, "CopySnapshot", &again.into_iter().chain(tags).collect::<Vec<_>>());
        let (images, snapshots) = (copied.stage.has("images"), copied.stage.has("snapshots"));
        assert!(images.len() == 5 && snapshots.len() > 12, "{images:?}, {snapshots:?}");
        assert_eq!(copied.stage.undo("UndoCopyImage", &copied.input(noted)), removal, "noted: {noted}");
        let gone = |id: &String| removal.iter().any(|(_, gone, _)| gone == id);
        let but_ours = |ids: Vec<String>| ids.into_iter().filter(|id| !gone(id)).collect::<Vec<_>>();
        assert_eq!(copied.stage.has("images"), but_ours(images), "noted: {noted}");
        assert_eq!(copied.stage.has("snapshots"), but_ours(snapshots), "noted: {noted}");
        assert_eq!(copied.stage.undo("UndoCopyImage", &copied.input(noted)), [], "noted: {noted}");
        assert_eq!(copied.stage.has("images").len(), 4);
    }
}

#[test]
fn a_removal_that_was_interrupted_is_finished() {
    // sts:AssumeRole, ec2:DescribeImages, ec2:DeregisterImage, and then one snapshot after the other.
    for (noted, call) in [(true, 3), (true, 4), (false, 3), (false, 4)] {
        let copied = copied(5);
        copied.stage.pass(60_000);
        back_up(&copied);
        let removal = copied.removal().len();
        copied.stage.crash("UndoCopyImage", &copied.input(noted), call);
        assert_eq!(copied.stage.has("images").len(), 4);
        let left = copied.stage.has("snapshots").len();
        let taken = copied.stage.undo("UndoCopyImage", &copied.input(noted));
        let expected = if call == 3 { 2 } else { 1 };
        assert_eq!(taken.len(), expected, "noted: {noted}, of {removal}: {taken:?}");
        assert!(taken.iter().all(|(call, ..)| call == "ec2:DeleteSnapshot"), "{taken:?}");
        assert_eq!(copied.stage.has("snapshots").len(), left - expected);
        assert_eq!(copied.stage.has("images").len(), 4);
    }
}

#[test]
fn a_copy_that_is_under_way_or_disabled_goes_too() {
    for noted in [true, false] {
        let slow = copied(3_600_000);
        let removal = slow.removal();
        assert_eq!(slow.stage.undo("UndoCopyImage", &slow.input(noted)), removal, "noted: {noted}");
        slow.nothing_is_left();

        let disabled = copied(5);
        disabled.stage.pass(60_000);
        disabled.stage.ec2(TARGET, "DisableImage", &[("ImageId", &disabled.copy)]);
        let removal = disabled.removal();
        assert_eq!(disabled.stage.undo("UndoCopyImage", &disabled.input(noted)), removal, "noted: {noted}");
        disabled.nothing_is_left();
    }
}

/// Nothing else says that it is the copy of this execution, and not of an earlier one of the same tag.
#[test]
fn what_is_older_than_its_note_is_another_s() {
    let mut copied = copied(5);
    copied.noted_at += 600_000;
    copied.stage.pass(3_600_000);
    assert_eq!(copied.stage.undo("UndoCopyImage", &copied.input(false)), []);
    assert_eq!(copied.stage.has("images"), [copied.copy.clone()]);
    copied.stage.ec2(TARGET, "DeregisterImage", &[("ImageId", &copied.copy)]);
    for noted in [false, true] {
        assert_eq!(copied.stage.undo("UndoCopyImage", &copied.input(noted)), [], "noted: {noted}");
    }
    assert_eq!(copied.snapshots().len(), 2);
}
