//! Reading a key policy, merging our statements into it, and taking them back out.
//!
//! Everyone else's statements are kept as they are, in their place. Ours are two, for all targets
//! together, known by their Sids:
//!
//! - [`USE_SID`]: the actions that EC2 needs to read the volumes, and nothing that reads data
//!   without EC2 (`kms:ViaService`);
//! - [`GRANT_SID`]: `kms:CreateGrant`, only for AWS services (`kms:GrantIsForAWSResource`), via EC2.
//!
//! A statement is ours when it is as ami-share writes it in all but the accounts. One that differs only in the Region or
//! endpoint of `kms:ViaService`, as in a replica key's policy that was copied, is ours too, and is put right. Any other
//! under our Sids is somebody else's: nobody is added to it, and of it only those are removed who lose what they have.
//!
//! The actions are those that AWS's EBS user guide asks for ("Share the KMS key used to encrypt a
//! shared EBS snapshot" and "Amazon EBS encryption: permissions for IAM users").

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::{
    Error,
    arns::account_root,
    digest,
    ids::{AccountId, KeyArn},
    share::Repair,
};

/// The longest key policy that KMS takes ("Resource quotas", AWS KMS developer guide).
pub const MAX_BYTES: usize = 32_768;

/// The Sid of the statement for everything but grants.
pub const USE_SID: &str = "AmiShareUse";
/// The Sid of the statement for `kms:CreateGrant`, which has a condition more.
pub const GRANT_SID: &str = "AmiShareCreateGrant";

/// What a launch needs of a key besides `kms:CreateGrant`.
pub const USE_ACTIONS: [&str; 4] =
    ["kms:DescribeKey", "kms:Decrypt", "kms:ReEncrypt*", "kms:GenerateDataKeyWithoutPlaintext"];
/// What EC2 needs to hand the key's use on to EBS.
pub const GRANT_ACTION: &str = "kms:CreateGrant";

/// The policy of one key.
#[derive(Debug, Clone)]
pub struct KeyPolicy {
    key: KeyArn,
    document: Map<String, Value>,
    statements: Vec<Value>,
}

/// Whom statements name that are not ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Others {
    /// Themselves, or by one of their users or roles.
    pub accounts: BTreeSet<AccountId>,
    /// Whether one names everybody, as those do that share with an organization by a condition.
    pub everybody: bool,
}

impl KeyPolicy {
    /// Reads a policy as kms:GetKeyPolicy returns it.
    ///
    /// # Errors
    /// [`Error::KeyPolicyConflict`] when it is not a policy document.
    pub fn parse(key: &KeyArn, text: &str) -> Result<Self, Error> {
        let conflict = |reason: String| Error::KeyPolicyConflict { key: key.clone(), reason };
        let mut document: Map<String, Value> =
            serde_json::from_str(text).map_err(|error| conflict(format!("it is not a JSON object: {error}")))?;
        let statements = match document.get_mut("Statement").map(Value::take) {
            Some(Value::Array(statements)) => statements,
            Some(statement @ Value::Object(_)) => vec![statement],
            _ => return Err(conflict("it has no Statement".to_owned())),
        };
        Ok(Self { key: key.clone(), document, statements })
    }

    /// Accounts that both of our statements name.
    pub fn accounts(&self) -> BTreeSet<AccountId> {
        &self.accounts_in(USE_SID) & &self.accounts_in(GRANT_SID)
    }

    /// Accounts that one of our statements names and the other does not: it is of no use to them.
    pub fn half_named(&self) -> BTreeSet<AccountId> {
        &self.accounts_in(USE_SID) ^ &self.accounts_in(GRANT_SID)
    }

    fn accounts_in(&self, sid: &str) -> BTreeSet<AccountId> {
        let ours = self.statement(sid).is_some_and(|statement| self.is_ours(statement));
        let principals = if ours { self.principals(sid) } else { vec![] };
        principals.iter().filter_map(|principal| account_of(principal)).collect()
    }

    /// Accounts that statements under our Sids allow something, whatever else these say; themselves, or by one of their
    /// users or roles.
    pub fn named(&self) -> BTreeSet<AccountId> {
        let takable =
            self.statements.iter().filter(|statement| has_our_sid(statement) && names_whom_it_allows(statement));
        takable
            .flat_map(|statement| strings(&statement["Principal"]["AWS"]))
            .filter_map(|name| account_in(&name))
            .collect()
    }

    /// Accounts that statements name which only have to be put right. They gain access by that.
    pub fn revived(&self) -> BTreeSet<AccountId> {
        let misdirected = [USE_SID, GRANT_SID]
            .into_iter()
            .filter(|sid| self.via_service(sid).is_some_and(|via| via != via_ec2(&self.key)));
        misdirected.flat_map(|sid| self.accounts_in(sid)).collect()
    }

    /// Statements under our Sids that are not ours, each with what it says that ami-share does not write.
    pub fn foreign(&self) -> Vec<String> {
        let mut found = Vec::new();
        for sid in [USE_SID, GRANT_SID] {
            let statements: Vec<&Value> = self.statements.iter().filter(|statement| statement["Sid"] == sid).collect();
            if statements.len() > 1 {
                found.push(format!("there are {} statements {sid}", statements.len()));
            }
            for statement in statements {
                let differences = self.differences(sid, statement);
                if !differences.is_empty() {
                    found.push(format!("in statement {sid}, {}", differences.join(" and ")));
                }
            }
        }
        found
    }

