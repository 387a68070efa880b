//! Grants that targets passed on: made by them from ours, or by whoever had the use of the key only from such grants. They
//! outlive ours ("Retiring and revoking grants", KMS developer guide).
//!
//! Who has the use of a key otherwise is told by names: of its policies and of grants. What conditions and Deny statements
//! make of it is not looked at, so that rather too many count as having it.

use std::collections::{BTreeMap, BTreeSet};

use ami_share_core::{
    Error,
    ids::{AccountId, KeyArn},
    key_policy::{KeyPolicy, account_in},
    take_back::{ForeignGrant, ForeignGrants, PassedOn, Stay},
};
use aws_sdk_kms::{Client, types::GrantListEntry};

use crate::{all, passed_on, target_of};

/// What telling others' access calls, besides [`crate::LIST_GRANTS`].
pub const GET_KEY_POLICY: &str = ami_share_key_policies::GET_KEY_POLICY;

/// How many grants of one kind are listed.
const LISTED: usize = 5;

/// A grant that outlives those of ours that go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreign {
    /// Who made it.
    pub issuer: AccountId,
    /// What it is for.
    pub kind: PassedOn,
    /// Which it is.
    pub grant: ForeignGrant,
    /// Why it stays even where all are to be revoked; nothing where it does not.
    pub stay: Option<Stay>,
}

/// The grants on `key` that those in `going` passed on, who lose ours: those made from others of them come first, so that
/// what is left of a row can still be found by its start.
///
/// # Errors
/// Whatever AWS answers; [`Error::KeyPolicyConflict`] for a policy that cannot be read.
pub async fn foreign_grants(
    kms: &Client,
    key: &KeyArn,
    retiring: &str,
    going: &BTreeSet<AccountId>,
) -> Result<Vec<Foreign>, Error> {
    let grants = all(kms, key).await?;
    let made = |grant: &GrantListEntry| passed_on(key, grant).is_some_and(|(issuer, _)| going.contains(&issuer));
    if !grants.iter().any(made) {
        return Ok(Vec::new());
    }
    let Some(policy) = ami_share_key_policies::find(kms, key).await? else { return Ok(Vec::new()) };
    let policies = [Some(policy), ami_share_key_policies::of_ram(kms, key).await?];
    let policies = policies.into_iter().flatten().map(|text| KeyPolicy::parse(key, &text));
    let policies: Vec<KeyPolicy> = policies.collect::<Result<_, _>>()?;
    Ok(found(&Graph::new(key, retiring, going, &policies, &grants), key, &grants))
}

/// Who made grants on `key`, besides its own account and for EBS.
///
/// # Errors
/// Whatever AWS answers.
pub async fn issuers(kms: &Client, key: &KeyArn) -> Result<BTreeSet<AccountId>, Error> {
    let grants = all(kms, key).await?;
    let made = grants.iter().filter_map(|grant| passed_on(key, grant));
    Ok(made.filter(|(_, kind)| *kind != PassedOn::Ebs).map(|(issuer, _)| issuer).collect())
}

/// Those that stay, together by who made them and for what; of each the first few.
pub fn that_stay(key: &KeyArn, found: &[Foreign], revoked: bool) -> Vec<ForeignGrants> {
    let mut all: BTreeMap<(&AccountId, PassedOn, Stay), ForeignGrants> = BTreeMap::new();
    for foreign in found {
        let Some(stay) = foreign.stay.or((!revoked).then_some(Stay::NotAsked)) else { continue };
        let entry = all.entry((&foreign.issuer, foreign.kind, stay)).or_insert_with(|| ForeignGrants {
            key_arn: key.clone(),
            account_id: foreign.issuer.clone(),
            kind: foreign.kind,
            stay,
            grants: Vec::new(),
            more: 0,
        });
        if foreign.kind == PassedOn::Ebs || entry.grants.len() == LISTED {
            entry.more += 1;
        } else {
            entry.grants.push(foreign.grant.clone());
        }
    }
    all.into_values().collect()
}

/// Who has the use of a key by whom.
struct Graph {
    /// Whoever has it once ours of those that go are gone.
    keep: BTreeSet<AccountId>,
    /// Everybody whom those that go let use it, and over how many others.
    passed: BTreeMap<AccountId, usize>,
}

