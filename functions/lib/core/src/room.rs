//! How what states hand on to each other shares the room that there is for it.
//!
//! What takes more ends an execution without a Catch. Report is given the most: the resolution, what became of each
//! target, the first failure, and what take-backs came to. The last two are bounded by themselves. So a request whose
//! resolution is too long is refused, and what is left of the room goes to the causes of targets that fail.

use crate::{
    error::MAX_REFUSAL,
    share::Resolution,
    take_back::{MOST_TO_TELL, bytes_of},
};

/// What states hand on, in bytes of JSON ("Service quotas", Step Functions developer guide).
pub const MOST_HANDED_ON: usize = 262_144;

/// What the cause of an execution may have: 32,768 characters ("ExecutionFailedEventDetails", Step Functions API reference),
/// less what Step Functions adds.
pub const MOST_OF_CAUSE: usize = 32_000;

/// The rest of what Report is given, and what Step Functions and Lambda put around it.
const BESIDE: usize = 6_000;

/// A target's result, without its volumes or its cause.
const RESULT: usize = 350;
const VOLUME: usize = 170;

/// What of a cause tells at least what was wrong, in characters.
const LEAST_OF_CAUSE: usize = 400;

/// A cause is JSON, and has quotes and backslashes: in JSON, each takes two bytes.
const BYTES_OF_CHARACTER: usize = 2;