    /// Statements under our Sids from which nobody can be taken: they allow everybody, or all but some.
    pub fn open_to_all(&self) -> Vec<&str> {
        let open = |statement: &&Value| {
            let everybody =
                statement["Principal"] == "*" || strings(&statement["Principal"]["AWS"]).contains(&"*".into());
            statement["Effect"] == "Allow" && (everybody || statement.get("NotPrincipal").is_some())
        };
        let under_our_sids = self.statements.iter().filter(|statement| has_our_sid(statement));
        under_our_sids.filter(open).filter_map(|statement| statement["Sid"].as_str()).collect()
    }

    /// Whom other people's statements let decrypt with the key, as far as that can be told from names: what
    /// conditions and Deny statements make of it is not looked at.
    pub fn others(&self) -> Others {
        let mut others = Others::default();
        for statement in self.statements.iter().filter(|one| !self.is_ours(one) && lets_decrypt(one)) {
            let principal = &statement["Principal"];
            if principal == "*" || statement.get("NotPrincipal").is_some() {
                others.everybody = true;
            }
            for name in strings(&principal["AWS"]) {
                others.everybody |= name == "*";
                others.accounts.extend(account_in(&name));
            }
        }
        others
    }

    /// With `accounts` in both of our statements, which are put right where only their `kms:ViaService` is another: see
    /// [`Self::revived`]. `None` when nothing would change.
    ///
    /// # Errors
    /// [`Error::KeyPolicyConflict`] for a statement under one of our Sids that is not ours: whoever is added to it would
    /// get what it says, and putting it right would give or take what nobody asked for.
    pub fn with<'a>(&self, accounts: impl IntoIterator<Item = &'a AccountId>) -> Result<Option<Self>, Error> {
        let foreign = self.foreign();
        if !foreign.is_empty() {
            return Err(Error::KeyPolicyConflict {
                key: self.key.clone(),
                reason: format!(
                    "what is under ami-share's Sids is not as ami-share writes it: {}; give it another Sid, or remove it, and \
                     start again",
                    foreign.join("; ")
                ),
            });
        }
        let accounts: Vec<&AccountId> = accounts.into_iter().collect();
        let mut merged = self.clone();
        for sid in [USE_SID, GRANT_SID] {
            let mut principals = self.principals(sid);
            for account in &accounts {
                let root = root_arn(&self.key, account);
                if !principals.contains(&root) {
                    principals.push(root);
                }
            }
            merged.set(sid, principals);
        }
        Ok(merged.differs_from(self).then_some(merged))
    }

    /// Without `accounts`, and their users and roles, in the statements under our Sids, whatever else these say; a statement
    /// that names nobody any more goes. Nobody is taken out of a Deny, or of those that a statement leaves out: that would
    /// give. `None` when nothing would change.
    pub fn without<'a>(&self, accounts: impl IntoIterator<Item = &'a AccountId>) -> Option<Self> {
        let gone: BTreeSet<&AccountId> = accounts.into_iter().collect();
        let stays = |name: &String| account_in(name).is_none_or(|account| !gone.contains(&account));
        let mut reduced = self.clone();
        reduced.statements.retain_mut(|statement| {
            if !has_our_sid(statement) || !names_whom_it_allows(statement) {
                return true;
            }
            let Some(Value::Object(kinds)) = statement.get_mut("Principal") else { return true };
            let named = strings(kinds.get("AWS").unwrap_or(&Value::Null));
            let kept: Vec<&String> = named.iter().filter(|name| stays(name)).collect();
            if kept.len() == named.len() {
                return true;
            }
            if kept.is_empty() {
                kinds.remove("AWS");
            } else {
                kinds.insert("AWS".to_owned(), json!(kept));
            }
            !kinds.is_empty()
        });
        reduced.differs_from(self).then_some(reduced)
    }

    /// What an undo needs to know to put back what [`Self::with`] puts right; nothing where that is nothing.
    pub fn repair(&self) -> Option<Repair> {
        let (using, granting) = (self.via_service(USE_SID), self.via_service(GRANT_SID));
        let elsewhere = |via: &Option<String>| via.as_ref().is_some_and(|via| *via != via_ec2(&self.key));
        (elsewhere(&using) || elsewhere(&granting)).then(|| Repair { using, granting, before: self.digest_of_ours() })
    }

    /// With `repair` put back. Nothing where our statements would not be as they were before it: somebody else has come to
    /// rely on them since.
    pub fn without_repair(&self, repair: &Repair) -> Option<Self> {
        let mut restored = self.clone();
        for (sid, via) in [(USE_SID, &repair.using), (GRANT_SID, &repair.granting)] {
            let ours = restored.statements.iter_mut().filter(|statement| statement["Sid"] == sid);
            for (statement, via) in ours.zip(via) {
                *statement.pointer_mut(VIA_SERVICE)? = json!(via);
            }
        }
        (restored.digest_of_ours() == repair.before && restored.differs_from(self)).then_some(restored)
    }

    fn digest_of_ours(&self) -> String {
        digest_of(self.statements.iter().filter(|statement| has_our_sid(statement)))
    }

    /// The document to write.
    ///
    /// # Errors
    /// [`Error::KeyPolicyTooLarge`], and [`Error::KeyPolicyConflict`] naming every statement for
    /// which KMS would refuse the whole document: one that still holds the id of a deleted user or
    /// role, one that lacks a required element, and one whose Resource is not `*` (both refused since August 2025).
    pub fn to_text(&self) -> Result<String, Error> {
        let obstacles = self.obstacles();
        if !obstacles.is_empty() {
            return Err(Error::KeyPolicyConflict {
                key: self.key.clone(),
                reason: format!("KMS would refuse to store it; mend first: {}", obstacles.join("; ")),
            });
        }
        let mut document = self.document.clone();
        document.insert("Statement".to_owned(), Value::Array(self.statements.clone()));
        let text = escaped(&Value::Object(document).to_string());
        if text.len() > MAX_BYTES {
            return Err(Error::KeyPolicyTooLarge { key: self.key.clone(), bytes: text.len(), most: MAX_BYTES });
        }
        Ok(text)
    }

    /// The same for policies that mean the same: KMS may lay a policy out anew.
    pub fn digest(&self) -> String {
        digest_of(&self.statements)
    }

    /// The service, Region and endpoint that the first statement `sid` is for, if it has one.
    fn via_service(&self, sid: &str) -> Option<String> {
        let [via] = <[String; 1]>::try_from(strings(self.statement(sid)?.pointer(VIA_SERVICE)?)).ok()?;
        Some(via)
    }

    fn is_ours(&self, statement: &Value) -> bool {
        let sid = statement["Sid"].as_str().unwrap_or_default();
        has_our_sid(statement) && self.differences(sid, statement).is_empty()
    }

    /// What a statement under our Sid says that ami-share does not write; nothing of one that is ours, or only has to be put
    /// right.
    fn differences(&self, sid: &str, statement: &Value) -> Vec<String> {
        let mut statement = statement.clone();
        if let Some(via) = statement.pointer_mut(VIA_SERVICE)
            && strings(via).iter().all(|via| is_ec2(via))
            && strings(via).len() == 1
        {
            *via = json!(via_ec2(&self.key));
        }
        if let Some(value) = statement.pointer_mut(FOR_AWS_RESOURCE).filter(|value| **value == true) {
            *value = json!("true");
        }
        let expected = our_statement(&self.key, sid, &[]);
        let elements: BTreeSet<&String> =
            [&statement, &expected].into_iter().filter_map(Value::as_object).flat_map(Map::keys).collect();
        let mut found = Vec::new();
        for element in elements {
            let (is, should) = (&statement[element], &expected[element]);
            if element == "Principal" {
                found.extend(not_accounts(is));
            } else if is.is_null() {
                found.push(format!("its {element} is missing"));
            } else if canonical(is) != canonical(should) {
                found.push(format!("its {element} is {is}"));
            }
        }
        found
    }

    fn obstacles(&self) -> Vec<String> {
        let mut obstacles = Vec::new();
        for (index, statement) in self.statements.iter().enumerate() {
            let name = match statement["Sid"].as_str() {
                Some(sid) => format!("statement {sid}"),
                None => format!("statement {} (without Sid)", index + 1),
            };
            for [element, inverse] in
                [["Action", "NotAction"], ["Resource", "NotResource"], ["Principal", "NotPrincipal"]]
            {
                if statement.get(element).is_none() && statement.get(inverse).is_none() {
                    obstacles.push(format!("{name} has no {element}"));
                }
            }
            if let Some(resource) = statement.get("NotResource") {
                obstacles.push(format!("{name} has NotResource {resource}, and KMS takes only Resource \"*\""));
            }
            let resources = strings(&statement["Resource"]);
            if let Some(resource) = resources.iter().find(|resource| *resource != "*") {
                obstacles.push(format!("{name} has Resource {resource}, and KMS takes only \"*\""));
            }
            for principal in
                ["Principal", "NotPrincipal"].iter().flat_map(|element| strings(&statement[element]["AWS"]))
            {
                if is_unique_id(&principal) {
                    obstacles.push(format!("{name} names {principal}, a principal that was deleted"));
                }
            }
        }
        obstacles
    }

    fn statement(&self, sid: &str) -> Option<&Value> {
        self.statements.iter().find(|statement| statement["Sid"] == sid)
    }

    /// The principals of our statement `sid`, accounts as the ARN of their root.
    fn principals(&self, sid: &str) -> Vec<String> {
        let listed = self.statement(sid).map(|statement| strings(&statement["Principal"]["AWS"])).unwrap_or_default();
        listed
            .into_iter()
            .map(|principal| match AccountId::parse(principal.as_str()) {
                Ok(account) => root_arn(&self.key, &account),
                Err(_) => principal,
            })
            .collect()
    }

    fn set(&mut self, sid: &str, principals: Vec<String>) {
        let place = self.statements.iter().position(|statement| statement["Sid"] == sid);
        if principals.is_empty() {
            if let Some(place) = place {
                self.statements.remove(place);
            }
            return;
        }
        let statement = our_statement(&self.key, sid, &principals);
        match place {
            Some(place) => self.statements[place] = statement,
            None => self.statements.push(statement),
        }
    }

    /// KMS may give back a list of one as a string, and lists in another order.
    fn differs_from(&self, other: &Self) -> bool {
        self.statements.len() != other.statements.len()
            || self.statements.iter().zip(&other.statements).any(|(a, b)| canonical(a) != canonical(b))
    }
}

