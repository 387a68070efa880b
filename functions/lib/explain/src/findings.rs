//! What the questions brought to light, and how it is said.

use ami_share_core::ids::KeyArn;

use crate::attempt::Attempt;

/// What the questions brought to light.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// What is wrong, with what to do about it.
    pub(crate) causes: Vec<String>,
    /// What could not be asked, or depends on what cannot be seen.
    pub(crate) doubts: Vec<String>,
    /// The target's default EBS key, where it is the one that volumes come under and not AWS's own.
    pub(crate) default_key: Option<KeyArn>,
}

impl Findings {
    pub(crate) fn sentence(self, attempt: Attempt<'_>) -> String {
        let (a, b) = (&attempt.source.account_id, &attempt.target.account_id);
        let mut parts = Vec::new();
        if !self.causes.is_empty() {
            parts.push(format!("likely cause: {}", self.causes.join("; ")));
        }
        if !self.doubts.is_empty() {
            parts.push(format!("could not be judged: {}", self.doubts.join("; ")));
        }
        if self.causes.is_empty() {
            let looked =
                if self.doubts.is_empty() { "all that can be asked looks right" } else { "the rest looks right" };
            parts.push(format!(
                "{looked}, so it may be a change that had not reached every server yet (start the execution again), \
                 or a policy that cannot be seen from here (an organization's SCP or RCP, a VPC endpoint's); \
                 look in CloudTrail of accounts {a} and {b} for CreateGrant, Decrypt, ReEncrypt and \
                 GenerateDataKeyWithoutPlaintext with an errorCode"
            ));
        }
        if let Some(key) = self.default_key {
            parts.push(format!("new volumes come under key {key}, the default EBS key of account {b}"));
        }
        parts.join("; ")
    }
}

/// Actions with the same thing to say about them, together: `kms:Decrypt, kms:CreateGrant denied by …`.
pub(crate) fn grouped<'a>(said: impl IntoIterator<Item = (&'a str, String)>) -> Vec<String> {
    by_clause(said).into_iter().map(|(actions, clause)| format!("{} {clause}", actions.join(", "))).collect()
}

pub(crate) fn by_clause<T>(said: impl IntoIterator<Item = (T, String)>) -> Vec<(Vec<T>, String)> {
    let mut groups: Vec<(Vec<T>, String)> = Vec::new();
    for (subject, clause) in said {
        match groups.iter_mut().find(|(_, known)| *known == clause) {
            Some((subjects, _)) => subjects.push(subject),
            None => groups.push((vec![subject], clause)),
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actions_of_one_fate_are_said_together() {
        let said = [
            ("kms:Decrypt", "denied by statement X".to_owned()),
            ("kms:CreateGrant", "not allowed".to_owned()),
            ("kms:DescribeKey", "denied by statement X".to_owned()),
        ];
        assert_eq!(
            grouped(said),
            ["kms:Decrypt, kms:DescribeKey denied by statement X", "kms:CreateGrant not allowed"]
        );
    }
}
