//! StartShare with what it calls: EC2's images, profiles, executions and the table.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use ami_share_core::sources::Sources;
use ami_share_mocked::{Answer, Aws, Call, HUB};
use serde_json::json;

use super::*;

const SOURCE: &str = "111111111111";
const OTHER_SOURCE: &str = "444444444444";
const MACHINE: &str = "arn:aws:states:eu-west-1:333333333333:stateMachine:share-ami";
const A: &str = "ami-0000000000000000a";
const B: &str = "ami-0000000000000000b";

/// The images of the sources, by account, and what was started.
#[derive(Default)]
struct World {
    images: BTreeMap<(String, String), Described>,
    profiles: BTreeSet<String>,
    executions: BTreeSet<String>,
    /// Step Functions starts the next one, and its answer is lost.
    loses_a_reply: bool,
}

#[derive(Clone)]
struct Described {
    state: &'static str,
    tags: Vec<(&'static str, String)>,
}

struct Stage {
    aws: Aws,
    world: Arc<Mutex<World>>,
}

impl Stage {
    fn new() -> Self {
        let world = Arc::new(Mutex::new(World::default()));
        let answering = Arc::clone(&world);
        let mut aws = Aws::answering(move |call| answer(&mut answering.lock().unwrap(), call));
        let mut settings = (*aws.hub.settings).clone();
        settings.sources = Sources::parse(&format!("{SOURCE},{OTHER_SOURCE}")).unwrap();
        aws.hub.settings = Arc::new(settings);
        let stage = Self { aws, world };
        stage.world.lock().unwrap().profiles.insert("web".to_owned());
        stage
    }

    fn image(&self, id: &str, state: &'static str, profile: Option<&str>) {
        self.image_of(SOURCE, id, state, profile);
    }

    fn image_of(&self, account: &str, id: &str, state: &'static str, profile: Option<&str>) {
        let tags = profile.map(|profile| (PROFILE_TAG, profile.to_owned())).into_iter().collect();
        let key = (account.to_owned(), id.to_owned());
        self.world.lock().unwrap().images.insert(key, Described { state, tags });
    }

    async fn hears(&self, event: Value) -> Result<Vec<String>, Error> {
        let settings = Settings::new(MACHINE.to_owned(), "/profiles".to_owned()).unwrap();
        let event = ami_share_core::step::decode(event)?;
        let output = start_share(&self.aws.hub, &settings, event).await?;
        Ok(output.started.iter().map(ToString::to_string).collect())
    }

    async fn hears_state(&self, image: &str, state: &str) -> Vec<String> {
        self.hears(state_event(SOURCE, image, state)).await.unwrap()
    }

    async fn hears_tag(&self, image: &str) -> Vec<String> {
        self.hears(tag_event(SOURCE, image)).await.unwrap()
    }

    async fn looks(&self) -> Vec<String> {
        self.hears(schedule()).await.unwrap()
    }

