//! Whom it asks for what, and what becomes of it where they do not answer.

use std::collections::BTreeSet;

use super::*;

#[tokio::test]
async fn the_policies_of_its_sessions_allow_what_it_calls() {
    let aws = world().aws();
    note_all(&aws, &[gift(A, TARGET)]);
    let elsewhere = gift_but(B, TARGET, |gift| gift.source = source_in("us-east-1"));
    note(&aws, &elsewhere, &going());
    revoke(&aws, one_image(json!({}))).await;
    assert_eq!(aws.calls_beyond_sessions(), BTreeSet::new());
    let in_target: BTreeSet<String> =
        aws.calls().into_iter().filter(|call| call.account == TARGET).map(|call| call.operation).collect();
    assert_eq!(in_target, BTreeSet::from(["ListEntitiesForPolicy".to_owned()]));
    let regions: BTreeSet<String> = aws.calls_of("DescribeImages").into_iter().map(|call| call.region).collect();
    assert_eq!(regions, BTreeSet::from(["eu-west-1".to_owned(), "us-east-1".to_owned()]));
    let of_keys = aws.calls().into_iter().filter(|call| call.service == "kms");
    assert!(of_keys.into_iter().all(|call| call.region == "eu-west-1"));
}

/// What targets may have access to for the image's sake, or for the sake of images that are gone.
#[tokio::test]
async fn keys_are_asked_about_that_the_image_or_a_note_of_what_goes_names() {
    let other = || {
        gift_but(B, TARGET, |gift| {
            gift.target.source_changes.key_arns = vec![key(KEY_2)];
            gift.image.volumes.clear();
        })
    };
    let by_grant = gift_but(B, TARGET, |gift| {
        gift.target.source_changes = SourceChanges { grant_key_arns: vec![key(KEY_2)], ..SourceChanges::default() };
    });
    let elsewhere = gift_but(B, TARGET, |gift| {
        gift.source = source_in("us-east-1");
        gift.target.source_changes.key_arns = vec![key(KEY_2)];
    });
    let found_in_place = gift_but(A, TARGET, |gift| {
        gift.target.source_changes = SourceChanges::default();
        gift.image.volumes[0].key_arn = Some(key(KEY_2));
    });
    let (image, other_image) = (shared(A, TARGET), shared(B, TARGET));
    for (images, gift, attributes, keys) in [
        (vec![image.clone()], None, json!({}), vec![KEY]),
        (vec![], Some(gift(A, TARGET)), json!({}), vec![KEY]),
        (vec![], Some(found_in_place), json!({}), vec![KEY_2]),
        (vec![image.clone()], Some(other()), json!({}), vec![KEY, KEY_2]),
        (vec![image.clone()], Some(by_grant), json!({}), vec![KEY, KEY_2]),
        (vec![image.clone(), other_image.clone()], Some(other()), json!({}), vec![KEY]),
        (vec![image.clone(), other_image], Some(other()), going(), vec![KEY, KEY_2]),
        (vec![image], Some(elsewhere), going(), vec![KEY]),
    ] {
        let aws = World { images, ..world() }.aws();
        gift.iter().for_each(|gift| note(&aws, gift, &attributes));
        revoke(&aws, one_image(json!({}))).await;
        let asked: BTreeSet<String> =
            aws.calls_of("GetKeyPolicy").iter().map(|call| call.text("KeyId").to_owned()).collect();
        assert_eq!(asked.iter().collect::<Vec<_>>(), keys, "{gift:?}, {attributes}");
    }
}

#[tokio::test]
async fn a_key_that_hides_its_policy_may_name_the_target_and_one_that_hides_its_grants_has_none_of_ours() {
    let aws = World { refused: vec![("kms:GetKeyPolicy", "AccessDeniedException")], ..world() }.aws();
    let round = revoke(&aws, one_image(json!({}))).await;
    assert_eq!(take_back(&round).key_changes.len(), 1, "UndoShareKey says why it cannot be read");
    let granted = SharedKey { arn: KEY, by_policy: vec![], by_grant: vec![TARGET] };
    let refused = vec![("kms:ListGrants", "AccessDeniedException")];
    let aws = World { keys: vec![granted], refused, ..world() }.aws();
    assert_eq!(revoke(&aws, one_image(json!({}))).await.take_back, None);
}

#[tokio::test]
async fn an_image_is_gone_by_whatever_ec2_says_of_it_and_a_refusal_says_nothing() {
    for (answer, found) in [
        (Ok("available"), Some(true)),
        (Ok("disabled"), Some(true)),
        (Ok("deregistered"), Some(false)),
        (Err("InvalidAMIID.NotFound"), Some(false)),
        (Err("InvalidAMIID.Unavailable"), Some(false)),
        (Err("UnauthorizedOperation"), None),
    ] {
        let aws = Aws::answering(move |call| match call.operation.as_str() {
            "DescribeImages" if !call.list("ImageId").is_empty() => {
                Some(answer.map(|state| ec2::images_set([(A, state, vec![])].into_iter())))
            }
            _ => world().answer(call),
        });
        note_all(&aws, &[gift(A, TARGET)]);
        let round = round(&aws, &one_image(json!({})), Phase::Check, Progress::default()).await;
        match round {
            Ok(round) => assert_eq!(Some(round.image_found), found, "{answer:?}"),
            Err(error) => {
                assert!(found.is_none() && matches!(error, Error::AccessDenied { .. }), "{answer:?}: {error}");
            }
        }
    }
}