impl Graph {
    fn new(
        key: &KeyArn,
        retiring: &str,
        going: &BTreeSet<AccountId>,
        policies: &[KeyPolicy],
        grants: &[GrantListEntry],
    ) -> Self {
        let mut keep = BTreeSet::from([key.account_id()]);
        let mut everybody = false;
        for policy in policies {
            let others = policy.others();
            everybody |= others.everybody;
            let named = policy.named();
            // Ours go with the grants.
            keep.extend(named.difference(going).cloned().chain(others.accounts));
        }
        let goes = |grant: &GrantListEntry| target_of(key, retiring, grant).is_some_and(|of| going.contains(&of));
        let steps: BTreeSet<(AccountId, AccountId)> = grants
            .iter()
            .filter(|grant| !goes(grant))
            .filter_map(|grant| Some((account_in(grant.issuing_account()?)?, account_in(grant.grantee_principal()?)?)))
            .collect();
        let all = || steps.iter().flat_map(|(issuer, grantee)| [issuer, grantee]).chain(going);
        if everybody {
            keep.extend(all().cloned());
        }
        while let Some((_, next)) = steps.iter().find(|(from, to)| keep.contains(from) && !keep.contains(to)) {
            keep.insert(next.clone());
        }
        let mut passed: BTreeMap<AccountId, usize> = going.iter().map(|account| (account.clone(), 0)).collect();
        let next = |passed: &BTreeMap<AccountId, usize>| {
            let ahead = steps.iter().filter(|(from, to)| !keep.contains(from) && !passed.contains_key(to));
            let ahead = ahead.filter(|(_, to)| !keep.contains(to));
            ahead.filter_map(|(from, to)| Some((passed.get(from)? + 1, to.clone()))).min()
        };
        while let Some((distance, account)) = next(&passed) {
            passed.insert(account, distance);
        }
        Self { keep, passed }
    }
}

fn found(graph: &Graph, key: &KeyArn, grants: &[GrantListEntry]) -> Vec<Foreign> {
    let mut found: Vec<(usize, Foreign)> = Vec::new();
    for grant in grants {
        let Some((issuer, kind)) = passed_on(key, grant) else { continue };
        let Some(distance) = graph.passed.get(&issuer) else { continue };
        let stay = match kind {
            PassedOn::Ebs => Some(Stay::InUse),
            _ if graph.keep.contains(&issuer) => Some(Stay::OtherAccess),
            _ => None,
        };
        let grant = ForeignGrant {
            grant_id: grant.grant_id().unwrap_or_default().to_owned(),
            grantee: grant.grantee_principal().unwrap_or_default().to_owned(),
        };
        found.push((*distance, Foreign { issuer, kind, grant, stay }));
    }
    found.sort_by_key(|(distance, _)| std::cmp::Reverse(*distance));
    found.into_iter().map(|(_, foreign)| foreign).collect()
}

#[cfg(test)]
mod tests {
    use aws_sdk_kms::types::GrantConstraints;

    use super::*;
    use crate::KeyGrant;

    const ROLE: &str = "arn:aws:iam::111111111111:role/AmiShareSource";
    const TARGET: &str = "222222222222";

    fn key() -> KeyArn {
        KeyArn::parse("arn:aws:kms:eu-west-1:111111111111:key/1").unwrap()
    }

    fn account(id: &str) -> AccountId {
        AccountId::parse(id).unwrap()
    }

    /// `issuer` to a role of `grantee`.
    fn grant(issuer: &str, grantee: &str) -> GrantListEntry {
        let to = format!("arn:aws:iam::{grantee}:role/app");
        GrantListEntry::builder()
            .grant_id(format!("{issuer}-{grantee}"))
            .issuing_account(format!("arn:aws:iam::{issuer}:root"))
            .grantee_principal(to)
            .build()
    }

    fn ours(to: &str) -> GrantListEntry {
        let account = account(to);
        let ours = KeyGrant { key: &key(), account: &account, retiring: ROLE };
        GrantListEntry::builder()
            .grant_id("ours")
            .name(ours.name())
            .issuing_account("arn:aws:iam::111111111111:root")
            .grantee_principal(ours.grantee())
            .retiring_principal(ROLE)
            .set_operations(Some(KeyGrant::operations()))
            .build()
    }

    fn policy(principal: &str) -> KeyPolicy {
        let text = format!(
            r#"{{"Statement":[{{"Effect":"Allow","Principal":{principal},"Action":"kms:*","Resource":"*"}}]}}"#
        );
        KeyPolicy::parse(&key(), &text).unwrap()
    }

