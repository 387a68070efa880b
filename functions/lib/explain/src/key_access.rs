//! What a key policy says about one principal: judged here, as KMS would, because AWS has no call
//! for it (the policy simulator takes no key policy for a role).
//!
//! iam-rs matches actions, resources and conditions. Whom a statement names is worked out here, and
//! every condition is asked about by itself, so that the one that fails can be named.

use ami_share_core::ids::{AccountId, KeyArn, PrincipalArn};
use iam_rs::{
    Arn, Context, ContextValue, Decision, IAMPolicy, IAMRequest, IAMStatement, PolicyEvaluator, Principal, PrincipalId,
};
use serde_json::{Map, Value, json};

/// What a policy says about one action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Allowed(Through),
    /// By which statement, a clause as below. No grant makes up for it.
    Denied(String),
    /// Why not: a clause to follow the action's name, such as `denied by statement DenyAll`.
    Refused(String),
    /// What it depends on that cannot be seen from here: as above.
    Unclear(String),
}

/// How the allowing statement names the principal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Through {
    /// Through its account: the principal's own policies must allow the action too.
    Account,
    /// Itself, or as one of everyone: within an account that is enough.
    Itself,
}

/// A call that EC2 makes in the name of a principal of a target.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call<'a> {
    pub(crate) principal: &'a PrincipalArn,
    pub(crate) key: &'a KeyArn,
    pub(crate) action: &'static str,
}

/// Judges `policy`, as kms:GetKeyPolicy returns it.
///
/// # Errors
/// A sentence, when it is not a policy document.
pub(crate) fn judge(policy: &str, call: Call<'_>) -> Result<Verdict, String> {
    let document: Value = serde_json::from_str(policy).map_err(|error| format!("it is not JSON: {error}"))?;
    let statements = match &document["Statement"] {
        Value::Array(statements) => statements.iter().collect(),
        statement @ Value::Object(_) => vec![statement],
        _ => return Err("it has no Statement".to_owned()),
    };
    let mut allowed = None;
    let (mut refusals, mut may_allow, mut may_deny) = (Vec::new(), Vec::new(), Vec::new());
    for (index, statement) in statements.into_iter().enumerate() {
        let Some(through) = names(statement, call.principal) else { continue };
        let name = statement_name(statement, index);
        let denies = statement["Effect"] == "Deny";
        match matches(statement, call) {
            Match::Yes if denies => return Ok(Verdict::Denied(format!("denied by {name}"))),
            Match::Yes => allowed = allowed.max(Some(through)),
            Match::Condition(condition) if !denies => {
                refusals.push(format!("allowed by {name} only where {condition}"));
            }
            Match::Unclear(what) if denies => may_deny.push(format!("denied by {name} depending on {what}")),
            Match::Unclear(what) => may_allow.push(format!("allowed by {name} depending on {what}")),
            Match::Condition(_) | Match::No => {}
        }
    }
    Ok(match allowed {
        Some(through) if may_deny.is_empty() => Verdict::Allowed(through),
        Some(_) => Verdict::Unclear(may_deny.join(" and ")),
        None if !may_allow.is_empty() => {
            may_allow.append(&mut may_deny);
            Verdict::Unclear(may_allow.join(" and "))
        }
        None if !refusals.is_empty() => Verdict::Refused(refusals.join(" and ")),
        None => Verdict::Refused(format!(
            "not allowed by any statement that names account {} or {}",
            call.principal.account_id(),
            call.principal
        )),
    })
}

fn statement_name(statement: &Value, index: usize) -> String {
    match statement["Sid"].as_str() {
        Some(sid) => format!("statement {sid}"),
        None => format!("statement {} (without Sid)", index + 1),
    }
}

/// How `statement` names `principal`, if it does: itself, its account (as an id or as the ARN of
/// its root) or everyone. An account in NotPrincipal stands for all of it.
fn names(statement: &Value, principal: &PrincipalArn) -> Option<Through> {
    let negated = statement.get("NotPrincipal");
    let listed = match negated.or_else(|| statement.get("Principal"))? {
        Value::String(one) => vec![one.as_str()],
        principals => strings(&principals["AWS"]),
    };
    let account = principal.account_id();
    let named = listed
        .into_iter()
        .filter_map(|name| {
            if name == "*" || name == principal.as_str() {
                Some(Through::Itself)
            } else {
                is_account(name, &account).then_some(Through::Account)
            }
        })
        .max();
    match negated {
        Some(_) => named.is_none().then_some(Through::Itself),
        None => named,
    }
}

