//! Why AWS refused a call, as its sentence says: which kind of policy did, and lately its ARN ("Troubleshoot access denied
//! error messages", IAM user guide).

use crate::{ids::AccountId, words};

/// Opens what EC2 encodes beside that sentence.
pub const DECODE: &str = "sts:DecodeAuthorizationMessage";

const MARK: &str = "Encoded authorization failure message:";

/// What EC2 says first, whatever follows.
const OPENING: &str = "You are not authorized to perform this operation. ";

/// The kinds of policy that whoever deploys ami-share may not have written, and what to do about each.
const GUARDRAILS: [(&str, &str); 5] = [
    ("service control policy", "whoever manages the organization can change that"),
    ("resource control policy", "whoever manages the organization can change that"),
    ("permissions boundary", "the permissions boundary of the role must allow it too"),
    ("vpc endpoint policy", "the policy of the VPC endpoint that the call went through must allow it too"),
    ("session policy", "ami-share itself limits its sessions too far: please report it"),
];

/// What AWS says of a call that it refused, with what to do where a guardrail did, and without what it encoded.
pub(crate) fn reason(account: &AccountId, message: &str) -> String {
    match split(message) {
        (said, None) => with_remedy(said),
        (said, Some(_)) => format!(
            "{}; AWS encoded why: {DECODE} in account {account} opens the message in the function's log",
            with_remedy(said)
        ),
    }
}

/// What AWS says, and what it encoded.
pub(crate) fn split(message: &str) -> (&str, Option<&str>) {
    let (said, encoded) = match message.split_once(MARK) {
        Some((said, encoded)) => (said.trim_end(), Some(encoded.trim())),
        None => (message, None),
    };
    (said.strip_prefix(OPENING).unwrap_or(said), encoded)
}

pub(crate) fn with_remedy(said: &str) -> String {
    let lower = said.to_lowercase();
    let said = words::without_full_stop(said);
    match GUARDRAILS.iter().find(|(kind, _)| lower.contains(kind)) {
        Some((_, remedy)) => format!("{said}; {remedy}"),
        None => said.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "User: arn:aws:sts::222222222222:assumed-role/\
                        AmiShareLauncher/nightly is not authorized to perform: ec2:RunInstances on resource: \
                        arn:aws:ec2:eu-west-1:222222222222:instance/* with an explicit deny in a service control policy";

    fn refused(message: &str) -> String {
        reason(&AccountId::parse("222222222222").unwrap(), message)
    }

    #[test]
    fn what_aws_encoded_is_no_part_of_the_reason() {
        let said = refused(&format!("{OPENING}{SAID}. Encoded authorization failure message: {}", "A_-9".repeat(500)));
        assert!(said.starts_with(SAID) && said.contains(DECODE) && !said.contains("A_-9"), "{said}");
        // Before 2021, and still of some calls.
        let older =
            refused("You are not authorized to perform this operation. Encoded authorization failure message: A");
        assert!(older.starts_with("You are not authorized to perform this operation; AWS encoded why"), "{older}");
        assert!(!refused(SAID).contains(DECODE));
    }

    #[test]
    fn a_guardrail_is_named_with_what_to_do_about_it_and_other_texts_stay_as_they_are() {
        let with = |end: &str| refused(&format!("User: x is not authorized to perform: kms:Decrypt {end}"));
        for (end, remedy) in [
            ("with an explicit deny in a service control policy: arn:aws:organizations::1:policy/o/p", "organization"),
            ("due to an explicit deny in a Service Control Policy", "organization"),
            ("with an explicit deny in a resource control policy", "organization"),
            ("because no permissions boundary allows the kms:Decrypt action", "boundary of the role"),
            ("because no VPC endpoint policy allows the kms:Decrypt action", "endpoint"),
            ("because no session policy allows the kms:Decrypt action", "report"),
        ] {
            let said = with(end);
            let (kept, told) = said.rsplit_once("; ").unwrap();
            assert!(kept.ends_with(end) && told.contains(remedy), "{said}");
        }
        for end in ["because no identity-based policy allows the kms:Decrypt action", "because Corp says: ask us."] {
            assert!(with(end).ends_with(words::without_full_stop(end)));
        }
    }
}