    fn executions(&self) -> Vec<String> {
        self.world.lock().unwrap().executions.iter().cloned().collect()
    }
}

fn state_event(account: &str, image: &str, state: &str) -> Value {
    json!({
        "detail-type": IMAGE_STATE, "source": "aws.ec2", "account": account, "region": "eu-west-1",
        "detail": { "ImageId": image, "State": state },
    })
}

fn tag_event(account: &str, image: &str) -> Value {
    json!({
        "detail-type": TAGS, "source": "aws.tag", "account": account, "region": "eu-west-1",
        "resources": [format!("arn:aws:ec2:eu-west-1::image/{image}")], "detail": {},
    })
}

fn schedule() -> Value {
    json!({
        "detail-type": SCHEDULE, "source": "aws.events", "account": HUB, "region": "eu-west-1", "detail": {},
    })
}

fn answer(world: &mut World, call: &Call) -> Option<Answer> {
    Some(match call.operation.as_str() {
        "DescribeImages" => {
            assert_eq!(call.text("IncludeDisabled"), "true");
            let ids = call.list("ImageId");
            if ids.is_empty() {
                assert_eq!((call.text("Owner.1"), call.text("Filter.1.Name")), ("self", "tag-key"));
                assert_eq!(call.list("Filter.1.Value"), [PROFILE_TAG]);
            }
            let here = world.images.iter().filter(|((account, _), _)| *account == call.account);
            let wanted = |id: &str, image: &Described| match ids.as_slice() {
                [] => image.tags.iter().any(|(key, _)| *key == PROFILE_TAG),
                ids => ids.contains(&id),
            };
            let found: Vec<_> = here.filter(|((_, id), image)| wanted(id, image)).collect();
            if found.is_empty() && !ids.is_empty() {
                return Some(Err("InvalidAMIID.NotFound"));
            }
            // A page each.
            let at: usize = call.text("NextToken").parse().unwrap_or_default();
            let page = if ids.is_empty() { found.get(at..=at).unwrap_or_default() } else { &found[..] };
            let next = (ids.is_empty() && at + 1 < found.len()).then(|| format!("<nextToken>{}</nextToken>", at + 1));
            let images: String = page.iter().map(|((_, id), image)| described(id, image)).collect();
            Ok(format!(
                "<DescribeImagesResponse><imagesSet>{images}</imagesSet>{}</DescribeImagesResponse>",
                next.unwrap_or_default()
            ))
        }
        "GetParameter" => {
            let name = call.text("Name").strip_prefix("/profiles/").unwrap();
            if world.profiles.contains(name) {
                let value = json!({ "targets": [{ "accountId": "222222222222" }] }).to_string();
                Ok(json!({ "Parameter": { "Value": value } }).to_string())
            } else {
                Err("ParameterNotFound")
            }
        }
        "StartExecution" => {
            if !world.executions.insert(call.text("name").to_owned()) {
                Err("ExecutionAlreadyExists")
            } else if std::mem::take(&mut world.loses_a_reply) {
                Err("ServiceUnavailable")
            } else {
                Ok(json!({ "executionArn": "arn", "startDate": 1_795_809_600 }).to_string())
            }
        }
        _ => return None,
    })
}

fn described(id: &str, image: &Described) -> String {
    let tag = |(key, value): &(&str, String)| format!("<item><key>{key}</key><value>{value}</value></item>");
    let tags: String = image.tags.iter().map(tag).collect();
    format!("<item><imageId>{id}</imageId><imageState>{}</imageState><tagSet>{tags}</tagSet></item>", image.state)
}

#[tokio::test]
async fn an_image_that_becomes_available_is_shared_if_its_tag_asks_for_it() {
    let stage = Stage::new();
    stage.image(A, "available", Some("web"));
    stage.image(B, "available", None);
    assert_eq!(stage.hears_state(A, "available").await, [format!("{A}-web")]);
    assert_eq!(stage.hears_state(B, "available").await, [""; 0]);
    assert_eq!(stage.aws.calls_beyond_sessions(), BTreeSet::new());
    let requests = stage.aws.calls_of("StartExecution");
    let request: Value = serde_json::from_str(requests[0].text("input")).unwrap();
    assert_eq!((&request["imageId"], &request["source"]["accountId"]), (&json!(A), &json!(SOURCE)));
}

#[tokio::test]
async fn an_image_that_is_tagged_after_it_became_available_is_shared() {
    let stage = Stage::new();
    stage.image(A, "available", None);
    assert_eq!(stage.hears_state(A, "available").await, [""; 0]);
    stage.image(A, "available", Some("web"));
    assert_eq!(stage.hears_tag(A).await, [format!("{A}-web")]);
}

#[tokio::test]
async fn event_tag_and_look_start_it_once_in_whatever_order() {
    const TELLING: [&str; 3] = ["state", "tag", "look"];
    for first in TELLING {
        for second in TELLING {
            for third in TELLING {
                let stage = Stage::new();
                stage.image(A, "available", Some("web"));
                let mut started = Vec::new();
                for telling in [first, second, third, first] {
                    started.push(match telling {
                        "state" => stage.hears_state(A, "available").await,
                        "tag" => stage.hears_tag(A).await,
                        _ => stage.looks().await,
                    });
                }
                assert_eq!(started.concat(), [format!("{A}-web")], "{first}, {second}, {third}");
                assert_eq!(started[0].len(), 1);
                assert_eq!(stage.aws.calls_of("StartExecution").len(), 1);
            }
        }
    }
}

/// EC2 tells of it once it is.
#[tokio::test]
async fn a_tag_on_an_image_that_is_not_available_starts_nothing() {
    let stage = Stage::new();
    for state in ["pending", "failed", "disabled", "deregistered"] {
        stage.image(A, state, Some("web"));
        assert_eq!(stage.hears_tag(A).await, [""; 0], "{state}");
        assert_eq!(stage.looks().await, [""; 0], "{state}");
    }
    for state in ["failed", "deregistered"] {
        assert_eq!(stage.hears_state(A, state).await, [""; 0], "{state}");
    }
    assert_eq!(stage.hears_tag("ami-0000000000000000c").await, [""; 0], "it is gone");
    stage.image(A, "available", Some("web"));
    assert_eq!(stage.hears_state(A, "available").await.len(), 1);
}

/// Its launch permissions are gone. Step Functions keeps the name of the first execution for 90 days.
#[tokio::test]
async fn an_image_that_is_disabled_and_enabled_again_is_shared_again() {
    for heard in [true, false] {
        let stage = Stage::new();
        stage.image(A, "available", Some("web"));
        stage.hears_state(A, "available").await;
        for enabling in 2..=3 {
            stage.image(A, "disabled", Some("web"));
            for _ in 0..2 {
                let nothing = if heard { stage.hears_state(A, "disabled").await } else { stage.looks().await };
                assert_eq!(nothing, [""; 0]);
            }
            stage.image(A, "available", Some("web"));
            let again = [format!("{A}_{enabling}-web")];
            assert_eq!(if heard { stage.hears_state(A, "available").await } else { stage.looks().await }, again);
            assert_eq!(stage.hears_state(A, "available").await, [""; 0]);
            assert_eq!(stage.looks().await, [""; 0]);
        }
    }
}

#[tokio::test]
async fn an_image_that_had_lost_its_tag_when_it_was_disabled_is_shared_again_with_it() {
    let stage = Stage::new();
    stage.image(A, "available", Some("web"));
    stage.hears_state(A, "available").await;
    stage.image(A, "disabled", None);
    stage.hears_state(A, "disabled").await;
    stage.image(A, "available", None);
    assert_eq!(stage.hears_state(A, "available").await, [""; 0]);
    stage.image(A, "available", Some("web"));
    assert_eq!(stage.hears_tag(A).await, [format!("{A}_2-web")]);
}

#[tokio::test]
async fn a_disabling_is_noted_that_comes_while_an_execution_is_started() {
    let stage = Stage::new();
    let starts = Starts::open(&stage.aws.hub).unwrap();
    let (image, profile) = (ImageId::parse(A).unwrap(), Profile::parse("web".to_owned()).unwrap());
    starts.begin(&image, &profile, 1).await.unwrap();
    starts.disabled(&image).await.unwrap();
    starts.started(&image, &profile, 1, &ExecutionName::parse("first").unwrap()).await.unwrap();
    assert_eq!(starts.due(&image, &profile).await.unwrap(), Some(2));
    // Somebody who is late does not hide it.
    starts.begin(&image, &profile, 2).await.unwrap();
    starts.begin(&image, &profile, 1).await.unwrap();
    starts.started(&image, &profile, 1, &ExecutionName::parse("first").unwrap()).await.unwrap();
    assert_eq!(starts.due(&image, &profile).await.unwrap(), Some(2));
}

#[tokio::test]
async fn another_profile_is_another_start() {
    let stage = Stage::new();
    stage.world.lock().unwrap().profiles.insert("app".to_owned());
    stage.image(A, "available", Some("web"));
    stage.hears_state(A, "available").await;
    stage.image(A, "available", Some("app"));
    assert_eq!(stage.hears_tag(A).await, [format!("{A}-app")]);
    stage.image(A, "available", Some("web"));
    assert_eq!(stage.hears_tag(A).await, [""; 0]);
}

#[tokio::test]
async fn a_look_finds_the_images_of_every_source_that_no_event_told_of() {
    let stage = Stage::new();
    for id in 0..7 {
        stage.image(&format!("ami-0000000000000000{id}"), "available", Some("web"));
    }
    stage.image(A, "available", None);
    stage.image_of(OTHER_SOURCE, B, "available", Some("web"));
    stage.image_of("555555555555", "ami-0000000000000000c", "available", Some("web"));
    stage.hears_state("ami-00000000000000003", "available").await;
    let mut expected: Vec<String> =
        [0, 1, 2, 4, 5, 6].iter().map(|id| format!("ami-0000000000000000{id}-web")).collect();
    expected.push(format!("{B}-web"));
    assert_eq!(stage.looks().await, expected);
    assert_eq!(stage.looks().await, [""; 0]);
    let asked: BTreeSet<String> = stage.aws.calls_of("DescribeImages").into_iter().map(|call| call.account).collect();
    assert_eq!(asked, [SOURCE, OTHER_SOURCE].map(str::to_owned).into());
}

/// How the execution ended is nobody's business here: its report told of it.
#[tokio::test]
async fn what_was_started_is_never_started_by_a_look() {
    let stage = Stage::new();
    stage.image(A, "available", Some("web"));
    stage.hears_tag(A).await;
    // Step Functions has forgotten the name.
    stage.world.lock().unwrap().executions.clear();
    assert_eq!(stage.looks().await, [""; 0]);
    assert_eq!(stage.executions(), [""; 0]);
}

#[tokio::test]
async fn an_image_whose_profile_is_missing_stops_no_other_and_is_tried_by_each_look() {
    let stage = Stage::new();
    stage.image(A, "available", Some("app"));
    stage.image(B, "available", Some("web"));
    for _ in 0..2 {
        let error = stage.hears(schedule()).await.unwrap_err();
        assert_eq!(error.name(), "InvalidRequest");
        assert!(error.to_string().contains("/profiles/app"), "{error}");
    }
    assert_eq!(stage.executions(), [format!("{B}-web")]);
    stage.world.lock().unwrap().profiles.insert("app".to_owned());
    assert_eq!(stage.looks().await, [format!("{A}-app")]);
}

#[tokio::test]
async fn a_look_starts_so_many_that_they_need_not_wait_for_each_other_for_ever() {
    let stage = Stage::new();
    for id in 0..MOST_STARTS + 3 {
        stage.image(&format!("ami-{id:017x}"), "available", Some("web"));
    }
    assert_eq!(stage.looks().await.len(), MOST_STARTS);
    assert_eq!(stage.looks().await.len(), 3);
    assert_eq!(stage.looks().await.len(), 0);
}

/// Lambda calls once more.
#[tokio::test]
async fn a_start_whose_reply_was_lost_is_noted_by_the_next_call() {
    let stage = Stage::new();
    stage.image(A, "available", Some("web"));
    stage.world.lock().unwrap().loses_a_reply = true;
    assert!(stage.hears(state_event(SOURCE, A, "available")).await.is_err());
    assert_eq!(stage.hears_state(A, "available").await, [""; 0]);
    assert_eq!(stage.executions(), [format!("{A}-web")]);
    stage.world.lock().unwrap().executions.clear();
    assert_eq!(stage.looks().await, [""; 0], "it is noted as started");
}

/// The bus of a hub that is not the source has the hub's own images on it.
#[tokio::test]
async fn images_of_an_account_that_is_no_source_are_no_error_and_nobody_asks_for_them() {
    let stage = Stage::new();
    stage.image_of(HUB, A, "available", Some("web"));
    for event in
        [state_event(HUB, A, "available"), state_event(HUB, A, "disabled"), tag_event(HUB, A), tag_event(HUB, B)]
    {
        assert_eq!(stage.hears(event).await.unwrap(), [""; 0]);
    }
    assert_eq!(stage.aws.calls(), []);
}

/// Sharing it could make the next copy.
#[tokio::test]
async fn a_copy_that_ami_share_made_starts_nothing() {
    let stage = Stage::new();
    let tags = vec![(PROFILE_TAG, "web".to_owned()), (EXECUTION_TAG, format!("{B}-web"))];
    let copy = Described { state: "available", tags };
    stage.world.lock().unwrap().images.insert((SOURCE.to_owned(), A.to_owned()), copy);
    assert_eq!(stage.hears_state(A, "available").await, [""; 0]);
    assert_eq!(stage.hears_tag(A).await, [""; 0]);
    assert_eq!(stage.looks().await, [""; 0]);
}

#[tokio::test]
async fn a_tag_that_names_no_profile_is_an_error() {
    let stage = Stage::new();
    stage.image(A, "available", Some("../x"));
    let error = stage.hears(state_event(SOURCE, A, "available")).await.unwrap_err();
    assert_eq!(error.name(), "InvalidRequest");
}

#[test]
fn the_hub_is_the_account_of_the_state_machine() {
    let settings = Settings::new(MACHINE.to_owned(), "/p".to_owned()).unwrap();
    assert_eq!(settings.account.as_str(), HUB);
    assert!(Settings::new("share-ami".to_owned(), "/p".to_owned()).is_err());
}