/// `error` of a call that has to do with the policy of `key`, with what to do where it was refused: whatever IAM allows a
/// role, a key policy may keep it out ("Key policies in AWS KMS", KMS developer guide).
pub fn explained(key: &KeyArn, error: Error) -> Error {
    match error {
        Error::AccessDenied { account, call, reason, source } => {
            let tagged = match call {
                "kms:PutKeyPolicy" | "kms:CreateGrant" => {
                    "; deployed with OnlyTaggedKeys, that role changes only keys with the tag ami-share:shareable = true"
                }
                _ => "",
            };
            Error::AccessDenied {
                reason: format!(
                    "{reason}; the policy of key {key} must let IAM of account {account} decide about {call}, or allow \
                     it to the role that ami-share assumes there, and no statement may deny it{tagged}"
                ),
                account,
                call,
                source,
            }
        }
        other => other,
    }
}

/// Where a statement says which service it is for, as a JSON pointer.
const VIA_SERVICE: &str = "/Condition/StringEquals/kms:ViaService";
const FOR_AWS_RESOURCE: &str = "/Condition/Bool/kms:GrantIsForAWSResource";

fn via_ec2(key: &KeyArn) -> String {
    format!("ec2.{}.amazonaws.com", key.region())
}

/// EC2 in any Region, at any endpoint ("kms:ViaService", AWS KMS developer guide).
fn is_ec2(via: &str) -> bool {
    via.starts_with("ec2.") && (via.ends_with(".amazonaws.com") || via.ends_with(".amazonaws.com.cn"))
}