/// How many characters the cause of each target that fails may have.
///
/// # Errors
/// How many bytes too long the resolution is.
pub fn longest_cause(resolution: &Resolution) -> Result<usize, usize> {
    let (targets, volumes) = (resolution.targets.len(), resolution.image.volumes.len());
    let room = MOST_HANDED_ON - BESIDE - 2 * MOST_TO_TELL;
    let all_proved = targets * (RESULT + VOLUME * volumes);
    // The first is told twice: as the execution's failure too.
    let failures = targets + 1;
    let all_failed = failures * (RESULT + BYTES_OF_CHARACTER * LEAST_OF_CAUSE);
    // Then there are no results.
    let failed_before_targets = BYTES_OF_CHARACTER * MAX_REFUSAL;
    let taken = bytes_of(resolution);
    let least = all_proved.max(all_failed).max(failed_before_targets);
    match room.checked_sub(taken).filter(|left| *left >= least) {
        Some(left) => Ok((left / failures - RESULT) / BYTES_OF_CHARACTER),
        None => Err(taken + least - room),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::request::{MAX_PRINCIPALS, MAX_TARGETS};

    /// For so many targets, each with the most principals and the launcher, whose names are so long; of an image with so many
    /// volumes, under two keys.
    fn resolution(targets: usize, volumes: usize, name: usize) -> Resolution {
        let key =
            |index: usize| format!("arn:aws:kms:eu-west-1:111111111111:key/0123abcd-0123-abcd-0123-0123abcd{index:04}");
        let keys = [key(0), key(1)];
        let accounts: Vec<String> = (0..targets).map(|index| format!("2{index:011}")).collect();
        let principals = |account: &String| -> Vec<Value> {
            let arn = |index| format!("arn:aws:iam::{account}:role/{index:0name$}");
            (0..=MAX_PRINCIPALS).map(|index| json!({ "principal": arn(index) })).collect()
        };
        let volumes = (0..volumes).map(|index| {
            json!({ "deviceName": "/dev/xvda", "snapshotId": "snap-0123456789abcdef0", "keyArn": keys[index % 2] })
        });
        let resolution = json!({
            "execution": "n".repeat(89),
            "source": { "accountId": "111111111111", "region": "eu-west-1" },
            "image": {
                "imageId": "ami-0123456789abcdef0", "name": "n".repeat(128), "architecture": "x86_64",
                "volumes": volumes.collect::<Vec<_>>(),
            },
            "keyChanges": keys.each_ref().map(|key| json!({ "keyArn": key, "accountIds": accounts })),
            "snapshotChanges": [],
            "launchPermissions": accounts,
            "targets": accounts.iter().map(|account| json!({
                "accountId": account, "principalChanges": principals(account), "mode": "none", "launch": {},
                "sourceChanges": { "launchPermission": true, "keyArns": keys },
            })).collect::<Vec<_>>(),
            "alreadyShared": [], "principalAccess": "attach", "onFailure": "undo"
        });
        serde_json::from_value(resolution).unwrap()
    }

    /// The longest names that are accepted.
    fn longest_names(targets: usize, volumes: usize) -> usize {
        let names: Vec<usize> = (2..=576).collect();
        let accepted = |name: &usize| longest_cause(&resolution(targets, volumes, *name)).is_ok();
        names[names.partition_point(accepted) - 1]
    }

    fn result(cause: usize) -> Value {
        json!({
            "accountId": "222222222222", "failure": { "state": "GrantPrincipals", "error": "PrincipalNotFound", "cause": "\"".repeat(cause) },
            "startedAt": "2026-01-01T00:00:00.000Z", "endedAt": "2026-01-01T00:00:00.000Z"
        })
    }

    fn proof(volumes: usize) -> Value {
        let volume = json!({
            "deviceName": "/dev/xvda", "volumeId": "vol-0123456789abcdef0",
            "keyArn": "arn:aws:kms:ap-southeast-1:222222222222:key/mrk-0123456789abcdef0123456789abcdef",
        });
        json!({
            "accountId": "222222222222", "imageId": "ami-0123456789abcdef0", "instanceId": "i-0123456789abcdef0",
            "launches": 3, "kept": false, "volumes": vec![volume; volumes],
            "startedAt": "2026-01-01T00:00:00.000Z", "endedAt": "2026-01-01T00:00:00.000Z"
        })
    }

    /// What Report is given; ResolveUndo is given less.
    #[test]
    fn the_largest_request_that_is_accepted_fits_whatever_becomes_of_it() {
        for (targets, volumes) in [(1, 1), (1, 20), (10, 5), (MAX_TARGETS, 1), (MAX_TARGETS, 10)] {
            let resolution = resolution(targets, volumes, longest_names(targets, volumes));
            let cause = longest_cause(&resolution).unwrap();
            assert!(cause >= LEAST_OF_CAUSE, "{cause}");
            let first = result(cause)["failure"].clone();
            let before_targets = json!({ "state": "ShareKey", "error": "Aws", "cause": "\"".repeat(MAX_REFUSAL) });
            let told = "t".repeat(MOST_TO_TELL - 2);
            for (results, failure) in [
                (vec![result(cause); targets], first),
                (vec![proof(volumes); targets], Value::Null),
                (vec![], before_targets),
            ] {
                let payload = json!({
                    "execution": resolution.execution, "resolution": resolution, "results": results, "failure": failure,
                    "failed": vec!["222222222222"; targets], "soFar": told, "last": told,
                });
                let bytes = bytes_of(&payload);
                assert!(bytes + 3_000 < MOST_HANDED_ON, "{targets} targets, {volumes} volumes: {bytes} bytes");
            }
        }
    }

    /// As docs/request.md says; of targets that copy, tests/tests/properties/worst.rs knows.
    #[test]
    fn ten_targets_have_room_for_nearly_every_name() {
        assert!((500..576).contains(&longest_names(10, 3)));
    }

    #[test]
    fn what_is_too_long_is_refused_by_how_much() {
        let longest = longest_names(MAX_TARGETS, 3);
        let excess = |more: usize| longest_cause(&resolution(MAX_TARGETS, 3, longest + more)).unwrap_err();
        let character_of_each_name = MAX_TARGETS * (MAX_PRINCIPALS + 1);
        assert!((1..=character_of_each_name).contains(&excess(1)), "{}", excess(1));
        assert_eq!(excess(2) - excess(1), character_of_each_name);
    }
}
