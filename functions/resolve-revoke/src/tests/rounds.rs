//! How an execution goes through its targets and images, and what it asks for on its way.

use super::*;

/// Everybody else looks first.
#[tokio::test]
async fn only_by_force_is_something_taken_back_before_anybody_has_looked() {
    for (more, looks, plan) in [
        (json!({}), true, false),
        (json!({ "force": true }), false, false),
        (json!({ "action": "plan" }), true, true),
        (json!({ "action": "plan", "force": true }), true, true),
        (json!({ "planHash": "0".repeat(64), "force": true }), true, true),
    ] {
        let aws = world().aws();
        note_all(&aws, &[gift(A, TARGET)]);
        let round = look_first(&aws, one_image(more.clone())).await;
        assert_eq!(round.progress.phase, if looks { Phase::Check } else { Phase::Revoke }, "{more}");
        assert_eq!(marked(&aws).is_empty(), looks, "{more}");
        assert_eq!(round.plan, plan, "{more}");
        // Who is forced is not asked whether anybody uses the image.
        let asks = more["force"] != true;
        assert_eq!((round.ask_usage, round.report_usage), (asks, asks), "{more}");
        let round = revoke(&aws, one_image(more.clone())).await;
        assert_eq!((round.plan, round.ask_usage, round.report_usage), (false, false, false), "{more}");
        assert_eq!((round.more, round.progress.remaining), (false, 0), "{more}");
    }
}

#[tokio::test]
async fn use_is_not_asked_about_where_nothing_is_taken_nor_reported_of_an_image_that_is_gone() {
    let aws = World { keys: vec![], ..world() }.aws();
    let round = look_first(&aws, one_image(json!({}))).await;
    assert_eq!((round.image_found, round.ask_usage, round.report_usage, round.take_back), (true, false, false, None));
    let aws = World { images: vec![], ..world() }.aws();
    note_all(&aws, &[gift(A, TARGET)]);
    let round = look_first(&aws, one_image(json!({}))).await;
    assert_eq!((round.image_found, round.ask_usage, round.report_usage), (false, true, false));
}

fn of(n: usize) -> Gift {
    gift(A, account(n).as_str())
}

/// EC2 reports on an image once, after all of its targets were asked.
#[tokio::test]
async fn an_image_with_many_targets_is_reported_on_after_the_last_round() {
    let aws = world().aws();
    note_all(&aws, &(0..120).map(of).collect::<Vec<Gift>>());
    let everybody = one_image(json!({ "targets": "all" }));
    let mut progress = Progress::default();
    for (targets, more, remaining) in [(50, true, 70), (50, true, 20), (20, false, 0)] {
        let round = round(&aws, &everybody, Phase::Check, progress).await.unwrap();
        assert_eq!((round.accounts.len(), round.more, round.report_usage), (targets, more, !more));
        assert_eq!(round.progress.remaining, remaining);
        progress = round.progress;
    }
    assert_eq!(progress.after, Some(Place { image: 0, account_id: account(119) }));
}

#[tokio::test]
async fn each_of_several_images_is_a_round_with_a_report_of_its_own() {
    let aws = World { images: vec![shared(A, TARGET), shared(B, TARGET)], ..world() }.aws();
    note_all(&aws, &[gift(A, TARGET), gift(B, TARGET)]);
    let mut progress = Progress::default();
    for (image, more) in [(A, true), (B, false)] {
        let round = round(&aws, &all_images(json!({})), Phase::Check, progress).await.unwrap();
        assert_eq!(round.image.unwrap().image_id.as_str(), image);
        assert_eq!((round.accounts, round.more, round.report_usage), (vec![named(TARGET)], more, true));
        assert_eq!(round.progress.remaining, usize::from(more));
        progress = round.progress;
    }
}

#[tokio::test]
async fn images_that_one_execution_has_no_room_for_remain() {
    let aws = World::default().aws();
    let name = |n: usize| format!("ami-{n:08x}");
    note_all(&aws, &(0..MAX_ROUNDS + 5).map(|n| gift(&name(n), TARGET)).collect::<Vec<Gift>>());
    let round = look_first(&aws, all_images(json!({}))).await;
    assert_eq!((round.more, round.progress.remaining), (true, MAX_ROUNDS + 4));
    let full = Progress { rounds: MAX_ROUNDS, ..round.progress };
    let round = self::round(&aws, &all_images(json!({})), Phase::Check, full).await.unwrap();
    assert_eq!((round.image, round.more, round.progress.remaining), (None, false, MAX_ROUNDS + 4));
}