/// KMS takes only characters up to U+00FF ("PutKeyPolicy", KMS API reference), and gives back as such those that it was
/// given as escapes. They stand in texts alone, and there an escape says the same.
fn escaped(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for character in json.chars() {
        if character <= '\u{ff}' {
            text.push(character);
        } else {
            let units =
                character.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect::<String>();
            text.push_str(&units);
        }
    }
    text
}

fn has_our_sid(statement: &Value) -> bool {
    statement["Sid"] == USE_SID || statement["Sid"] == GRANT_SID
}

/// Whether it gives something to those whom it names: to be taken out of it takes something away.
fn names_whom_it_allows(statement: &Value) -> bool {
    statement["Effect"] == "Allow" && statement.get("NotPrincipal").is_none()
}

/// What of a Principal is no account.
fn not_accounts(principal: &Value) -> Option<String> {
    let names = principal.as_object().filter(|kinds| kinds.keys().eq(["AWS"])).map(|kinds| &kinds["AWS"]);
    let Some(names) = names.filter(|names| names.is_string() || names.is_array()) else {
        return Some(format!("its Principal is {principal}"));
    };
    let is_account = |name: &&String| AccountId::parse(name.as_str()).is_ok() || account_of(name).is_some();
    let names = strings(names);
    let others: Vec<&str> = names.iter().filter(|name| !is_account(name)).map(String::as_str).collect();
    (!others.is_empty()).then(|| format!("it names {}", others.join(", ")))
}

fn digest_of<'a>(statements: impl IntoIterator<Item = &'a Value>) -> String {
    let statements: Vec<String> = statements.into_iter().map(|statement| canonical(statement).to_string()).collect();
    digest::sha256(statements.join("\n"))[..16].to_owned()
}

fn our_statement(key: &KeyArn, sid: &str, principals: &[String]) -> Value {
    let via = via_ec2(key);
    let mut statement = json!({
        "Sid": sid,
        "Effect": "Allow",
        "Principal": { "AWS": principals },
        "Action": USE_ACTIONS,
        "Resource": "*",
        "Condition": { "StringEquals": { "kms:ViaService": via } },
    });
    if sid == GRANT_SID {
        statement["Action"] = json!(GRANT_ACTION);
        statement["Condition"]["Bool"] = json!({ "kms:GrantIsForAWSResource": "true" });
    }
    statement
}

fn root_arn(key: &KeyArn, account: &AccountId) -> String {
    account_root(account, &key.region())
}

fn account_of(principal: &str) -> Option<AccountId> {
    let parts: Vec<&str> = principal.split(':').collect();
    match parts.as_slice() {
        ["arn", _, "iam", "", account, "root"] => AccountId::parse(*account).ok(),
        _ => None,
    }
}

/// The account of a principal, which may be the account's number, its ARN, or that of any principal of it.
pub fn account_in(principal: &str) -> Option<AccountId> {
    let account = if principal.starts_with("arn:") { principal.split(':').nth(4)? } else { principal };
    AccountId::parse(account).ok()
}

