//! JudgeUsage: refuses to take back an image that is still in use. Calls nothing.
//!
//! For instances, what a target itself says counts: EC2's report may lack the last 24 hours, and counts
//! instances for some time after they were terminated, the proofs of ami-share among them. The report counts
//! for targets that could not be asked; and for launch templates, of which it looks at more versions than
//! the latest and the default one.

use ami_share_core::{
    Error, Hub,
    hub::Actions,
    ids::{ExecutionName, ImageId},
    revoke::{Usage, Use, UsingResource},
};
use serde::{Deserialize, Serialize};

pub const ACTIONS: Actions = Actions { source: &[], target: &[], launcher: &[] };

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Input {
    pub execution: ExecutionName,
    pub image_id: ImageId,
    /// What the targets have said.
    pub usage: Usage,
    /// What EC2's report says of them.
    pub reported: Vec<Use>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Output {}

/// # Errors
/// [`Error::ImageInUse`], with everybody who uses it.
#[tracing::instrument(skip_all, fields(execution = %input.execution, image = %input.image_id))]
pub async fn judge_usage(_hub: &Hub, input: Input) -> Result<Output, Error> {
    judge(input)
}

fn judge(input: Input) -> Result<Output, Error> {
    let Input { image_id, mut usage, reported, .. } = input;
    let counts =
        |used: &Use| usage.unasked.contains(&used.account_id) || used.resource == UsingResource::LaunchTemplate;
    // The target has named it already, by its id.
    let named =
        |used: &Use| usage.uses.iter().any(|said| said.account_id == used.account_id && said.resource == used.resource);
    let more = reported.into_iter().filter(|used| counts(used) && !named(used)).collect();
    usage.add(more);
    if usage.uses.is_empty() {
        return Ok(Output {});
    }
    Err(Error::ImageInUse { image: image_id, uses: usage.uses, unlisted: usage.unlisted })
}

#[cfg(test)]
mod tests {
    use UsingResource::{Instance, LaunchTemplate};
    use ami_share_core::ids::AccountId;

    use super::*;

    const ASKED: &str = "222222222222";
    const GONE: &str = "444444444444";

    fn used(account: &str, resource: UsingResource, ids: &[&str]) -> Use {
        Use {
            account_id: AccountId::parse(account).unwrap(),
            image_id: ImageId::parse("ami-0123abcd").unwrap(),
            resource,
            count: 1,
            ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        }
    }

    /// The uses that it is refused for.
    fn refused(said: Vec<Use>, reported: Vec<Use>) -> Vec<Use> {
        let account = |id| AccountId::parse(id).unwrap();
        let usage = Usage { asked: vec![account(ASKED)], unasked: vec![account(GONE)], uses: said, unlisted: 0 };
        let execution = ExecutionName::parse("e").unwrap();
        match judge(Input { execution, image_id: ImageId::parse("ami-0123abcd").unwrap(), usage, reported }) {
            Ok(_) => vec![],
            Err(Error::ImageInUse { uses, .. }) => uses,
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn what_a_target_says_of_its_instances_counts_and_not_what_is_reported() {
        let instance = used(ASKED, Instance, &["i-1"]);
        assert_eq!(refused(vec![instance.clone()], vec![]), [instance]);
        assert_eq!(refused(vec![], vec![used(ASKED, Instance, &[])]), []);
    }

    #[test]
    fn the_report_counts_for_who_could_not_be_asked_and_for_launch_templates() {
        let reported = [used(GONE, Instance, &[]), used(GONE, LaunchTemplate, &[]), used(ASKED, LaunchTemplate, &[])];
        assert_eq!(refused(vec![], reported.to_vec()), reported);
    }

    #[test]
    fn what_both_name_is_named_once() {
        let template = used(ASKED, LaunchTemplate, &["lt-1"]);
        assert_eq!(refused(vec![template.clone()], vec![used(ASKED, LaunchTemplate, &[])]), [template]);
    }
}
