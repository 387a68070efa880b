//! Random organizations and random lists, against a model of three lines: nobody is allowed more, and nobody less.

use std::collections::BTreeSet;

use ami_share_allow_list::check;
use ami_share_core::{
    Error, Hub,
    allow_list::AllowList,
    ids::{AccountId, ExecutionName},
    settings::{OrganizationsReader, Settings},
    sources::Sources,
};
use ami_share_sandbox::{Sandbox, world::Organization};
use ami_share_tests::{HUB, Result, SOURCE, clients::root_of};

const WORLDS: u64 = 400;
const SEED: u64 = 0x00a1_10ed;
const ACCOUNTS: usize = 8;
const STATES: [&str; 5] = ["ACTIVE", "SUSPENDED", "CLOSED", "PENDING_CLOSURE", "PENDING_ACTIVATION"];

/// splitmix64
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % u64::try_from(end).unwrap_or(1)).unwrap_or(0)
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// An organization of the hub, another one, and what of them is allowed.
#[derive(Debug)]
struct Case {
    /// Of each account: its place, if it has one, in the hub's organization or in the other.
    places: Vec<Option<Organization>>,
    allowed: BTreeSet<String>,
}

fn account(index: usize) -> String {
    format!("{:012}", 400_000_000_000 + index)
}

fn unit(index: usize) -> String {
    format!("ou-ab12-{index:08}")
}

impl Case {
    fn new(random: &mut Random) -> Self {
        // Each unit is in the root or in an earlier one; five deep at most.
        let mut paths: Vec<Vec<String>> = Vec::new();
        for index in 0..random.below(7) {
            let above = if paths.is_empty() || random.one_in(3) {
                Vec::new()
            } else {
                paths[random.below(paths.len())].clone()
            };
            let above = if above.len() < 5 { above } else { Vec::new() };
            paths.push([vec![unit(index)], above].concat());
        }
        let places = (0..ACCOUNTS)
            .map(|_| {
                if random.one_in(6) {
                    return None;
                }
                let own = !random.one_in(5);
                let organization = if own { "o-a1b2c3d4e5" } else { "o-zzzzzzzzzz" };
                let manager = if own { HUB } else { "888888888888" };
                let units = if paths.is_empty() || random.one_in(5) {
                    Vec::new()
                } else {
                    paths[random.below(paths.len())].clone()
                };
                let arn = |unit: &String| format!("arn:aws:organizations::{manager}:ou/{organization}/{unit}");
                Some(Organization {
                    organization_arn: format!("arn:aws:organizations::{manager}:organization/{organization}"),
                    unit_arns: units.iter().map(arn).collect(),
                    state: random.one_in(4).then(|| STATES[random.below(STATES.len())].to_owned()),
                    ..Organization::default()
                })
            })
            .collect();
        let mut allowed: BTreeSet<String> = (0..ACCOUNTS).filter(|_| random.one_in(4)).map(account).collect();
        allowed.extend((0..9).filter(|_| random.one_in(4)).map(unit));
        for organization in ["o-a1b2c3d4e5", "o-zzzzzzzzzz"] {
            if random.one_in(5) {
                allowed.insert(organization.to_owned());
            }
        }
        Self { places, allowed }
    }

    /// The model.
    fn allows(&self, index: usize) -> bool {
        let member = self.places[index].as_ref().is_some_and(|place| {
            let active = place.state.as_deref().is_none_or(|state| state == "ACTIVE");
            let within = place.unit_arns.iter().chain([&place.organization_arn]);
            let mut within = within.map(|arn| arn.rsplit('/').next().unwrap_or_default());
            active && place.management_account() == HUB && within.any(|id| self.allowed.contains(id))
        });
        member || self.allowed.contains(&account(index))
    }
}

fn hub(endpoint: &str, allowed: &BTreeSet<String>) -> Result<Hub> {
    let list = allowed.iter().map(String::as_str).collect::<Vec<_>>().join(",");
    let settings = Settings {
        allow_unencrypted: false,
        source_role: "AmiShareSource".to_owned(),
        source_reader_role: "AmiShareSourceReader".to_owned(),
        source_grant_revoker_role: "AmiShareGrantRevoker".to_owned(),
        target_role: "AmiShareTarget".to_owned(),
        launcher_role: "AmiShareLauncher".to_owned(),
        key_access_policy: "AmiShareKeyAccess".to_owned(),
        external_id: "local".to_owned(),
        source_identity: false,
        source_account: AccountId::parse(SOURCE)?,
        sources: Sources::default(),
        allow_list: AllowList::parse(&list)?,
        organizations_reader: Some(OrganizationsReader::Hub(AccountId::parse(HUB)?)),
        record_table: None,
        stale_reads: std::time::Duration::ZERO,
        require_plan: false,
    };
    Ok(Hub::new(settings, root_of(HUB, endpoint)))
}

#[tokio::test]
async fn exactly_the_accounts_are_allowed_that_are_listed_or_active_members_of_what_is_listed() -> Result<()> {
    let sandbox = Sandbox::start(ami_share_sandbox::Settings::default()).await?;
    let execution = ExecutionName::parse("random")?;
    let ids = (0..ACCOUNTS).map(|index| AccountId::parse(account(index))).collect::<Result<Vec<_>, _>>()?;
    let (mut seen, mut random) = ([0_usize; 2], Random(SEED));
    for number in 0..WORLDS {
        let case = Case::new(&mut random);
        {
            let mut world = sandbox.world();
            let own = "arn:aws:organizations::333333333333:organization/o-a1b2c3d4e5".to_owned();
            world.set_organization(HUB, Some(Organization { organization_arn: own, ..Organization::default() }));
            for (index, place) in case.places.iter().enumerate() {
                world.set_organization(&account(index), place.clone());
            }
            world.journal.clear();
        }
        let hub = hub(&sandbox.endpoint(), &case.allowed)?;
        let expected: BTreeSet<String> = (0..ACCOUNTS).filter(|index| !case.allows(*index)).map(account).collect();
        let refused: BTreeSet<String> = match check(&hub, &execution, &ids).await {
            Ok(()) => BTreeSet::new(),
            Err(Error::TargetNotAllowed { refused, .. }) => {
                refused.into_iter().map(|refused| refused.account_id.to_string()).collect()
            }
            Err(error) => return Err(format!("world {number} of seed {SEED:#x}: {error}: {case:#?}").into()),
        };
        assert_eq!(refused, expected, "world {number} of seed {SEED:#x}: {case:#?}");
        seen[0] += refused.len();
        seen[1] += ACCOUNTS - refused.len();

        // One question about each account that is not listed, and one about each unit at most.
        let world = sandbox.world();
        let mut asked: Vec<(&str, &str)> = crate::questions(world.journal.entries());
        let total = asked.len();
        asked.sort_unstable();
        asked.dedup();
        assert_eq!(asked.len(), total, "world {number} of seed {SEED:#x}: asked twice");
        let listed = asked.iter().any(|(_, about)| case.allowed.contains(*about));
        assert!(!listed, "world {number} of seed {SEED:#x}: asked about what is listed: {asked:?}");
    }
    assert!(seen.iter().all(|count| *count > 500), "hardly a choice: {seen:?}");
    Ok(())
}