/// Whether a statement allows what no launch can do without.
fn lets_decrypt(statement: &Value) -> bool {
    const DECRYPT: &str = "kms:decrypt";
    let covers = |pattern: &String| match pattern.to_ascii_lowercase().split_once('*') {
        Some((prefix, _)) => DECRYPT.starts_with(prefix),
        None => pattern.eq_ignore_ascii_case(DECRYPT),
    };
    let named = strings(&statement["Action"]).iter().any(covers);
    statement["Effect"] == "Allow" && (named || statement.get("NotAction").is_some())
}

/// What KMS shows in place of the ARN of a user (AIDA…) or role (AROA…) that was deleted ("IAM
/// identifiers", IAM user guide).
fn is_unique_id(principal: &str) -> bool {
    (principal.starts_with("AIDA") || principal.starts_with("AROA"))
        && principal.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit())
}

fn strings(value: &Value) -> Vec<String> {
    match value {
        Value::String(one) => vec![one.clone()],
        Value::Array(many) => many.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    }
}

/// The same for what means the same where the order of lists means nothing, and a list of one is as
/// good as what it holds.
pub(crate) fn canonical(value: &Value) -> Value {
    match value {
        Value::Array(items) => {
            let mut items: Vec<Value> = items.iter().map(canonical).collect();
            items.sort_by_key(Value::to_string);
            if items.len() == 1 { items.remove(0) } else { Value::Array(items) }
        }
        Value::Object(fields) => {
            let mut fields: Vec<(String, Value)> =
                fields.iter().map(|(name, value)| (name.clone(), canonical(value))).collect();
            fields.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(fields.into_iter().collect())
        }
        other => other.clone(),
    }
}

#[cfg(test)]
mod found;

#[cfg(test)]
mod tests {
    use super::*;

    const ADMIN: &str = r#"{"Sid":"Admin","Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111111111111:root"},"Action":"kms:*","Resource":"*"}"#;

    fn key() -> KeyArn {
        KeyArn::parse("arn:aws:kms:eu-west-1:111111111111:key/1234").unwrap()
    }

    fn account(digit: u8) -> AccountId {
        AccountId::parse(digit.to_string().repeat(12)).unwrap()
    }

