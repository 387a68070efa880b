use ami_share_core::{
    hub::Actions,
    ids::{ExecutionName, Region},
};
use ami_share_mocked::{
    Answer, Aws, Call,
    ec2::{self, SharedImage},
};

use super::*;

const TARGET: &str = "222222222222";
const KEY: &str = "arn:aws:kms:eu-west-1:111111111111:key/1";
const ORGANIZATION: &str = "arn:aws:organizations::999999999999:organization/o-0123456789";
const UNIT: &str = "arn:aws:organizations::999999999999:ou/o-0123456789/ou-0123-01234567";

fn source() -> Source {
    Source { account_id: AccountId::parse("111111111111").unwrap(), region: Region::parse("eu-west-1").unwrap() }
}

fn account(id: &str) -> AccountId {
    AccountId::parse(id).unwrap()
}

fn image(id: &str) -> ImageId {
    ImageId::parse(id).unwrap()
}

fn key(arn: &str) -> KeyArn {
    KeyArn::parse(arn).unwrap()
}

fn shared(id: &'static str, key_arn: Option<&'static str>, with: &'static str) -> SharedImage {
    SharedImage { region: "eu-west-1", id, key_arn, with }
}

/// EC2 of the source account.
async fn ec2(answer: impl Fn(&Call) -> Option<Answer> + Send + Sync + 'static) -> (Aws, Client) {
    let aws = Aws::answering(answer);
    let Source { account_id, region } = source();
    let execution = ExecutionName::parse("nightly-0123abcd").unwrap();
    let config = aws.hub.as_source(&account_id, &region, &execution, Actions::NONE).await.unwrap();
    (aws, Client::new(&config))
}

#[tokio::test]
async fn each_account_has_its_own_images_and_the_keys_of_the_source_under_them() {
    let others_key = "arn:aws:kms:eu-west-1:444444444444:key/2";
    let images = [
        shared("ami-0000000a", Some(KEY), TARGET),
        shared("ami-0000000b", Some(others_key), TARGET),
        shared("ami-0000000c", None, TARGET),
        shared("ami-0000000d", Some(KEY), "555555555555"),
    ];
    let (aws, ec2) = ec2(move |call| ec2::answer(&images, call)).await;
    let accounts = BTreeSet::from([account(TARGET), account("444444444444")]);
    let found = by_account(&ec2, &source(), &accounts).await.unwrap();
    let expected = Images::from([
        (image("ami-0000000a"), BTreeSet::from([key(KEY)])),
        (image("ami-0000000b"), BTreeSet::new()),
        (image("ami-0000000c"), BTreeSet::new()),
    ]);
    assert_eq!(found, BTreeMap::from([(account(TARGET), expected), (account("444444444444"), Images::new())]));
    assert!(aws.calls_of("DescribeImages").iter().all(|call| call.text("Owner.1") == "self"));
}

/// EC2 goes on naming it for some time.
#[tokio::test]
async fn nobody_can_launch_an_image_that_was_deregistered() {
    let (_aws, ec2) = ec2(|call| match call.operation.as_str() {
        "DescribeImages" => {
            let images = [("ami-0000000a", "deregistered", vec![]), ("ami-0000000b", "disabled", vec![])];
            Some(Ok(ec2::images_set(images.into_iter())))
        }
        _ => None,
    })
    .await;
    let found = by_account(&ec2, &source(), &BTreeSet::from([account(TARGET)])).await.unwrap();
    assert_eq!(found[&account(TARGET)].keys().collect::<Vec<_>>(), [&image("ami-0000000b")]);
}

#[tokio::test]
async fn images_under_our_keys_may_be_open_to_an_organization_or_a_unit() {
    let images = [
        shared("ami-0000000a", Some(KEY), ORGANIZATION),
        shared("ami-0000000b", Some(KEY), UNIT),
        shared("ami-0000000c", Some(KEY), TARGET),
        shared("ami-0000000d", None, ORGANIZATION),
    ];
    let (aws, ec2) = ec2(move |call| ec2::answer(&images, call)).await;
    let found = by_organization(&ec2, &source()).await.unwrap();
    let keys = BTreeSet::from([key(KEY)]);
    assert_eq!(found, Images::from([(image("ami-0000000a"), keys.clone()), (image("ami-0000000b"), keys)]));
    assert_eq!(aws.calls_of("DescribeImageAttribute").len(), 3, "no key stays for an image that has none");
}