fn is_account(name: &str, account: &AccountId) -> bool {
    name == account.as_str()
        || matches!(name.split(':').collect::<Vec<_>>().as_slice(),
            ["arn", _, "iam", "", id, "root"] if *id == account.as_str())
}

enum Match {
    Yes,
    /// It is about another action or resource.
    No,
    /// All but a condition fits: a clause that says what it asks for and what the call has.
    Condition(String),
    Unclear(String),
}

fn matches(statement: &Value, call: Call<'_>) -> Match {
    let context = context(call);
    let mut bare = Map::new();
    bare.insert("Effect".to_owned(), json!("Allow"));
    for element in ["Action", "NotAction", "Resource", "NotResource"] {
        if let Some(value) = statement.get(element) {
            bare.insert(element.to_owned(), value.clone());
        }
    }
    match holds(&bare, call, &context) {
        None => return Match::Unclear("elements that are not understood here".to_owned()),
        Some(false) => return Match::No,
        Some(true) => {}
    }
    let mut failing = None;
    let mut unknown = Vec::new();
    for (operator, keys) in statement["Condition"].as_object().into_iter().flatten() {
        for (key, value) in keys.as_object().into_iter().flatten() {
            let one = json!({ text_operator(operator): { key: texts(value) } });
            let mut conditional = bare.clone();
            conditional.insert("Condition".to_owned(), one);
            let known = is_known(key) && !value.to_string().contains("${");
            match known.then(|| holds(&conditional, call, &context)).flatten() {
                Some(true) => {}
                Some(false) => {
                    let had = match context.get(key) {
                        Some(ContextValue::String(text)) => text.as_str(),
                        _ => "none",
                    };
                    failing.get_or_insert(format!(
                        "{key} {operator} {} (the call has {had})",
                        strings(&texts(value)).join(" or ")
                    ));
                }
                None => unknown.push(key.as_str()),
            }
        }
    }
    match failing {
        Some(condition) => Match::Condition(condition),
        None if unknown.is_empty() => Match::Yes,
        None => Match::Unclear(format!("{}, which cannot be seen from here", unknown.join(" and "))),
    }
}

/// Whether a statement without principals fits the call; nothing where iam-rs cannot tell.
fn holds(statement: &Map<String, Value>, call: Call<'_>, context: &Context) -> Option<bool> {
    let statement: IAMStatement = serde_json::from_value(Value::Object(statement.clone())).ok()?;
    let evaluator = PolicyEvaluator::with_policies(vec![IAMPolicy::new().add_statement(statement)]);
    let caller = Principal::Aws(PrincipalId::String(call.principal.to_string()));
    let key = Arn::parse(call.key.as_str()).ok()?;
    let request = IAMRequest::new_with_context(caller, call.action, key, context.clone());
    evaluator.evaluate(&request).ok().map(|result| result.decision == Decision::Allow)
}

/// What a call has that EC2 makes for a principal: "Condition keys for AWS KMS" in the KMS developer
/// guide, "AWS global condition context keys" in the IAM user guide. All as text.
fn context(call: Call<'_>) -> Context {
    let account = call.principal.account_id().to_string();
    let region = call.key.region().to_string();
    let mut context = Context::new();
    let mut set = |key: &str, value: &str| context.insert(key.to_owned(), ContextValue::String(value.to_owned()));
    set("kms:ViaService", &format!("ec2.{region}.amazonaws.com"));
    set("kms:CallerAccount", &account);
    set("aws:PrincipalAccount", &account);
    set("aws:PrincipalArn", call.principal.as_str());
    set("aws:RequestedRegion", &region);
    set("aws:ViaAWSService", "true");
    set("aws:PrincipalIsAWSService", "false");
    if call.action == "kms:CreateGrant" {
        set("kms:GrantIsForAWSResource", "true");
    }
    context
}

/// Whether the value of a condition key is known here, or is known to be absent.
fn is_known(key: &str) -> bool {
    const KNOWN: [&str; 10] = [
        "kms:ViaService",
        "kms:CallerAccount",
        "kms:GrantIsForAWSResource",
        "aws:PrincipalAccount",
        "aws:PrincipalArn",
        "aws:RequestedRegion",
        "aws:ViaAWSService",
        "aws:PrincipalIsAWSService",
        // Of calls that a service makes for itself; these it makes for a principal.
        "aws:SourceArn",
        "aws:SourceAccount",
    ];
    KNOWN.iter().any(|known| known.eq_ignore_ascii_case(key))
}