#[tokio::test]
async fn an_image_that_goes_meanwhile_or_is_disabled_is_permitted_to_nobody_and_a_refusal_says_nothing() {
    for (code, known) in
        [("InvalidAMIID.NotFound", true), ("InvalidAMIID.Unavailable", true), ("UnauthorizedOperation", false)]
    {
        let aws = World { refused: vec![("ec2:DescribeImageAttribute", code)], ..world() }.aws();
        match round(&aws, &one_image(json!({})), Phase::Revoke, Progress::default()).await {
            Ok(round) => assert!(known && round.progress.not_ours.is_empty(), "{code}"),
            Err(error) => assert!(!known && matches!(error, Error::AccessDenied { .. }), "{code}: {error}"),
        }
    }
}

/// One source that cannot be asked does not keep the others'.
#[tokio::test]
async fn a_source_that_cannot_be_asked_is_an_error_of_one_image_and_left_of_all() {
    let refused = |code| World { refused: vec![("AssumeRole:111111111111", code)], ..world() }.aws();
    let aws = refused("AccessDenied");
    note_all(&aws, &[gift(A, TARGET), gift(B, TARGET)]);
    let one = round(&aws, &one_image(json!({})), Phase::Revoke, Progress::default()).await;
    assert!(matches!(one, Err(Error::AccessDenied { .. })), "{one:?}");
    let all = revoke(&aws, all_images(json!({}))).await;
    assert_eq!((all.accounts.len(), all.more), (0, true));
    let [(account, error, cause)] = left(&all)[..] else { panic!("{all:?}") };
    assert_eq!((account, error), (TARGET, "AccessDenied"));
    assert!(cause.contains("cannot be assumed"), "{cause}");
    assert!(!take_back(&all).is_something());
    let aws = refused("Throttling");
    note_all(&aws, &[gift(A, TARGET)]);
    let all = round(&aws, &all_images(json!({})), Phase::Revoke, Progress::default()).await;
    assert!(matches!(all, Err(Error::Throttled { .. })), "{all:?}");
}

/// It may be another one that was meant.
#[tokio::test]
async fn an_image_that_is_not_there_is_refused_where_nothing_is_noted_of_it() {
    let gone = || World { images: vec![], ..world() };
    let refused =
        async |aws: &Aws, progress: Progress| match round(aws, &one_image(json!({})), Phase::Check, progress).await {
            Ok(_) => false,
            Err(Error::ImageNotFound { image, .. }) => image.as_str() == A,
            Err(error) => panic!("{error}"),
        };
    assert!(refused(&gone().aws(), Progress::default()).await);
    let of_another = gone().aws();
    note_all(&of_another, &[gift(B, TARGET)]);
    assert!(refused(&of_another, Progress::default()).await);
    assert!(!refused(&world().aws(), Progress::default()).await, "it is there");
    let of_others = gone().aws();
    note_all(&of_others, &[gift(A, OTHER)]);
    assert!(!refused(&of_others, Progress::default()).await);
    let later = Progress {
        order: vec![SourceImage { image_id: ImageId::parse(A).unwrap(), ..image(0) }],
        after: Some(Place { image: 0, account_id: account(0) }),
        ..Progress::default()
    };
    assert!(!refused(&gone().aws(), later).await, "it was there when the execution began");
    // The index follows its table after a moment only.
    for attributes in [json!({}), noted_since(), json!({ "gift": { "S": "?" } })] {
        let aws = Aws::answering(move |call| match call.arguments.get("IndexName") {
            Some(_) => Some(Ok(json!({ "Count": 0, "ScannedCount": 0, "Items": [] }).to_string())),
            None => gone().answer(call),
        });
        note(&aws, &gift(A, TARGET), &attributes);
        assert!(!refused(&aws, Progress::default()).await, "{attributes}");
    }
}

/// The others need not wait for that.
#[tokio::test]
async fn what_a_target_has_stays_where_a_note_of_it_cannot_be_read() {
    for request in [one_image(json!({ "targets": [TARGET, OTHER] })), all_images(json!({ "targets": [TARGET, OTHER] }))]
    {
        let aws = world().aws();
        note(&aws, &gift(A, TARGET), &json!({ "gift": { "S": "?" } }));
        note(&aws, &gift(A, OTHER), &json!({}));
        let round = revoke(&aws, request.clone()).await;
        assert_eq!(round.accounts, [named(OTHER)], "{request}");
        let at_once = round.take_back.iter().flat_map(|take_back| &take_back.left);
        let left: Vec<_> = at_once.chain(&round.progress.done.left).collect();
        assert_eq!(left.len(), 1, "{left:?}");
        assert_eq!((left[0].account_id.as_ref(), left[0].error.as_str()), (Some(&named(TARGET)), "Aws"));
    }
}

#[tokio::test]
async fn a_table_that_does_not_answer_is_an_error() {
    for code in ["ThrottlingException", "AccessDeniedException"] {
        let aws = Aws::answering(move |call| (call.service == "dynamodb").then_some(Err(code)));
        let round = round(&aws, &one_image(json!({})), Phase::Check, Progress::default()).await;
        assert!(matches!(round, Err(Error::Throttled { .. } | Error::AccessDenied { .. })), "{round:?}");
    }
}

#[tokio::test]
async fn a_request_that_cannot_be_read_is_refused_before_anybody_is_asked() {
    let aws = world().aws();
    let refused = round(&aws, &one_image(json!({ "targets": "everybody" })), Phase::Check, Progress::default()).await;
    assert!(matches!(refused, Err(Error::InvalidRequest(_))), "{refused:?}");
    assert_eq!(aws.calls(), []);
}
