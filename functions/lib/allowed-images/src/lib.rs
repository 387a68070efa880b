//! Why a target does not see an image that was shared with it: the share has not reached EC2 yet, or Allowed AMIs of the
//! target leave the image out.
//!
//! Where Allowed AMIs are enabled, an account sees images of others only that meet one of its criteria. The account sets
//! them, or its organization does by a declarative policy ("Control the discovery and use of AMIs in Amazon EC2 with Allowed
//! AMIs", EC2 user guide). AWS's documents do not say what EC2 answers of an image that is left out: so the setting is asked.

#![warn(missing_docs)]

use ami_share_core::{
    Error,
    aws::{self, ALLOWED_IMAGES},
    ids::{AccountId, ImageId},
    share::Source,
    words,
};
use aws_sdk_ec2::{
    Client,
    operation::get_allowed_images_settings::GetAllowedImagesSettingsOutput,
    types::{ImageCriterion, ManagedBy},
};

/// How much is said of who is allowed, in bytes of JSON.
const MOST: usize = 300;

/// The error of `call` for an image that `source` has shared with `account`, which `ec2` does not let it use; `said` is
/// what it says.
pub async fn hidden(
    ec2: &Client,
    image: &ImageId,
    source: &Source,
    account: &AccountId,
    call: &'static str,
    said: &str,
) -> Error {
    let not_yet = |doubt: &str| aws::not_shared_yet(image, source, account, call, doubt, said);
    let setting = match ec2.get_allowed_images_settings().send().await {
        Ok(setting) => setting,
        Err(error) => {
            let error = aws::failure(account, ALLOWED_IMAGES, error);
            return not_yet(&format!("; whether its Allowed AMIs leave the image out is not known ({error})"));
        }
    };
    if !is_enabled(&setting) {
        return not_yet("");
    }
    if leaves_out(&setting, &source.account_id) {
        let reason = format!(
            "Allowed AMIs, set by {by}, leave out image {image} of account {owner}: they allow images of {allowed} \
             ({ALLOWED_IMAGES}); have account {owner} added to the image providers there; EC2 says: {said}",
            by = set_by(&setting, account),
            owner = source.account_id,
            allowed = words::list(&providers(&setting), ", ", 0, MOST),
            said = words::without_full_stop(said),
        );
        return Error::AccessDenied { account: account.clone(), call, reason, source: None };
    }
    let by = set_by(&setting, account);
    not_yet(&format!("; its Allowed AMIs, set by {by}, may leave the image out: see their criteria ({ALLOWED_IMAGES})"))
}

fn is_enabled(setting: &GetAllowedImagesSettingsOutput) -> bool {
    setting.state() == Some("enabled")
}

/// Whether no criterion can be met by an image of `owner`. One without providers is about something else.
fn leaves_out(setting: &GetAllowedImagesSettingsOutput, owner: &AccountId) -> bool {
    let may_meet = |criterion: &ImageCriterion| {
        let providers = criterion.image_providers();
        providers.is_empty() || providers.iter().any(|provider| provider == owner.as_str())
    };
    let criteria = setting.image_criteria();
    !criteria.is_empty() && !criteria.iter().any(may_meet)
}

fn providers(setting: &GetAllowedImagesSettingsOutput) -> Vec<String> {
    setting.image_criteria().iter().flat_map(|criterion| criterion.image_providers()).cloned().collect()
}

fn set_by(setting: &GetAllowedImagesSettingsOutput, account: &AccountId) -> String {
    match setting.managed_by() {
        Some(ManagedBy::DeclarativePolicy) => "a declarative policy of the organization".to_owned(),
        _ => format!("account {account}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(criteria: &[&[&str]]) -> GetAllowedImagesSettingsOutput {
        let criteria = criteria.iter().map(|providers| {
            let providers = providers.iter().map(|provider| (*provider).to_owned()).collect();
            ImageCriterion::builder().set_image_providers(Some(providers)).build()
        });
        GetAllowedImagesSettingsOutput::builder()
            .state("enabled")
            .set_image_criteria(Some(criteria.collect()))
            .managed_by(ManagedBy::DeclarativePolicy)
            .build()
    }

    #[test]
    fn an_image_is_left_out_where_no_criterion_can_be_met_by_its_owner() {
        let owner = AccountId::parse("111111111111").unwrap();
        for (criteria, left_out) in [
            (&[&["amazon", "222222222222"][..]][..], true),
            (&[&["none"]], true),
            (&[&["amazon"], &["111111111111"]], false),
            // About names, ages and the like.
            (&[&["amazon"], &[]], false),
            (&[], false),
        ] {
            assert_eq!(leaves_out(&setting(criteria), &owner), left_out, "{criteria:?}");
        }
    }

    #[test]
    fn who_has_set_it_is_said() {
        let account = AccountId::parse("222222222222").unwrap();
        assert!(set_by(&setting(&[]), &account).contains("declarative policy"));
        assert_eq!(set_by(&GetAllowedImagesSettingsOutput::builder().build(), &account), "account 222222222222");
    }
}
