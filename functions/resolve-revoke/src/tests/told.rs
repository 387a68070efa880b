//! What targets have of ami-share's making that no note names: it stays, and is told of.

use super::*;

/// Where the target has the managed policy attached to so many roles, and nothing else of ours.
fn attached(roles: usize) -> World {
    let roles = (0..roles).map(|n| format!("role-{n}")).collect();
    World { attached: vec![(TARGET, roles)], keys: vec![], ..world() }
}

/// What is said of roles.
async fn said(world: World, gifts: &[(Gift, Value)]) -> Vec<String> {
    let aws = world.aws();
    gifts.iter().for_each(|(gift, more)| note(&aws, gift, more));
    let round = revoke(&aws, one_image(json!({}))).await;
    left(&round)
        .into_iter()
        .filter(|(_, error, _)| *error == "NotNoted")
        .map(|(_, _, cause)| cause.to_owned())
        .collect()
}

#[tokio::test]
async fn principals_with_the_managed_policy_are_named_with_what_takes_it() {
    for (roles, named, others) in [
        (1, "attached to role role-0, and no note", false),
        (3, "attached to role role-0, role role-1, role role-2, and no note", true),
        (4, "attached to role role-0, role role-1, role role-2, 1 more, and no note", true),
        (6, "attached to role role-0, role role-1, role role-2, 3 more, and no note", true),
    ] {
        let [said] = &said(attached(roles), &[]).await[..] else { panic!("{roles}") };
        assert!(said.contains(named) && said.contains("aws iam detach-role-policy --role-name role-0 "), "{said}");
        assert_eq!(said.contains("and the same for the others"), others, "{said}");
    }
    assert_eq!(said(attached(0), &[]).await, [""; 0]);
    assert_eq!(said(World { attached: vec![], ..attached(0) }, &[]).await, [""; 0], "there is no such policy");
}

#[tokio::test]
async fn users_are_named_too() {
    let aws = Aws::answering(|call| match call.operation.as_str() {
        "ListEntitiesForPolicy" => Some(Ok(iam::entities(&[], &["ann".to_owned()]))),
        _ => world().answer(call),
    });
    let round = revoke(&aws, one_image(json!({}))).await;
    let found = left(&round).iter().any(|(_, _, cause)| cause.contains("aws iam detach-user-policy --user-name ann "));
    assert!(found, "{round:?}");
}

#[tokio::test]
async fn what_a_note_names_is_noted_and_is_looked_for_only_where_no_share_stands() {
    let app = || World { attached: vec![(TARGET, vec!["app".to_owned()])], ..world() };
    let user = gift_but(A, TARGET, |gift| {
        let principal = PrincipalArn::parse(format!("arn:aws:iam::{TARGET}:user/app")).unwrap();
        gift.target.principal_changes[0].principal = principal;
    });
    assert_eq!(said(app(), &[(gift(A, TARGET), json!({}))]).await.len(), 0);
    assert_eq!(said(app(), &[(user.clone(), json!({}))]).await.len(), 1);
    let stands = (gift(B, TARGET), json!({}));
    assert_eq!(said(app(), &[(user.clone(), json!({})), stands.clone()]).await.len(), 0);
    let goes = (gift(B, TARGET), going());
    assert_eq!(said(app(), &[(user.clone(), json!({})), goes]).await.len(), 0, "a note of another image names it");
    let needed = World { images: vec![shared(A, TARGET), shared(B, TARGET)], ..app() };
    assert_eq!(said(needed, &[(user, json!({}))]).await.len(), 0);
}

#[tokio::test]
async fn a_launch_permission_beside_access_of_ours_is_told_of_where_no_note_is_of_the_image() {
    let key =
        |by_policy: Vec<&'static str>, by_grant: Vec<&'static str>| vec![SharedKey { arn: KEY, by_policy, by_grant }];
    for (permitted, keys, noted, told) in [
        (TARGET, key(vec![TARGET], vec![]), None, true),
        (TARGET, key(vec![], vec![TARGET]), None, true),
        (TARGET, key(vec![OTHER], vec![OTHER]), None, false),
        (OTHER, key(vec![TARGET], vec![]), None, false),
        (TARGET, key(vec![TARGET], vec![]), Some(gift(A, TARGET)), false),
        (TARGET, key(vec![TARGET], vec![]), Some(gift(B, TARGET)), true),
    ] {
        let world = World { images: vec![shared(A, permitted)], keys, ..World::default() };
        let noted: Vec<(Gift, Value)> = noted.into_iter().map(|gift| (gift, json!({}))).collect();
        let said = said(world.clone(), &noted).await;
        assert_eq!(said.len(), usize::from(told), "{world:?}: {noted:?}");
        let command = format!("aws ec2 modify-image-attribute --region eu-west-1 --image-id {A}");
        assert!(said.iter().all(|said| said.contains(&command) && said.contains(KEY)), "{said:?}");
    }
}

