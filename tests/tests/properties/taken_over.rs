//! Suppose that the hub's functions are taken over. Whoever has the role of one calls as it, past its code and its
//! session policies, in accounts with the roles that the templates make. docs/security.md says what of it is shown here.

use std::collections::BTreeSet;

use ami_share_machine::root::Caller;
use ami_share_sandbox::World;
use ami_share_tests::SOURCE;

use crate::{
    deployed,
    world::{OTHER, crowded},
};

type Names = BTreeSet<&'static str>;

/// What takes back in a source, what looks at what is to be taken back, and the audit.
const BACK: [&str; 10] = [
    "AuditShares",
    "CreateUsageReport",
    "DescribeUsageReport",
    "PlanRevoke",
    "ResolveRevoke",
    "ResolveUndo",
    "UndoGrantKeys",
    "UndoShareImage",
    "UndoShareKey",
    "UndoShareSnapshots",
];

/// [`OTHER`] has the roles of a source that is not listed, and trusts the hub all the same.
struct Accounts {
    world: World,
}

impl Accounts {
    fn new() -> Self {
        let deployment = deployed::deployment(false);
        let (mut world, ..) = crowded(deployment, &[false]);
        let roles = deployment.accounts[SOURCE].to_string().replace(SOURCE, OTHER);
        world.import_iam(OTHER, &serde_json::from_str(&roles).unwrap()).unwrap();
        Self { world }
    }

    /// A session of a role of an account, as whoever has the role of that function gets it.
    fn assume(&mut self, function: &str, account: &str, role: &str) -> Result<Caller, String> {
        let function = &deployed::deployment(false).functions[function];
        let caller = Caller::role(&mut self.world, &function.role_arn).unwrap();
        let role = format!("arn:aws:iam::{account}:role/{role}");
        caller.assume(&mut self.world, &role, &function.environment["EXTERNAL_ID"])
    }

    /// The functions whose roles can assume that role.
    fn assuming(&mut self, account: &str, role: &str) -> Names {
        let functions = deployed::deployment(false).functions.keys();
        functions.map(String::as_str).filter(|function| self.assume(function, account, role).is_ok()).collect()
    }
}

#[test]
fn a_source_that_is_not_listed_is_reached_only_by_what_takes_back() {
    let mut accounts = Accounts::new();
    assert_eq!(accounts.assuming(OTHER, "AmiShareSource"), Names::from(BACK));
    let listed = accounts.assuming(SOURCE, "AmiShareSource");
    assert!(listed.is_superset(&BACK.into()) && listed.contains("ShareImage"), "{listed:?}");
}