    fn policy(statements: &str) -> KeyPolicy {
        KeyPolicy::parse(&key(), &format!(r#"{{"Version":"2012-10-17","Id":"theirs","Statement":[{statements}]}}"#))
            .unwrap()
    }

    fn reread(policy: &KeyPolicy) -> KeyPolicy {
        KeyPolicy::parse(&key(), &policy.to_text().unwrap()).unwrap()
    }

    #[test]
    fn a_refusal_says_what_the_policy_must_allow_and_of_a_write_the_tag_too() {
        let refused = |call: &'static str| {
            let account = AccountId::parse("111111111111").unwrap();
            explained(&key(), Error::AccessDenied { account, call, reason: "no".to_owned(), source: None }).to_string()
        };
        for (call, tagged) in [("kms:PutKeyPolicy", true), ("kms:GetKeyPolicy", false)] {
            let said = refused(call);
            assert!(said.contains(&format!("decide about {call}")), "{said}");
            assert_eq!(said.contains("OnlyTaggedKeys"), tagged, "{said}");
        }
    }

    #[test]
    fn an_account_is_named_by_its_digits_and_is_no_deleted_principal() {
        let statement = |principal: &str| ADMIN.replace("arn:aws:iam::111111111111:root", principal);
        assert!(policy(&statement("999999999999")).to_text().is_ok());
        let error = policy(&statement("AROAEXAMPLEID0000000")).to_text().unwrap_err();
        assert_eq!(error.name(), "KeyPolicyConflict");
    }

    /// IAM's grammar allows one statement without a list ("Grammar of the IAM JSON policy language", IAM user guide).
    #[test]
    fn one_statement_may_stand_without_a_list() {
        let parse = |statement: &str| KeyPolicy::parse(&key(), &format!(r#"{{"Statement":{statement}}}"#));
        let one = parse(ADMIN).unwrap();
        assert_eq!(one.digest(), parse(&format!("[{ADMIN}]")).unwrap().digest());
        assert!(one.with([&account(2)]).unwrap().unwrap().to_text().unwrap().contains("Admin"));
        for wrong in ["1", "null", "\"\""] {
            assert_eq!(parse(wrong).unwrap_err().name(), "KeyPolicyConflict", "{wrong}");
        }
    }

    #[test]
    fn targets_are_added_after_everyone_elses_statements() {
        let shared = policy(ADMIN).with(&[account(2), account(3)]).unwrap().unwrap();
        let text: Value = serde_json::from_str(&shared.to_text().unwrap()).unwrap();
        assert_eq!(text["Id"], "theirs");
        assert_eq!(text["Statement"][0], serde_json::from_str::<Value>(ADMIN).unwrap());
        assert_eq!(text["Statement"].as_array().unwrap().len(), 3);
        assert_eq!(text["Statement"][1]["Principal"]["AWS"][1], "arn:aws:iam::333333333333:root");
        assert_eq!(text["Statement"][1]["Condition"]["StringEquals"]["kms:ViaService"], "ec2.eu-west-1.amazonaws.com");
        assert_eq!(text["Statement"][2]["Action"], "kms:CreateGrant");
        assert_eq!(text["Statement"][2]["Condition"]["Bool"]["kms:GrantIsForAWSResource"], "true");
        assert_eq!(reread(&shared).accounts(), BTreeSet::from([account(2), account(3)]));
    }

    #[test]
    fn adding_twice_changes_nothing() {
        let shared = policy(ADMIN).with(&[account(2)]).unwrap().unwrap();
        assert!(reread(&shared).with(&[account(2)]).unwrap().is_none());
    }

    #[test]
    fn a_list_of_one_that_comes_back_as_a_string_is_no_change() {
        let shared = policy(ADMIN).with(&[account(2)]).unwrap().unwrap();
        let text = shared
            .to_text()
            .unwrap()
            .replace(r#"{"AWS":["arn:aws:iam::222222222222:root"]}"#, r#"{"AWS":"arn:aws:iam::222222222222:root"}"#);
        assert!(KeyPolicy::parse(&key(), &text).unwrap().with(&[account(2)]).unwrap().is_none());
    }

    fn shared_text() -> String {
        policy(ADMIN).with(&[account(2)]).unwrap().unwrap().to_text().unwrap()
    }

    fn changed(text: &str, from: &str, to: &str) -> KeyPolicy {
        assert!(text.contains(from), "{text}");
        KeyPolicy::parse(&key(), &text.replace(from, to)).unwrap()
    }

    #[test]
    fn a_statement_for_another_region_or_endpoint_is_put_right_and_what_that_was_can_be_put_back() {
        let text = shared_text();
        for elsewhere in ["ec2.us-east-1.amazonaws.com", "ec2.cn-north-1.amazonaws.com.cn"] {
            let broken = changed(&text, "ec2.eu-west-1.amazonaws.com", elsewhere);
            assert_eq!(broken.revived(), BTreeSet::from([account(2)]));
            let mended = broken.with(&[account(2)]).unwrap().expect("a change");
            assert_eq!(mended.to_text().unwrap(), text);
            assert!(mended.revived().is_empty() && mended.repair().is_none());
            let repair = broken.repair().unwrap();
            assert_eq!(mended.without_repair(&repair).unwrap().to_text().unwrap(), broken.to_text().unwrap());
            let relied_on = mended.with(&[account(3)]).unwrap().unwrap();
            assert!(relied_on.without_repair(&repair).is_none(), "another account relies on it");
            assert!(relied_on.without(&[account(3)]).unwrap().without_repair(&repair).is_some());
        }
    }

    #[test]
    fn a_statement_under_our_sid_with_less_than_we_write_is_not_ours() {
        for (whole, broken, said) in [
            (r#""kms:Decrypt","#, "", "statement AmiShareUse, its Action is [\"kms:DescribeKey\","),
            (r#""Bool":{"kms:GrantIsForAWSResource":"true"}"#, r#""Bool":{}"#, "AmiShareCreateGrant, its Condition is"),
            (
                r#","Condition":{"StringEquals":{"kms:ViaService":"ec2.eu-west-1.amazonaws.com"}}}"#,
                "}",
                "Condition is missing",
            ),
            (
                r#""ec2.eu-west-1.amazonaws.com""#,
                r#"["ec2.eu-west-1.amazonaws.com","ec2.eu-west-2.amazonaws.com"]"#,
                "eu-west-2",
            ),
            ("ec2.eu-west-1.amazonaws.com", "rds.eu-west-1.amazonaws.com", "rds.eu-west-1"),
            (
                "arn:aws:iam::222222222222:root",
                "arn:aws:iam::222222222222:role/app",
                "it names arn:aws:iam::222222222222:role/app",
            ),
        ] {
            let error = changed(&shared_text(), whole, broken).with(&[account(3)]).unwrap_err().to_string();
            for said in [key().as_str(), said, "give it another Sid"] {
                assert!(error.contains(said), "{error}");
            }
        }
        let twice =
            policy(&format!("{ADMIN},{0},{0}", our_statement(&key(), USE_SID, &[root_arn(&key(), &account(2))])));
        assert!(twice.with(&[account(3)]).unwrap_err().to_string().contains("there are 2 statements AmiShareUse"));
    }

    #[test]
    fn what_kms_may_write_another_way_is_still_ours() {
        for (ours, theirs) in [
            (r#""kms:GrantIsForAWSResource":"true""#, r#""kms:GrantIsForAWSResource":true"#),
            (
                r#""kms:ViaService":"ec2.eu-west-1.amazonaws.com""#,
                r#""kms:ViaService":["ec2.eu-west-1.amazonaws.com"]"#,
            ),
            (r#""Resource":"*""#, r#""Resource":["*"]"#),
            (r#"["arn:aws:iam::222222222222:root"]"#, r#""222222222222""#),
        ] {
            let policy = changed(&shared_text(), ours, theirs);
            assert_eq!(policy.foreign(), [""; 0], "{theirs}");
            assert_eq!(policy.accounts(), BTreeSet::from([account(2)]));
        }
    }

    #[test]
    fn taking_back_takes_from_whatever_is_under_our_sids_and_adds_nothing() {
        let under = |rest: &str| policy(&format!(r#"{ADMIN},{{"Sid":"AmiShareUse",{rest}}}"#));
        let (two, three) = ("arn:aws:iam::222222222222:root", "arn:aws:iam::333333333333:root");
        let all = under(&format!(
            r#""Effect":"Allow","Principal":{{"AWS":["{two}","arn:aws:iam::222222222222:role/app","{three}"]}},"Action":"kms:Decrypt","Resource":"*""#
        ));
        assert_eq!(all.named(), BTreeSet::from([account(2), account(3)]));
        let less = all.without(&[account(2)]).unwrap();
        assert_eq!(less.statement(USE_SID).unwrap()["Principal"], json!({ "AWS": [three] }));
        assert_eq!(less.statement(USE_SID).unwrap()["Action"], "kms:Decrypt");
        assert!(less.without(&[account(3)]).unwrap().statement(USE_SID).is_none());
        let service = under(&format!(
            r#""Effect":"Allow","Principal":{{"AWS":"{two}","Service":"backup.amazonaws.com"}},"Action":"kms:*","Resource":"*""#
        ));
        let left = service.without(&[account(2)]).unwrap();
        assert_eq!(left.statement(USE_SID).unwrap()["Principal"], json!({ "Service": "backup.amazonaws.com" }));
        let deny = format!(r#""Effect":"Deny","Principal":{{"AWS":"{two}"}},"Action":"kms:*","Resource":"*""#);
        let but = format!(r#""Effect":"Allow","NotPrincipal":{{"AWS":"{two}"}},"Action":"kms:*","Resource":"*""#);
        let everybody = r#""Effect":"Allow","Principal":"*","Action":"kms:*","Resource":"*""#;
        for (rest, open) in [(deny.as_str(), false), (&but, true), (everybody, true)] {
            assert!(under(rest).without(&[account(2)]).is_none(), "{rest}");
            assert_eq!(!under(rest).open_to_all().is_empty(), open, "{rest}");
        }
    }

    #[test]
    fn taking_back_leaves_the_policy_as_it_was() {
        let before = policy(&format!("{ADMIN},{ADMIN}"));
        let shared = before.with(&[account(2), account(3)]).unwrap().unwrap();
        let reduced = shared.without(&[account(3)]).unwrap();
        assert_eq!(reduced.accounts(), BTreeSet::from([account(2)]));
        let after = reduced.without(&[account(2)]).unwrap();
        assert_eq!(after.to_text().unwrap(), before.to_text().unwrap());
        assert!(after.without(&[account(2)]).is_none());
    }

    #[test]
    fn an_account_in_one_statement_only_does_not_count_and_is_still_taken_back() {
        let shared = policy(ADMIN).with(&[account(2)]).unwrap().unwrap();
        let text = shared.to_text().unwrap().replace(GRANT_SID, "SomebodyElse");
        let half = KeyPolicy::parse(&key(), &text).unwrap();
        assert!(half.accounts().is_empty());
        let after = half.without(&[account(2)]).unwrap();
        assert!(after.statement(USE_SID).is_none());
        assert!(after.statement("SomebodyElse").is_some());
    }

    #[test]
    fn principals_that_somebody_added_to_our_statement_stay() {
        let shared = policy(ADMIN).with(&[account(2)]).unwrap().unwrap();
        let role = "arn:aws:iam::444444444444:role/x";
        let text = shared
            .to_text()
            .unwrap()
            .replace("[\"arn:aws:iam::222222222222:root\"", &format!("[\"{role}\",\"arn:aws:iam::222222222222:root\""));
        let after = KeyPolicy::parse(&key(), &text).unwrap().without(&[account(2)]).unwrap();
        assert_eq!(after.principals(USE_SID), [role]);
    }

    #[test]
    fn a_statement_under_our_sid_that_says_more_than_we_write_is_a_conflict() {
        let ours = our_statement(&key(), USE_SID, &[root_arn(&key(), &account(2))]);
        let with = |element: &str, value: Value| {
            let mut statement = ours.clone();
            statement[element] = value;
            KeyPolicy::parse(&key(), &json!({ "Statement": [statement] }).to_string()).unwrap().with([&account(2)])
        };
        assert!(with("Effect", json!("Allow")).is_ok());
        for (element, value, said) in [
            ("Effect", json!("Deny"), "Effect"),
            ("Principal", json!("*"), "Principal"),
            ("Principal", json!({ "AWS": "AROAEXAMPLEID0000000" }), "names AROA"),
            ("Principal", json!({ "AWS": "*" }), "names *"),
            ("Principal", json!({ "AWS": "222222222222", "Service": "backup.amazonaws.com" }), "Service"),
            ("Action", json!(["kms:Decrypt", "kms:Encrypt"]), "kms:Encrypt"),
            ("NotAction", json!("kms:Encrypt"), "NotAction"),
            ("Resource", json!("arn:aws:kms:eu-west-1:111111111111:key/1234"), "Resource"),
            ("Condition", json!({ "StringEquals": { "aws:PrincipalOrgID": "o-1" } }), "aws:PrincipalOrgID"),
        ] {
            let error = with(element, value).unwrap_err();
            assert_eq!(error.name(), "KeyPolicyConflict");
            assert!(error.to_string().contains(said), "{error}");
        }
    }

    #[test]
    fn a_deleted_principal_and_an_incomplete_statement_are_named_before_the_write() {
        let old = r#"{"Sid":"Old","Effect":"Allow","Principal":{"AWS":["AROAEXAMPLEID","arn:aws:iam::111111111111:root"]},"Action":"kms:*","Resource":"*"},
                     {"Effect":"Allow","Principal":"*","Action":"kms:Decrypt"}"#;
        let error = policy(old).with(&[account(2)]).unwrap().unwrap().to_text().unwrap_err();
        assert_eq!(error.name(), "KeyPolicyConflict");
        let text = error.to_string();
        assert!(text.contains("statement Old names AROAEXAMPLEID"), "{text}");
        assert!(text.contains("statement 2 (without Sid) has no Resource"), "{text}");
    }

    #[test]
    fn characters_that_kms_takes_only_as_escapes_are_written_as_escapes() {
        let admin = ADMIN.replace("Admin", "L\u{2019}\u{e9}quipe \u{1f511}");
        let text = policy(&admin).with(&[account(2)]).unwrap().unwrap().to_text().unwrap();
        assert!(text.contains("L\\u2019\u{e9}quipe \\ud83d\\udd11"), "{text}");
        assert!(text.chars().all(|c| matches!(c, '\t' | '\n' | '\r' | '\u{20}'..='\u{ff}')), "{text}");
        let read: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(read["Statement"][0]["Sid"], "L\u{2019}\u{e9}quipe \u{1f511}");
    }

    #[test]
    fn a_statement_about_certain_resources_is_named_before_the_write() {
        let arn = key().to_string();
        for (element, resource) in
            [("Resource", json!(arn)), ("Resource", json!(["*", arn])), ("NotResource", json!(arn))]
        {
            let mut statement: Value = serde_json::from_str(ADMIN).unwrap();
            statement.as_object_mut().unwrap().remove("Resource");
            statement[element] = resource;
            let error = policy(&statement.to_string()).with(&[account(2)]).unwrap().unwrap().to_text().unwrap_err();
            assert_eq!(error.name(), "KeyPolicyConflict");
            assert!(error.to_string().contains(&format!("statement Admin has {element} ")), "{error}");
        }
    }

    #[test]
    fn a_policy_of_32768_bytes_is_written_and_one_byte_more_is_refused() {
        let room = MAX_BYTES - policy(ADMIN).with(&[account(2)]).unwrap().unwrap().to_text().unwrap().len();
        let padded = |bytes: usize| {
            let admin = ADMIN.replace("\"Sid\":\"Admin\"", &format!("\"Sid\":\"Admin{}\"", "x".repeat(bytes)));
            policy(&admin).with(&[account(2)]).unwrap().unwrap().to_text()
        };
        assert_eq!(padded(room).unwrap().len(), MAX_BYTES);
        assert_eq!(padded(room + 1).unwrap_err().name(), "KeyPolicyTooLarge");
    }

    #[test]
    fn over_four_hundred_accounts_fit() {
        let accounts: Vec<AccountId> = (0..450).map(|n| AccountId::parse(format!("2{n:011}")).unwrap()).collect();
        assert!(policy(ADMIN).with(&accounts).unwrap().unwrap().to_text().is_ok());
    }

    #[test]
    fn an_account_that_one_of_our_statements_names_is_half_named() {
        let mut half = policy(ADMIN).with(&[account(2), account(3)]).unwrap().unwrap();
        half.set(GRANT_SID, vec![root_arn(&key(), &account(3)), root_arn(&key(), &account(4))]);
        assert_eq!(half.accounts(), BTreeSet::from([account(3)]));
        assert_eq!(half.half_named(), BTreeSet::from([account(2), account(4)]));
    }

    #[test]
    fn others_are_those_whom_a_foreign_statement_lets_decrypt() {
        let statement = |principal: &str, action: &str| {
            format!(r#"{{"Effect":"Allow","Principal":{principal},"Action":{action},"Resource":"*"}}"#)
        };
        let of = |statements: &[String]| policy(&statements.join(",")).with(&[account(9)]).unwrap().unwrap().others();
        let others = of(&[
            statement(r#"{"AWS":"222222222222"}"#, r#""kms:Decrypt""#),
            statement(r#"{"AWS":["arn:aws:iam::333333333333:role/app","AROAEXAMPLEIDEXAMPLE"]}"#, r#"["kms:De*"]"#),
            statement(r#"{"AWS":"arn:aws:iam::444444444444:root"}"#, r#""kms:DescribeKey""#),
            statement(r#"{"AWS":"arn:aws:iam::555555555555:root"}"#, r#""kms:Decrypt""#).replace("Allow", "Deny"),
            statement(r#"{"Service":"logs.amazonaws.com"}"#, r#""kms:*""#),
        ]);
        assert_eq!(others, Others { accounts: BTreeSet::from([account(2), account(3)]), everybody: false });
        for principal in [r#""*""#, r#"{"AWS":"*"}"#] {
            assert!(of(&[statement(principal, r#""KMS:*""#)]).everybody, "{principal}");
        }
    }
}