/// Whoever has nothing of ours need not have roles to be asked with.
#[tokio::test]
async fn a_target_that_cannot_be_asked_is_told_of_and_is_left_where_it_has_access_of_ours() {
    let nobody = vec![SharedKey { arn: KEY, by_policy: vec![], by_grant: vec![] }];
    let refused = vec![("AssumeRole:222222222222", "AccessDenied")];
    for (keys, refused, is_left, not_asked) in [
        (world().keys, refused.clone(), true, 0),
        (nobody.clone(), refused, false, 1),
        // There is no managed policy in it: it has answered.
        (world().keys, vec![], false, 0),
        (nobody, vec![], false, 0),
    ] {
        let aws = World { keys, refused, ..world() }.aws();
        let round = revoke(&aws, one_image(json!({}))).await;
        assert_eq!(left(&round).iter().any(|(_, error, _)| *error != "NotNoted"), is_left, "{round:?}");
        assert_eq!(round.progress.not_asked.len(), not_asked, "{round:?}");
    }
    for what in ["AssumeRole:222222222222", "iam:ListEntitiesForPolicy"] {
        let aws = World { refused: vec![(what, "Throttling")], ..world() }.aws();
        let round = round(&aws, &one_image(json!({})), Phase::Revoke, Progress::default()).await;
        assert!(matches!(round, Err(Error::Throttled { .. })), "{what}: {round:?}");
    }
}

/// Only who is told what stays needs it looked for.
#[tokio::test]
async fn it_is_looked_for_once_by_who_takes_back_and_by_who_plans() {
    for (more, phase, times) in [
        (json!({}), Phase::Check, 0),
        (json!({}), Phase::Revoke, 1),
        (json!({ "action": "plan" }), Phase::Check, 1),
        (json!({ "planHash": "0".repeat(64) }), Phase::Check, 1),
    ] {
        for request in [one_image(more.clone()), all_images(more.clone())] {
            let aws = attached(1).aws();
            round(&aws, &request, phase, Progress::default()).await.unwrap();
            assert_eq!(aws.calls_of("ListEntitiesForPolicy").len(), times, "{request}, {phase:?}");
        }
    }
}

/// All images are asked for of the target, and none is noted of it.
#[tokio::test]
async fn what_a_stranger_has_is_in_its_plan_and_in_what_is_left_after_the_first_round() {
    let aws = attached(1).aws();
    let of_both = |more: Value| all_images(request(json!({ "targets": [TARGET, OTHER] }), more));
    note_all(&aws, &[gift(A, OTHER), gift(B, OTHER)]);
    let plan = look_first(&aws, of_both(json!({ "action": "plan" }))).await;
    assert_eq!((plan.left.len(), plan.progress.done.left.len()), (1, 0));
    assert_eq!(plan.left[0].account_id, Some(named(TARGET)));
    let first = revoke(&aws, of_both(json!({}))).await;
    assert_eq!((first.left.len(), first.progress.done.left.len(), first.more), (0, 1, true));
    assert_eq!(first.progress.done.left, plan.left);
    let next = round(&aws, &of_both(json!({})), Phase::Revoke, first.progress).await.unwrap();
    assert_eq!(next.progress.done.left.len(), 1);
    let looked_at = aws.calls_of("ListEntitiesForPolicy").into_iter().filter(|call| call.account == TARGET);
    assert_eq!(looked_at.count(), 2, "by the plan, and by the first round");
}

/// Where notes stay, each round of them is the last one.
#[tokio::test]
async fn what_was_told_of_a_target_is_not_told_again() {
    let world = World { images: vec![shared(A, OTHER), shared(B, OTHER)], ..attached(1) };
    let aws = world.aws();
    let nothing_else = |image| gift_but(image, TARGET, |gift| gift.target.principal_changes.clear());
    note_all(&aws, &[nothing_else(A), nothing_else(B)]);
    note(&aws, &nothing_else(B), &going());
    let first = revoke(&aws, all_images(json!({}))).await;
    let told = take_back(&first).left.clone();
    assert_eq!(told.len(), 1);
    let mut progress = first.progress;
    progress.done.left.extend(told);
    note(&aws, &nothing_else(A), &going());
    let next = round(&aws, &all_images(json!({})), Phase::Revoke, progress).await.unwrap();
    assert_eq!(take_back(&next).left, []);
}