#[tokio::test]
async fn an_image_that_goes_meanwhile_is_open_to_nobody_and_a_refusal_is_an_error() {
    for (code, gone) in
        [("InvalidAMIID.NotFound", true), ("InvalidAMIID.Unavailable", true), ("UnauthorizedOperation", false)]
    {
        let images = [shared("ami-0000000a", Some(KEY), ORGANIZATION)];
        let (_aws, ec2) = ec2(move |call| match call.operation.as_str() {
            "DescribeImageAttribute" => Some(Err(code)),
            _ => ec2::answer(&images, call),
        })
        .await;
        match by_organization(&ec2, &source()).await {
            Ok(found) => assert!(gone && found.is_empty(), "{code}: {found:?}"),
            Err(error) => assert!(!gone && matches!(error, Error::AccessDenied { .. }), "{code}: {error}"),
        }
    }
}

#[tokio::test]
async fn snapshots_that_go_meanwhile_are_looked_at_again_and_a_refusal_is_an_error() {
    for (code, goes) in [("InvalidSnapshot.NotFound", true), ("UnauthorizedOperation", false)] {
        let (_aws, ec2) = ec2(move |call| (call.service == "ec2").then_some(Err(code))).await;
        let error = keys(&ec2, &source(), vec!["snap-0000000a".to_owned()]).await.unwrap_err();
        assert_eq!(matches!(error, Error::NotYetVisible { .. }), goes, "{error}");
        assert_eq!(matches!(error, Error::AccessDenied { .. }), !goes, "{error}");
    }
}

#[tokio::test]
async fn more_images_than_one_function_can_ask_about_are_an_error() {
    for images in [1_500, 1_501] {
        let (aws, ec2) = ec2(move |call| match call.operation.as_str() {
            "DescribeImages" => {
                let ids: Vec<String> = (0..images).map(|n| format!("ami-{n:08x}")).collect();
                let images = ids.iter().map(|id| (id.as_str(), "available", vec!["snap-0000000a".to_owned()]));
                Some(Ok(ec2::images_set(images)))
            }
            "DescribeSnapshots" => Some(Ok(ec2::snapshot_set([("snap-0000000a".to_owned(), Some(KEY))].into_iter()))),
            "DescribeImageAttribute" => Some(Ok(ec2::launch_permission(std::iter::empty()))),
            _ => None,
        })
        .await;
        let found = by_organization(&ec2, &source()).await;
        let asked = aws.calls_of("DescribeImageAttribute").len();
        if images == 1_500 {
            assert_eq!((found.unwrap(), asked), (Images::new(), 1_500));
        } else {
            assert!(matches!(found, Err(Error::QuotaExceeded { .. })) && asked == 0);
        }
    }
}

#[test]
fn an_image_has_the_keys_under_its_encrypted_snapshots() {
    let image = |id: &str| ImageId::parse(id).unwrap();
    let key = |id: &str| KeyArn::parse(format!("arn:aws:kms:eu-west-1:111111111111:key/{id}")).unwrap();
    let snapshots = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect();
    let images = BTreeMap::from([
        (image("ami-0000000a"), snapshots(&["snap-1", "snap-2", "snap-unencrypted"])),
        (image("ami-0000000b"), snapshots(&["snap-unencrypted"])),
    ]);
    let keys = BTreeMap::from([
        ("snap-1".to_owned(), key("1")),
        ("snap-2".to_owned(), key("2")),
        ("snap-4".to_owned(), key("3")),
    ]);
    let expected = Images::from([
        (image("ami-0000000a"), BTreeSet::from([key("1"), key("2")])),
        (image("ami-0000000b"), BTreeSet::new()),
    ]);
    assert_eq!(under(images, &keys), expected);
}