/// Bool compared as text, and ArnEquals as ArnLike: AWS compares so, iam-rs does not.
fn text_operator(operator: &str) -> String {
    let (set, plain) = operator.rsplit_once(':').map_or(("", operator), |(set, plain)| (set, plain));
    let (plain, if_exists) = plain.strip_suffix("IfExists").map_or((plain, ""), |plain| (plain, "IfExists"));
    let plain = match plain {
        "Bool" => "StringEqualsIgnoreCase",
        "ArnEquals" => "ArnLike",
        "ArnNotEquals" => "ArnNotLike",
        other => other,
    };
    if set.is_empty() { format!("{plain}{if_exists}") } else { format!("{set}:{plain}{if_exists}") }
}

fn texts(value: &Value) -> Value {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    match value {
        Value::Array(values) => values.iter().map(text).collect(),
        single => json!([text(single)]),
    }
}

fn strings(value: &Value) -> Vec<&str> {
    match value {
        Value::String(one) => vec![one],
        Value::Array(many) => many.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use ami_share_core::{key_actions::SOURCE_KEY_ACTIONS, key_policy::KeyPolicy};

    use super::*;

    const ADMIN: &str = r#"{"Sid":"Admin","Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111111111111:root"},"Action":"kms:*","Resource":"*"}"#;

    fn key() -> KeyArn {
        KeyArn::parse("arn:aws:kms:eu-west-1:111111111111:key/1234").unwrap()
    }

    fn launcher() -> PrincipalArn {
        PrincipalArn::parse("arn:aws:iam::222222222222:role/AmiShareLauncher").unwrap()
    }

    fn verdict(statements: &str, action: &'static str) -> Verdict {
        let policy = format!(r#"{{"Version":"2012-10-17","Statement":[{statements}]}}"#);
        judge(&policy, Call { principal: &launcher(), key: &key(), action }).unwrap()
    }

    fn refusal(statements: &str, action: &'static str) -> String {
        match verdict(statements, action) {
            Verdict::Denied(why) | Verdict::Refused(why) => why,
            other => panic!("{other:?}"),
        }
    }

    /// The policy that ShareKey writes.
    fn shared() -> Value {
        let admin = format!(r#"{{"Version":"2012-10-17","Statement":[{ADMIN}]}}"#);
        let target = AccountId::parse("222222222222").unwrap();
        let merged = KeyPolicy::parse(&key(), &admin).unwrap().with([&target]).unwrap().unwrap();
        serde_json::from_str(&merged.to_text().unwrap()).unwrap()
    }

    fn statements(policy: &Value) -> String {
        let list: Vec<String> = policy["Statement"].as_array().unwrap().iter().map(Value::to_string).collect();
        list.join(",")
    }

    #[test]
    fn a_shared_key_allows_all_that_a_launch_needs() {
        for action in SOURCE_KEY_ACTIONS {
            assert_eq!(verdict(&statements(&shared()), action), Verdict::Allowed(Through::Account), "{action}");
        }
    }

    #[test]
    fn a_policy_that_names_others_only_is_a_refusal_that_names_the_account() {
        let why = refusal(ADMIN, "kms:Decrypt");
        assert!(why.contains("not allowed by any statement that names account 222222222222"), "{why}");
    }

    #[test]
    fn each_action_that_is_taken_out_is_refused_and_no_other() {
        for (index, gone) in
            ["kms:DescribeKey", "kms:Decrypt", "kms:ReEncryptFrom", "kms:GenerateDataKeyWithoutPlaintext"]
                .into_iter()
                .enumerate()
        {
            let mut policy = shared();
            policy["Statement"][1]["Action"].as_array_mut().unwrap().remove(index);
            for action in SOURCE_KEY_ACTIONS {
                let refused = matches!(verdict(&statements(&policy), action), Verdict::Refused(_));
                assert_eq!(refused, action == gone, "{action} without {gone}");
            }
        }
        let mut policy = shared();
        policy["Statement"].as_array_mut().unwrap().pop();
        assert!(matches!(verdict(&statements(&policy), "kms:CreateGrant"), Verdict::Refused(_)));
    }

    #[test]
    fn a_condition_for_another_region_is_named_with_what_the_call_has() {
        let mut policy = shared();
        policy["Statement"][1]["Condition"]["StringEquals"]["kms:ViaService"] = json!("ec2.us-east-1.amazonaws.com");
        assert_eq!(
            refusal(&statements(&policy), "kms:Decrypt"),
            "allowed by statement AmiShareUse only where kms:ViaService StringEquals ec2.us-east-1.amazonaws.com \
             (the call has ec2.eu-west-1.amazonaws.com)"
        );
    }

    #[test]
    fn a_grant_condition_on_the_use_of_the_key_is_named() {
        let mut policy = shared();
        policy["Statement"][1]["Condition"]["Bool"] = json!({ "kms:GrantIsForAWSResource": true });
        let why = refusal(&statements(&policy), "kms:Decrypt");
        assert!(why.contains("kms:GrantIsForAWSResource Bool true (the call has none)"), "{why}");
        assert_eq!(verdict(&statements(&policy), "kms:CreateGrant"), Verdict::Allowed(Through::Account));
    }

    #[test]
    fn a_grant_that_must_not_be_for_a_service_is_refused() {
        let mut policy = shared();
        policy["Statement"][2]["Condition"]["Bool"]["kms:GrantIsForAWSResource"] = json!("false");
        assert!(refusal(&statements(&policy), "kms:CreateGrant").contains("(the call has true)"));
    }

    #[test]
    fn an_explicit_deny_wins_and_is_named() {
        let deny =
            r#"{"Sid":"NoDecrypt","Effect":"Deny","Principal":"*","NotAction":"kms:DescribeKey","Resource":"*"}"#;
        let policy = format!("{},{deny}", statements(&shared()));
        assert_eq!(refusal(&policy, "kms:Decrypt"), "denied by statement NoDecrypt");
        assert_eq!(verdict(&policy, "kms:DescribeKey"), Verdict::Allowed(Through::Account));
    }

    #[test]
    fn a_deny_of_all_but_some_accounts_spares_those() {
        let deny = |account: &str| {
            format!(
                r#"{},{{"Effect":"Deny","Principal":"*","Action":"kms:*","Resource":"*",
                    "Condition":{{"StringNotEquals":{{"aws:principalaccount":["111111111111","{account}"]}}}}}}"#,
                statements(&shared())
            )
        };
        assert_eq!(verdict(&deny("222222222222"), "kms:Decrypt"), Verdict::Allowed(Through::Account));
        assert_eq!(refusal(&deny("333333333333"), "kms:Decrypt"), "denied by statement 4 (without Sid)");
    }

    #[test]
    fn a_condition_on_what_cannot_be_seen_is_unclear_not_refused() {
        let deny = r#"{"Sid":"Outsiders","Effect":"Deny","Principal":"*","Action":"kms:*","Resource":"*",
                       "Condition":{"StringNotEquals":{"aws:PrincipalOrgID":"o-1"}}}"#;
        match verdict(&format!("{},{deny}", statements(&shared())), "kms:Decrypt") {
            Verdict::Unclear(what) => {
                assert!(what.contains("statement Outsiders") && what.contains("aws:PrincipalOrgID"), "{what}");
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(verdict(&format!("{ADMIN},{deny}"), "kms:Decrypt"), Verdict::Refused(_)));
    }

    #[test]
    fn an_account_is_named_by_id_by_root_or_by_its_principal_and_everyone_by_a_star() {
        let allow = |principal: &str| {
            verdict(
                &format!(r#"{{"Effect":"Allow","Principal":{principal},"Action":"kms:Decrypt","Resource":"*"}}"#),
                "kms:Decrypt",
            )
        };
        for account in [r#"{"AWS":"222222222222"}"#, r#"{"AWS":["arn:aws:iam::222222222222:root"]}"#] {
            assert_eq!(allow(account), Verdict::Allowed(Through::Account), "{account}");
        }
        for itself in [r#"{"AWS":"arn:aws:iam::222222222222:role/AmiShareLauncher"}"#, r#"{"AWS":"*"}"#, r#""*""#] {
            assert_eq!(allow(itself), Verdict::Allowed(Through::Itself), "{itself}");
        }
        for other in [
            r#"{"AWS":"arn:aws:iam::222222222222:role/AmiShareLauncher2"}"#,
            r#"{"AWS":"333333333333"}"#,
            r#"{"Service":"ec2.amazonaws.com"}"#,
        ] {
            assert!(matches!(allow(other), Verdict::Refused(_)), "{other}");
        }
    }

    #[test]
    fn a_statement_about_another_key_does_not_count() {
        let other = r#"{"Effect":"Allow","Principal":"*","Action":"kms:*","Resource":"arn:aws:kms:eu-west-1:111111111111:key/other"}"#;
        assert!(matches!(verdict(other, "kms:Decrypt"), Verdict::Refused(_)));
    }

    #[test]
    fn what_is_no_policy_is_said_to_be_none() {
        let call = Call { principal: &launcher(), key: &key(), action: "kms:Decrypt" };
        assert!(judge("{", call).is_err());
        assert!(judge("{}", call).is_err());
    }
}
