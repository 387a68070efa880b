//! What an organization forbids: service control policies, and what a refused call is told of them.

use super::stage::*;
use crate::accounts::{allow, as_role, role, root};
use ami_share_sandbox::world::{Organization, ServiceControlPolicy};
use aws_sdk_ec2::operation::run_instances::builders::RunInstancesFluentBuilder;
use aws_sdk_ec2::types::{
    AllowedImagesSettingsEnabledState, HttpTokensState, ImageCriterionRequest, InstanceMetadataOptionsRequest,
    InstanceStateName, ManagedBy, ResourceType, Tag, TagSpecification,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;

const MANAGEMENT: &str = "999999999999";
const POLICY_ARN: &str = "arn:aws:organizations::999999999999:policy/o-abcdefghij/service_control_policy/p-guard";

/// Puts the account into an organization with these policies at each level.
fn limit(stage: &Stage, account: &str, levels: &[&[&Value]]) {
    let policy = |statement: &&Value| {
        let document = json!({ "Version": "2012-10-17", "Statement": [statement] });
        ServiceControlPolicy::new("p-guard", &document).expect("a good policy")
    };
    let place = Organization {
        organization_arn: format!("arn:aws:organizations::{MANAGEMENT}:organization/o-abcdefghij"),
        service_control_policies: levels.iter().map(|level| level.iter().map(policy).collect()).collect(),
        ..Organization::default()
    };
    stage.sandbox.world().set_organization(account, Some(place));
}

fn full_access() -> Value {
    ServiceControlPolicy::full_access().document().json()["Statement"][0].clone()
}

fn require_imds_v2() -> Value {
    json!({
        "Sid": "RequireImdsV2", "Effect": "Deny", "Action": "ec2:RunInstances",
        "Resource": "arn:aws:ec2:*:*:instance/*",
        "Condition": { "StringNotEquals": { "ec2:MetadataHttpTokens": "required" } },
    })
}

fn with_tokens(call: RunInstancesFluentBuilder) -> RunInstancesFluentBuilder {
    call.metadata_options(InstanceMetadataOptionsRequest::builder().http_tokens(HttpTokensState::Required).build())
}

/// An image of B's own, and a role of B that may do everything in EC2.
async fn launcher(stage: &Stage) -> (String, aws_sdk_ec2::Client) {
    let snapshot = stage.snapshot(&stage.b, None).await;
    let image = stage.image(&stage.b, "plain", &[&snapshot]).await;
    let launcher = stage.role(B, "launcher", json!([{ "Effect": "Allow", "Action": "ec2:*", "Resource": "*" }])).await;
    (image, launcher)
}

fn encoded(message: &str) -> &str {
    message.split_once("Encoded authorization failure message: ").expect("an encoded message").1
}

#[tokio::test]
async fn a_launch_that_a_service_control_policy_denies_is_told_so_and_its_message_names_the_statement() {
    let stage = Stage::new().await;
    let (image, launcher) = launcher(&stage).await;
    limit(&stage, B, &[&[&full_access()], &[&full_access(), &require_imds_v2()]]);
    let refused = launch(&launcher, &image).send().await;
    assert_eq!(code(launch(&launcher, &image).send().await), "UnauthorizedOperation");
    let refused = message(refused);
    let expected = format!(
        "You are not authorized to perform this operation. User: arn:aws:sts::{B}:assumed-role/launcher/session is not \
         authorized to perform: ec2:RunInstances on resource: arn:aws:ec2:{REGION}:{B}:instance/* with an explicit deny \
         in a service control policy: {POLICY_ARN}. Encoded authorization failure message: "
    );
    assert!(refused.starts_with(&expected), "{refused}");
    assert!(!encoded(&refused).contains("RequireImdsV2"));
    assert_eq!(code(with_tokens(launch(&launcher, &image)).send().await), "no error");

    let sts = as_role(&stage.sandbox, &format!("arn:aws:iam::{B}:role/launcher")).sts;
    let decode = || sts.decode_authorization_message().encoded_message(encoded(&refused));
    assert_eq!(code(decode().send().await), "AccessDenied");
    let both = json!([{ "Effect": "Allow", "Action": ["ec2:*", "sts:DecodeAuthorizationMessage"], "Resource": "*" }]);
    stage.set_role_policy(B, "launcher", both).await;
    let decoded: Value = serde_json::from_str(decode().send().await.unwrap().decoded_message().unwrap()).unwrap();
    assert_eq!((&decoded["allowed"], &decoded["explicitDeny"]), (&json!(false), &json!(true)));
    let matched = &decoded["matchedStatements"]["items"];
    assert_eq!((matched.as_array().unwrap().len(), &matched[0]["statementId"]), (1, &json!("RequireImdsV2")));
    assert_eq!(matched[0]["conditions"]["items"][0]["key"], "ec2:MetadataHttpTokens");
    let context = &decoded["context"];
    assert_eq!(
        (&context["action"], &context["resource"]),
        (&json!("ec2:RunInstances"), &json!(format!("arn:aws:ec2:{REGION}:{B}:instance/*")))
    );
    let keys = context["conditions"]["items"].as_array().unwrap();
    let tokens = json!({ "key": "ec2:MetadataHttpTokens", "values": { "items": [{ "value": "optional" }] } });
    assert!(keys.contains(&tokens), "{keys:?}");

    let other = root(&stage.sandbox, A).sts.decode_authorization_message();
    assert_eq!(code(other.encoded_message(encoded(&refused)).send().await), "InvalidAuthorizationMessageException");
    let garbled = sts.decode_authorization_message().encoded_message("of no use").send().await;
    assert_eq!(code(garbled), "InvalidAuthorizationMessageException");
}

#[tokio::test]
async fn a_call_without_a_resource_is_refused_without_an_encoded_message() {
    let stage = Stage::new().await;
    let (_, launcher) = launcher(&stage).await;
    let elsewhere = json!({
        "Sid": "OneRegion", "Effect": "Deny", "NotAction": "iam:*", "Resource": "*",
        "Condition": { "StringNotEquals": { "aws:RequestedRegion": "us-east-1" } },
    });
    limit(&stage, B, &[&[&full_access(), &elsewhere]]);
    assert_eq!(
        message(launcher.describe_images().send().await),
        format!(
            "You are not authorized to perform this operation. User: arn:aws:sts::{B}:assumed-role/launcher/session is \
             not authorized to perform: ec2:DescribeImages with an explicit deny in a service control policy: {POLICY_ARN}"
        )
    );
}

#[tokio::test]
async fn what_some_level_does_not_allow_is_refused_whatever_identity_policies_say() {
    let stage = Stage::new().await;
    let (image, launcher) = launcher(&stage).await;
    let reads = json!({ "Effect": "Allow", "Action": ["ec2:Describe*", "iam:*", "sts:*"], "Resource": "*" });
    limit(&stage, B, &[&[&full_access()], &[&reads]]);
    assert_eq!(code(launcher.describe_images().send().await), "no error");
    let refused = message(launch(&launcher, &image).send().await);
    assert!(refused.contains("because no service control policy allows the ec2:RunInstances action"), "{refused}");
    let both = json!([{ "Effect": "Allow", "Action": ["ec2:*", "sts:DecodeAuthorizationMessage"], "Resource": "*" }]);
    stage.set_role_policy(B, "launcher", both).await;
    let sts = as_role(&stage.sandbox, &format!("arn:aws:iam::{B}:role/launcher")).sts;
    let decoded = sts.decode_authorization_message().encoded_message(encoded(&refused)).send().await.unwrap();
    let decoded: Value = serde_json::from_str(decoded.decoded_message().unwrap()).unwrap();
    assert_eq!((&decoded["explicitDeny"], &decoded["matchedStatements"]["items"]), (&json!(false), &json!([])));
}

#[tokio::test]
async fn a_policy_that_asks_for_tags_is_met_by_tags_of_the_request() {
    let stage = Stage::new().await;
    let (image, launcher) = launcher(&stage).await;
    let tagged = json!({
        "Sid": "AskForTeam", "Effect": "Deny", "Action": "ec2:RunInstances", "Resource": "arn:aws:ec2:*:*:instance/*",
        "Condition": { "Null": { "aws:RequestTag/team": "true" } },
    });
    limit(&stage, B, &[&[&full_access(), &tagged]]);
    assert_eq!(code(launch(&launcher, &image).send().await), "UnauthorizedOperation");
    let tag = Tag::builder().key("team").value("red").build();
    let tags = TagSpecification::builder().resource_type(ResourceType::Instance).tags(tag).build();
    assert_eq!(code(launch(&launcher, &image).tag_specifications(tags).send().await), "no error");
}

#[tokio::test]
async fn root_of_a_member_is_limited_and_the_management_account_is_not() {
    let stage = Stage::new().await;
    let deny = json!({ "Effect": "Deny", "Action": "kms:*", "Resource": "*" });
    for account in [B, MANAGEMENT] {
        limit(&stage, account, &[&[&full_access(), &deny]]);
    }
    let refused = message(stage.kms(B).list_keys().send().await);
    assert!(
        refused.ends_with(&format!("with an explicit deny in a service control policy: {POLICY_ARN}")),
        "{refused}"
    );
    assert_eq!(code(stage.kms(MANAGEMENT).list_keys().send().await), "no error");
}

#[tokio::test]
async fn a_launch_dies_where_a_service_control_policy_denies_the_use_of_its_key() {
    let stage = Stage::new().await;
    let shared = stage.shared_image().await;
    let keys: Vec<&str> = shared.keys.iter().map(String::as_str).collect();
    let launcher = stage.role(B, "launcher", launcher_policy(&keys, &ON_SOURCE_KEY)).await;
    let deny = json!({
        "Sid": "NoForeignKeys", "Effect": "Deny", "Action": "kms:Decrypt", "Resource": "*",
        "Condition": { "StringEquals": { "aws:ResourceAccount": A } },
    });
    limit(&stage, B, &[&[&full_access(), &deny]]);
    let died = outcome(&launcher, launch(&launcher, &shared.image)).await;
    assert_eq!(state(&died), InstanceStateName::Terminated);
    // A service-linked role is not limited.
    let iam = stage.iam(B);
    let linked = iam.create_service_linked_role().aws_service_name("autoscaling.amazonaws.com").send().await.unwrap();
    let sts = as_role(&stage.sandbox, linked.role().unwrap().arn());
    let refused = message(sts.kms.describe_key().key_id(keys[0]).send().await);
    assert!(!refused.contains("service control policy"), "{refused}");
}

#[tokio::test]
async fn the_simulator_counts_service_control_policies_without_conditions_only() {
    let stage = Stage::new().await;
    let admin = root(&stage.sandbox, B);
    let worker = role(&admin, "worker", &format!("arn:aws:iam::{B}:root")).await;
    allow(&admin, "worker", json!([{ "Effect": "Allow", "Action": "kms:*", "Resource": "*" }])).await;
    let mut deny = json!({ "Effect": "Deny", "Action": "kms:Decrypt", "Resource": "*" });
    for (condition, counted) in
        [(Value::Null, true), (json!({ "StringEquals": { "aws:RequestedRegion": REGION } }), false)]
    {
        if !condition.is_null() {
            deny["Condition"] = condition;
        }
        limit(&stage, B, &[&[&full_access(), &deny], &[&full_access()]]);
        // The simulator itself is not denied.
        let answer = admin.iam.simulate_principal_policy().policy_source_arn(&worker).action_names("kms:Decrypt");
        let answer = answer.send().await.unwrap();
        let result = &answer.evaluation_results()[0];
        let allowed = result.organizations_decision_detail().unwrap().allowed_by_organizations();
        assert_eq!(allowed, !counted, "{deny}");
        assert_eq!(result.eval_decision().as_str(), if counted { "implicitDeny" } else { "allowed" });
    }
}

#[tokio::test]
async fn allowed_amis_hide_images_of_others_that_meet_no_criterion() {
    let stage = Stage::new().await;
    let shared = stage.shared_image().await;
    let snapshot = stage.snapshot(&stage.b, None).await;
    let own = stage.image(&stage.b, "own", &[&snapshot]).await;
    let allow = async |provider: &str| {
        let criterion = ImageCriterionRequest::builder().image_providers(provider).build();
        stage.b.replace_image_criteria_in_allowed_images_settings().image_criteria(criterion).send().await.unwrap();
    };
    let set = async |state: AllowedImagesSettingsEnabledState| {
        stage.b.enable_allowed_images_settings().allowed_images_settings_state(state).send().await.unwrap();
    };
    let seen = async || {
        let found = stage.b.describe_images().send().await.unwrap().images.unwrap_or_default();
        let verdict = |image: aws_sdk_ec2::types::Image| (image.image_id.unwrap_or_default(), image.image_allowed);
        found.into_iter().map(verdict).collect::<BTreeMap<_, _>>()
    };
    let (others, ours) = (shared.image.clone(), own.clone());
    let of =
        |verdicts: &[(&String, Option<bool>)]| verdicts.iter().map(|(id, allowed)| ((*id).clone(), *allowed)).collect();
    assert_eq!(stage.b.get_allowed_images_settings().send().await.unwrap().state(), Some("disabled"));
    assert_eq!(seen().await, of(&[(&others, None), (&ours, None)]));

    allow("amazon").await;
    set(AllowedImagesSettingsEnabledState::AuditMode).await;
    assert_eq!(seen().await, of(&[(&others, Some(false)), (&ours, Some(true))]));
    assert_eq!(code(launch(&stage.b, &others).dry_run(true).send().await), "DryRunOperation");

    set(AllowedImagesSettingsEnabledState::Enabled).await;
    assert_eq!(seen().await, of(&[(&ours, Some(true))]));
    assert_eq!(code(launch(&stage.b, &others).send().await), "AuthFailure");
    assert_eq!(code(stage.b.describe_images().image_ids(&others).send().await), "AuthFailure");
    assert_eq!(code(launch(&stage.b, &ours).send().await), "no error");
    let setting = stage.b.get_allowed_images_settings().send().await.unwrap();
    assert_eq!((setting.state(), setting.managed_by()), (Some("enabled"), Some(&ManagedBy::Account)));
    assert_eq!(setting.image_criteria()[0].image_providers(), ["amazon"]);

    allow(A).await;
    assert_eq!(seen().await, of(&[(&others, Some(true)), (&ours, Some(true))]));
}