/// One take-back is bounded; what does not fit follows.
#[tokio::test]
async fn targets_that_do_not_fit_into_one_take_back_follow() {
    let aws = world().aws();
    let large = |n: usize| {
        let name = |p: usize| format!("arn:aws:iam::{}:role/{}{p}", account(n), "r".repeat(60));
        let principal =
            |p: usize| PrincipalChange { principal: PrincipalArn::parse(name(p)).unwrap(), key_arns: vec![] };
        gift_but(A, account(n).as_str(), |gift| gift.target.principal_changes = (0..60).map(principal).collect())
    };
    for targets in [40, 60] {
        note_all(&aws, &(0..targets).map(large).collect::<Vec<Gift>>());
        let round = look_first(&aws, one_image(json!({ "targets": "all" }))).await;
        let fitting = round.accounts.len();
        assert!((2..40).contains(&fitting), "{fitting}");
        assert_eq!((round.more, round.report_usage, round.progress.remaining), (true, false, targets - fitting));
        assert_eq!(round.progress.after, Some(Place { image: 0, account_id: account(fitting - 1) }));
    }
}

#[tokio::test]
async fn what_an_image_kept_before_is_judged_anew() {
    let aws = world().aws();
    note_all(&aws, &[gift(A, TARGET)]);
    let mut progress = Progress::default();
    let of_another_image = [TARGET, OTHER]
        .map(|account| json!({ "accountId": account, "imageId": B }))
        .map(|kept| serde_json::from_value(kept).unwrap());
    progress.done.kept.extend(of_another_image);
    progress.phase = Phase::Revoke;
    let round = round(&aws, &one_image(json!({})), Phase::Revoke, progress).await.unwrap();
    let kept: Vec<&str> = round.progress.done.kept.iter().map(|kept| kept.account_id.as_str()).collect();
    assert_eq!(kept, [OTHER]);
}

#[tokio::test]
async fn what_the_last_round_came_to_is_told_with_the_others() {
    let aws = world().aws();
    let last = json!({ "taken": [{ "call": "kms:PutKeyPolicy", "accountId": SOURCE, "resource": KEY }],
        "left": [], "kept": [], "unlisted": { "taken": 0, "left": 0, "kept": 0 } });
    let input = json!({ "name": "revoke-1", "id": "arn", "startTime": "2026-11-27T20:00:00.000Z",
        "request": one_image(json!({})), "phase": "revoke",
        "progress": Progress { phase: Phase::Revoke, ..Progress::default() }, "last": last });
    let round = resolve_revoke(&aws.hub, serde_json::from_value(input).unwrap()).await.unwrap();
    assert_eq!(round.progress.done.taken.len(), 1);
}

#[tokio::test]
async fn where_nothing_is_noted_of_all_images_there_is_no_image_but_a_plan_that_says_so() {
    for (more, phase, plan) in [
        (json!({}), Phase::Check, false),
        (json!({ "action": "plan" }), Phase::Check, true),
        (json!({ "planHash": "0".repeat(64) }), Phase::Check, true),
        (json!({ "planHash": "0".repeat(64) }), Phase::Revoke, false),
    ] {
        let round = round(&world().aws(), &all_images(more.clone()), phase, Progress::default()).await.unwrap();
        assert_eq!((round.plan, round.image, round.more), (plan, None, false), "{more}");
        assert_eq!(round.plan_hash.is_some(), more["planHash"].is_string(), "{more}");
        assert_eq!((round.ask_usage, round.report_usage, round.take_back), (false, false, None), "{more}");
    }
}

#[tokio::test]
async fn what_was_given_of_an_image_since_is_not_among_all_images() {
    let aws = World { images: vec![shared(A, TARGET), shared(B, TARGET)], ..world() }.aws();
    note(&aws, &gift(A, TARGET), &noted_since());
    note(&aws, &gift(B, TARGET), &json!({}));
    let round = revoke(&aws, all_images(json!({}))).await;
    assert_eq!((round.image.unwrap().image_id.as_str(), round.more), (B, false));
    assert_eq!(round.progress.given_since, [named(TARGET)]);
    assert_eq!(marked(&aws), [(TARGET.to_owned(), B.to_owned())]);
}