    fn of_root() -> KeyPolicy {
        policy(r#"{"AWS":"arn:aws:iam::111111111111:root"}"#)
    }

    /// The ids of the grants that go, and of those that stay with why.
    fn told(policies: &[KeyPolicy], grants: &[GrantListEntry]) -> (Vec<String>, Vec<(String, Stay)>) {
        let going = BTreeSet::from([account(TARGET)]);
        let graph = Graph::new(&key(), ROLE, &going, policies, grants);
        let (mut goes, mut stays) = (Vec::new(), Vec::new());
        for Foreign { grant, stay, .. } in found(&graph, &key(), grants) {
            match stay {
                None => goes.push(grant.grant_id),
                Some(stay) => stays.push((grant.grant_id, stay)),
            }
        }
        (goes, stays)
    }

    #[test]
    fn what_a_target_passed_on_goes_to_the_last_in_the_row_and_the_last_first() {
        let grants = [
            ours(TARGET),
            grant(TARGET, "333333333333"),
            grant("333333333333", "444444444444"),
            grant("444444444444", "555555555555"),
            // Round and round.
            grant("555555555555", TARGET),
            // Somebody else's.
            grant("666666666666", "777777777777"),
            grant("111111111111", "888888888888"),
        ];
        let (goes, stays) = told(&[of_root()], &grants);
        let row = ["555555555555-222222222222", "444444444444-555555555555", "333333333333-444444444444"];
        assert_eq!(goes, [row.as_slice(), &["222222222222-333333333333"]].concat());
        assert_eq!(stays, []);
    }

    #[test]
    fn what_somebody_passed_on_who_has_the_use_in_another_way_is_theirs() {
        let named = || policy(r#"{"AWS":"arn:aws:iam::333333333333:role/other"}"#);
        let row = || vec![ours(TARGET), grant(TARGET, "333333333333"), grant("333333333333", "444444444444")];
        let only_the_targets = ["222222222222-333333333333".to_owned()];
        assert_eq!(told(&[of_root(), named()], &row()), (only_the_targets.to_vec(), vec![]));
        for other in ["111111111111", "999999999999"] {
            let mut by_grant = row();
            by_grant.push(grant(other, "333333333333"));
            let named = policy(r#"{"AWS":["999999999999","arn:aws:iam::111111111111:root"]}"#);
            assert_eq!(told(&[named], &by_grant), (only_the_targets.to_vec(), vec![]), "{other}");
        }
    }

    #[test]
    fn a_target_that_has_the_use_in_another_way_keeps_what_it_passed_on() {
        let grants = [ours(TARGET), grant(TARGET, "333333333333")];
        let kept = (vec![], vec![("222222222222-333333333333".to_owned(), Stay::OtherAccess)]);
        for principal in [r#"{"AWS":"222222222222"}"#, r#""*""#] {
            assert_eq!(told(&[of_root(), policy(principal)], &grants), kept, "{principal}");
        }
        let of_source = [grants.as_slice(), &[grant("111111111111", TARGET)]].concat();
        assert_eq!(told(&[of_root()], &of_source), kept);
        // Our statements go with our grants.
        let ours = of_root().with([&account(TARGET)]).unwrap().unwrap();
        assert_eq!(told(&[ours], &grants).1, []);
    }

    #[test]
    fn grants_of_ebs_stay_as_volumes_are_attached_by_them() {
        let context = GrantConstraints::builder().encryption_context_subset("aws:ebs:id", "vol-0123abcd").build();
        let of_volume = GrantListEntry::builder()
            .grant_id("of-volume")
            .issuing_account(format!("arn:aws:iam::{TARGET}:root"))
            .grantee_principal(format!("arn:aws:sts::{TARGET}:assumed-role/aws:ec2-infrastructure/i-0123abcd"))
            .constraints(context)
            .build();
        let grants = [ours(TARGET), of_volume.clone(), of_volume];
        let (goes, stays) = told(&[of_root()], &grants);
        assert_eq!((goes, stays.len()), (vec![], 2));
        assert!(stays.iter().all(|(_, stay)| *stay == Stay::InUse));
        let graph = Graph::new(&key(), ROLE, &BTreeSet::from([account(TARGET)]), &[of_root()], &grants);
        let said = that_stay(&key(), &found(&graph, &key(), &grants), true);
        assert_eq!((said.len(), said[0].grants.len(), said[0].more), (1, 0, 2));
    }

    #[test]
    fn those_that_stay_are_told_by_who_made_them_and_the_first_by_name() {
        let mut grants = vec![ours(TARGET), grant("333333333333", "444444444444")];
        grants.extend((0..LISTED + 2).map(|_| grant(TARGET, "333333333333")));
        let graph = Graph::new(&key(), ROLE, &BTreeSet::from([account(TARGET)]), &[of_root()], &grants);
        let found = found(&graph, &key(), &grants);
        let said = that_stay(&key(), &found, false);
        let of: Vec<_> = said.iter().map(|of| (of.account_id.as_str(), of.grants.len(), of.more, of.stay)).collect();
        assert_eq!(of, [(TARGET, LISTED, 2, Stay::NotAsked), ("333333333333", 1, 0, Stay::NotAsked)]);
        assert_eq!(that_stay(&key(), &found, true), []);
    }
}
