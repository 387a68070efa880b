//! Roles and policies, as CloudFormation made them in the engine, for the sandbox to evaluate.

use std::{borrow::Cow, collections::BTreeSet};

use aws_sdk_iam::{
    Client,
    types::{ManagedPolicyDetail, RoleDetail},
};

use crate::{Result, clients};

/// Copies every role of `account` in the engine, its inline policies and its customer-managed
/// policies, to the same account of the sandbox.
///
/// AWS's own managed policies are left out: on function roles they only allow logs and traces,
/// which the sandbox has not got.
pub async fn copy_to_sandbox(account: &str, engine: &str, sandbox: &str) -> Result<()> {
    let from = Client::new(&clients::root_of(account, engine));
    let to = Client::new(&clients::root_of(account, sandbox));
    let details = from.get_account_authorization_details().send().await?;
    if details.is_truncated {
        return Err(format!("account {account} has more roles than one call lists").into());
    }
    let mut policies = BTreeSet::new();
    for policy in details.policies.unwrap_or_default() {
        if let Some(arn) = copy_policy(&to, account, policy).await? {
            policies.insert(arn);
        }
    }
    for role in details.role_detail_list.unwrap_or_default() {
        copy_role(&to, role, &policies).await?;
    }
    Ok(())
}

/// Returns the ARN of the policy if it is the account's own.
async fn copy_policy(to: &Client, account: &str, policy: ManagedPolicyDetail) -> Result<Option<String>> {
    let arn = policy.arn.unwrap_or_default();
    if !arn.starts_with(&format!("arn:aws:iam::{account}:")) {
        return Ok(None);
    }
    let versions = policy.policy_version_list.unwrap_or_default();
    let document = versions.iter().find(|version| version.is_default_version).and_then(|version| version.document());
    to.create_policy()
        .set_policy_name(policy.policy_name)
        .set_path(policy.path)
        .policy_document(decoded(document.unwrap_or_default()))
        .send()
        .await
        .map_err(|error| format!("{arn}: {}", error.into_service_error()))?;
    Ok(Some(arn))
}

async fn copy_role(to: &Client, role: RoleDetail, policies: &BTreeSet<String>) -> Result<()> {
    let name = role.role_name.unwrap_or_default();
    to.create_role()
        .role_name(&name)
        .set_path(role.path)
        .assume_role_policy_document(decoded(&role.assume_role_policy_document.unwrap_or_default()))
        .send()
        .await
        .map_err(|error| format!("role {name}: {}", error.into_service_error()))?;
    for policy in role.role_policy_list.unwrap_or_default() {
        to.put_role_policy()
            .role_name(&name)
            .set_policy_name(policy.policy_name)
            .policy_document(decoded(&policy.policy_document.unwrap_or_default()))
            .send()
            .await?;
    }
    let attached = role.attached_managed_policies.unwrap_or_default();
    for arn in attached.into_iter().filter_map(|policy| policy.policy_arn).filter(|arn| policies.contains(arn)) {
        to.attach_role_policy().role_name(&name).policy_arn(arn).send().await?;
    }
    Ok(())
}

/// IAM answers policy documents percent-encoded.
fn decoded(document: &str) -> String {
    form_urlencoded::parse(document.as_bytes()).next().map_or(Cow::Borrowed(""), |(whole, _)| whole).into_owned()
}
