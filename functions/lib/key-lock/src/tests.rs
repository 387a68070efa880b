use ami_share_core::{
    hub::Invocation,
    ids::{AccountId, Region},
};
use ami_share_mocked::{Aws, NOW_MS, TIME_LIMIT};

use super::*;

fn source() -> Source {
    Source { account_id: AccountId::parse("111111111111").unwrap(), region: Region::parse("eu-west-1").unwrap() }
}

fn key() -> KeyArn {
    KeyArn::parse("arn:aws:kms:eu-west-1:111111111111:key/1").unwrap()
}

fn policy(sid: &str) -> KeyPolicy {
    let text = format!(r#"{{ "Version": "2012-10-17", "Statement": [{{ "Sid": "{sid}", "Effect": "Allow" }}] }}"#);
    KeyPolicy::parse(&key(), &text).unwrap()
}

fn execution(name: &str) -> ExecutionName {
    ExecutionName::parse(name).unwrap()
}

/// The hub, as another invocation sees it that begins now.
fn next(aws: &Aws) -> Hub {
    aws.hub.invoked(Invocation { id: "2".to_owned(), deadline: aws.hub.now() + TIME_LIMIT })
}

async fn take<'h>(hub: &'h Hub, by: &str) -> Result<KeyLock<'h>, Error> {
    KeyLock::take(hub, &execution(by), &source()).await
}

fn is_locked<T>(taken: Result<T, Error>) -> bool {
    matches!(taken, Err(Error::KeyPoliciesLocked { .. }))
}

#[tokio::test]
async fn one_invocation_has_the_lock_until_it_gives_it_back() {
    let aws = Aws::with_table();
    let next = next(&aws);
    let lock = take(&aws.hub, "a").await.unwrap();
    assert!(is_locked(take(&next, "b").await));
    assert!(is_locked(take(&next, "a").await), "another invocation for the same execution");
    lock.give_back().await;
    assert!(take(&next, "b").await.is_ok());
}

#[tokio::test]
async fn the_lock_is_that_of_an_account_and_region() {
    let aws = Aws::with_table();
    let next = next(&aws);
    let _lock = take(&aws.hub, "a").await.unwrap();
    for other in [
        Source { account_id: AccountId::parse("444444444444").unwrap(), ..source() },
        Source { region: Region::parse("us-east-1").unwrap(), ..source() },
    ] {
        assert!(KeyLock::take(&next, &execution("b"), &other).await.is_ok());
    }
}

#[tokio::test]
async fn the_lock_of_a_holder_that_died_is_free_a_minute_after_its_time_limit() {
    let aws = Aws::with_table();
    drop(take(&aws.hub, "a").await.unwrap());
    aws.pass(TIME_LIMIT + Duration::from_secs(60));
    assert!(is_locked(take(&next(&aws), "b").await));
    aws.pass(Duration::from_millis(1));
    assert!(take(&next(&aws), "b").await.is_ok());
}

#[tokio::test]
async fn the_next_holder_knows_what_was_written_and_what_it_replaced() {
    let aws = Aws::with_table();
    let mut lock = take(&aws.hub, "a").await.unwrap();
    assert!(lock.look(&key(), &policy("before")).is_ok());
    lock.begin(&key(), &policy("before"), &policy("after")).await.unwrap();
    lock.done(&key());
    lock.give_back().await;
    let next = next(&aws);
    let mut lock = take(&next, "a").await.unwrap();
    assert!(matches!(lock.look(&key(), &policy("before")), Err(Error::NotYetVisible { .. })));
    assert!(lock.look(&key(), &policy("after")).is_ok());
    assert!(lock.has_written(&key(), &policy("after")) && !lock.has_written(&key(), &policy("before")));
}

/// Nothing of it is given back: the note was made before the write.
#[tokio::test]
async fn a_write_whose_holder_died_is_known_as_pending() {
    let aws = Aws::with_table();
    let mut lock = take(&aws.hub, "a").await.unwrap();
    lock.begin(&key(), &policy("before"), &policy("after")).await.unwrap();
    drop(lock);
    aws.pass(TIME_LIMIT + Duration::from_secs(61));
    let next = next(&aws);
    let mut lock = take(&next, "b").await.unwrap();
    assert!(lock.look(&key(), &policy("before")).is_err(), "it may have been made");
    aws.pass(Duration::from_secs(300));
    assert!(lock.look(&key(), &policy("before")).is_ok(), "it was not");
}

#[tokio::test]
async fn a_write_that_was_done_is_known_when_a_later_one_is_begun() {
    let aws = Aws::with_table();
    let mut lock = take(&aws.hub, "a").await.unwrap();
    lock.begin(&key(), &policy("before"), &policy("after")).await.unwrap();
    lock.done(&key());
    aws.pass(Duration::from_secs(301));
    assert!(lock.look(&key(), &policy("before")).is_ok(), "somebody has put it back");
    assert!(lock.has_written(&key(), &policy("after")), "which does not undo that it was written");
}

#[tokio::test]
async fn a_refused_write_has_replaced_nothing() {
    let aws = Aws::with_table();
    let mut lock = take(&aws.hub, "a").await.unwrap();
    lock.begin(&key(), &policy("before"), &policy("after")).await.unwrap();
    lock.refused(&key());
    assert!(lock.look(&key(), &policy("before")).is_ok());
}

#[tokio::test]
async fn no_write_begins_in_the_last_fifteen_seconds() {
    let aws = Aws::with_table();
    let mut lock = take(&aws.hub, "a").await.unwrap();
    aws.pass(TIME_LIMIT - Duration::from_secs(15) - Duration::from_millis(1));
    assert!(lock.begin(&key(), &policy("0"), &policy("1")).await.is_ok());
    aws.pass(Duration::from_millis(1));
    let late = lock.begin(&key(), &policy("1"), &policy("2")).await;
    assert!(matches!(late, Err(Error::Unavailable { call: "kms:PutKeyPolicy", .. })));
    assert!(lock.look(&key(), &policy("1")).is_ok(), "it was not begun");
    aws.pass(Duration::from_secs(60));
    assert!(lock.begin(&key(), &policy("1"), &policy("2")).await.is_err());
}

#[tokio::test]
async fn whoever_was_waited_out_begins_no_write() {
    let aws = Aws::with_table();
    let mut lock = take(&aws.hub, "a").await.unwrap();
    aws.pass(TIME_LIMIT + Duration::from_secs(61));
    let next = next(&aws);
    let taken = take(&next, "b").await.unwrap();
    assert!(is_locked(lock.begin(&key(), &policy("before"), &policy("after")).await));
    // Nor does it give back what is not its own.
    lock.give_back().await;
    assert!(is_locked(take(&aws.hub, "a").await));
    drop(taken);
}

#[tokio::test]
async fn what_the_table_refuses_is_the_hubs() {
    let aws = Aws::answering(|_| Some(Err("AccessDeniedException")));
    let Err(error) = take(&aws.hub, "a").await else { panic!("it was taken") };
    assert!(
        matches!(&error, Error::AccessDenied { account, .. } if account.as_str() == ami_share_mocked::HUB),
        "{error}"
    );
}

#[tokio::test]
async fn a_lock_that_nobody_can_read_is_named() {
    let aws = Aws::with_table();
    aws.table().put(&serde_json::json!({
        "id": { "S": "keys#111111111111#eu-west-1" }, "part": { "S": "lock" }, "writes": { "S": "?" },
    }));
    let Err(error) = take(&aws.hub, "a").await else { panic!("it was read at {NOW_MS}") };
    assert!(error.to_string().contains("keys#111111111111#eu-west-1, lock of table records"), "{error}");
}
