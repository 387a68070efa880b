//! Every action that a step names is allowed by exactly the role that it calls it as, in
//! accounts/*.yaml, and nothing more is; every function's role in template.yaml may assume exactly
//! the roles that its step calls as.

use std::fs;

use ami_share_core::{hub::Actions, key_policy, refusal};
use ami_share_tests::{engine::checkout, template::resources};
use serde_json::{Value, json};

use crate::{
    Set,
    definition::{self, Machine},
    kebab,
    steps::functions,
    template, text,
};

const SOURCE: &str = "accounts/source.yaml";
const TARGET: &str = "accounts/target.yaml";
const ORGANIZATION: &str = "accounts/organization.yaml";
const HUB: &str = "template.yaml";

/// The resource of that logical id, its properties.
fn properties(template: &Value, id: &str) -> Value {
    let resource = &template["Resources"][id];
    assert!(resource.is_object(), "there is no {id}");
    resource["Properties"].clone()
}

/// Whether a function's code makes that call. An undo must not look at the allow-list: what was given can be taken back.
fn uses(name: &str, call: &str) -> bool {
    if name.starts_with("Undo") {
        let package = kebab(name.trim_start_matches("Undo"));
        assert!(!text(&format!("functions/{package}/src/undo.rs")).contains("allow_list"), "{name} is restricted");
        return false;
    }
    let sources = fs::read_dir(checkout().join(format!("functions/{}/src", kebab(name)))).unwrap();
    let of_the_step =
        sources.map(|entry| entry.unwrap().path()).filter(|path| path.is_file() && !path.ends_with("undo.rs"));
    of_the_step.map(fs::read_to_string).any(|text| text.unwrap().contains(call))
}

/// Whether the function asks AWS Organizations about accounts that are not listed.
fn asks_organizations(name: &str) -> bool {
    uses(name, "ami_share_allow_list::check(")
}

/// Whether the function looks at the allow-list.
fn is_told_the_allow_list(name: &str) -> bool {
    asks_organizations(name) || uses(name, "allow_list.check_listed(")
}

/// Whether the function is to work in accounts that are on no list any more: whatever is not on the way to what a
/// target gets.
fn is_for_any_account(name: &str) -> bool {
    let on_the_way = definition::share_ami().tasks().iter().any(|(state, _)| state == name) || name == "StartShare";
    !on_the_way || name.starts_with("Undo") || ["TerminateInstance", "ResolveUndo"].contains(&name)
}

/// The statements of a policy document; those under a condition of the template count as there.
fn statements(document: &Value) -> Vec<Value> {
    let flatten = |statement: &Value| match statement.get("Fn::If") {
        Some(branches) => branches[1].clone(),
        None => statement.clone(),
    };
    document["Statement"].as_array().unwrap().iter().map(flatten).collect()
}

/// The statements of a role's inline policies.
fn inline(role: &Value) -> Vec<Value> {
    role["Policies"].as_array().into_iter().flatten().flat_map(|policy| statements(&policy["PolicyDocument"])).collect()
}

fn allowed<'a>(statements: impl IntoIterator<Item = &'a Value>) -> Set {
    statements
        .into_iter()
        .filter(|statement| statement["Effect"] == "Allow")
        .flat_map(|statement| definition::strings(&statement["Action"]))
        .map(str::to_owned)
        .collect()
}

fn matches(pattern: &str, action: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => action.starts_with(prefix),
        None => pattern == action,
    }
}

/// Every action that any function names for one of the account roles.
fn named(role: fn(&Actions) -> &'static [&'static str]) -> Set {
    functions().iter().flat_map(|(_, actions)| role(actions)).map(|action| (*action).to_owned()).collect()
}

fn assert_exactly(role: &str, allowed: &Set, named: &Set) {
    let missing: Vec<&String> =
        named.iter().filter(|action| !allowed.iter().any(|pattern| matches(pattern, action))).collect();
    let idle: Vec<&String> =
        allowed.iter().filter(|pattern| !named.iter().any(|action| matches(pattern, action))).collect();
    assert!(missing.is_empty() && idle.is_empty(), "{role} lacks {missing:?}, and nobody calls {idle:?}");
}

/// What a grant itself lets the role do that it names as the one to retire it. A policy that allowed it would be
/// for whatever grant the account has made ("Retiring and revoking grants", KMS developer guide).
const BY_GRANT: &str = "kms:RetireGrant";

#[test]
fn the_source_role_allows_exactly_what_steps_call_as_it() {
    let role = properties(&template(SOURCE), "SourceRole");
    let mut named = named(|actions| actions.source);
    assert!(named.remove(BY_GRANT), "nobody retires grants");
    assert_exactly("SourceRole", &allowed(&inline(&role)), &named);
}

#[test]
fn the_source_reader_role_allows_exactly_what_steps_call_as_it() {
    let role = properties(&template(SOURCE), "SourceReaderRole");
    let allowed = allowed(&inline(&role));
    assert_exactly("SourceReaderRole", &allowed, &named(|actions| actions.source_reader));
    // It makes one thing: a report on who uses an image, for the account itself.
    let makes = |action: &&String| !["Describe", "Get", "List"].iter().any(|verb| action.contains(&format!(":{verb}")));
    assert_eq!(allowed.iter().filter(makes).collect::<Vec<_>>(), ["ec2:CreateImageUsageReport"]);
}

/// What writes reads what it merges with by the same role, so that one look is enough to know what a function can do.
#[test]
fn no_function_is_both_a_reader_and_a_writer_of_the_source() {
    for (name, actions) in functions() {
        assert!(actions.source.is_empty() || actions.source_reader.is_empty(), "{name}");
    }
}

/// It is not made unless its owner asks for it, is for tagged keys whatever the rest is for, and serves one function.
#[test]
fn the_role_that_revokes_grants_is_off_by_default_and_for_tagged_keys_and_for_one_function() {
    let source = template(SOURCE);
    assert_eq!(source["Parameters"]["RevokeForeignGrants"]["Default"], "false");
    assert_eq!(
        source["Conditions"]["RevokeForeignGrants"],
        json!({ "Fn::Equals": [{ "Ref": "RevokeForeignGrants" }, "true"] })
    );
    assert_eq!(source["Resources"]["SourceGrantRevokerRole"]["Condition"], "RevokeForeignGrants");
    let role = properties(&source, "SourceGrantRevokerRole");
    let statements = inline(&role);
    assert_exactly("SourceGrantRevokerRole", &allowed(&statements), &named(|actions| actions.source_grant_revoker));
    assert_eq!(statements.len(), 1);
    let tagged = json!({ "StringEquals": { "aws:ResourceTag/ami-share:shareable": "true" } });
    assert_eq!(statements[0]["Condition"], tagged);
    let calling = functions().into_iter().filter(|(_, actions)| !actions.source_grant_revoker.is_empty());
    assert_eq!(calling.map(|(name, _)| name).collect::<Vec<_>>(), ["UndoGrantKeys"]);
    let hub = template(HUB);
    let document = properties(&hub, "AssumeAnySourceGrantRevokerRolePolicy")["PolicyDocument"].clone();
    let arn = "arn:${AWS::Partition}:iam::*:role${IamPath}${SourceGrantRevokerRoleName}";
    let expected = json!([{ "Effect": "Allow", "Action": "sts:AssumeRole", "Resource": { "Fn::Sub": arn } }]);
    assert_eq!(document["Statement"], expected);
}

#[test]
fn the_target_role_allows_exactly_what_steps_call_as_it() {
    let role = properties(&template(TARGET), "TargetRole");
    assert_exactly("TargetRole", &allowed(&inline(&role)), &named(|actions| actions.target));
}

/// On its own account's keys; on the source account's it gets the same from the managed policy.
#[test]
fn the_launcher_role_allows_exactly_what_steps_call_as_it() {
    let role = properties(&template(TARGET), "LauncherRole");
    assert_exactly("LauncherRole", &allowed(&inline(&role)), &named(|actions| actions.launcher));
}

#[test]
fn the_launcher_has_no_access_to_another_accounts_keys_of_its_own() {
    let role = properties(&template(TARGET), "LauncherRole");
    assert!(role["ManagedPolicyArns"].is_null());
    for statement in inline(&role) {
        if definition::strings(&statement["Action"]).iter().any(|action| action.starts_with("kms:")) {
            let own = json!({ "Fn::Sub": "arn:${AWS::Partition}:kms:*:${AWS::AccountId}:key/*" });
            let named = json!({ "Ref": "LauncherKeyArns" });
            let of_this_account = json!({ "aws:ResourceAccount": { "Ref": "AWS::AccountId" } });
            let limited = statement["Resource"] == named && statement["Condition"]["StringEquals"] == of_this_account;
            assert!(statement["Resource"] == own || limited, "{}", statement["Sid"]);
        }
    }
}

/// Both sides must allow it: the key's policy, and the caller's.
#[test]
fn the_key_access_policy_allows_what_our_key_statements_allow() {
    let policy = properties(&template(TARGET), "KeyAccessPolicy");
    let statements = statements(&policy["PolicyDocument"]);
    let expected: Set =
        key_policy::USE_ACTIONS.into_iter().chain([key_policy::GRANT_ACTION]).map(str::to_owned).collect();
    assert_eq!(allowed(&statements), expected);
    for statement in statements {
        let keys = json!({ "Fn::Sub": "arn:${AWS::Partition}:kms:*:${SourceAccountId}:key/*" });
        assert_eq!(statement["Resource"], keys);
        assert_eq!(statement["Condition"]["StringLike"]["kms:ViaService"], "ec2.*.amazonaws.com");
        let grants = statement["Action"] == key_policy::GRANT_ACTION;
        assert_eq!(statement["Condition"]["Bool"]["kms:GrantIsForAWSResource"] == "true", grants);
    }
}

#[test]
fn only_the_key_access_policy_can_be_attached() {
    let role = properties(&template(TARGET), "TargetRole");
    let attaching: Vec<Value> = inline(&role)
        .into_iter()
        .filter(|statement| statement["Effect"] == "Allow")
        .filter(|statement| definition::strings(&statement["Action"]).iter().any(|action| action.contains("tach")))
        .filter(|statement| !statement["Sid"].as_str().unwrap().starts_with("Read"))
        .collect();
    assert_eq!(attaching.len(), 2);
    for statement in attaching {
        assert_eq!(statement["Condition"]["ArnEquals"]["iam:PolicyARN"], json!({ "Ref": "KeyAccessPolicy" }));
    }
}

#[test]
fn inline_policies_can_be_written_only_where_the_owner_allows_it() {
    let template = template(TARGET);
    assert_eq!(template["Parameters"]["AllowInlinePolicies"]["Default"], "false");
    let role = &template["Resources"]["TargetRole"]["Properties"]["Policies"][0]["PolicyDocument"]["Statement"];
    let mut conditions = Set::new();
    for statement in role.as_array().unwrap() {
        let writes = |statement: &Value| {
            let actions = definition::strings(&statement["Action"]);
            statement["Effect"] == "Allow" && actions.iter().any(|action| action.starts_with("iam:Put"))
        };
        assert!(!writes(statement), "{statement} is unconditional");
        if writes(&statement["Fn::If"][1]) {
            conditions.insert(statement["Fn::If"][0].as_str().unwrap().to_owned());
        }
    }
    assert_eq!(conditions, Set::from(["InlinePolicies".to_owned(), "OtherPrincipalsInline".to_owned()]));
}

/// EC2 encodes why it refuses a call that acts on a resource. Whoever makes one as the launcher asks, where the target lets it.
#[test]
fn whoever_acts_on_a_targets_resources_may_have_refusals_decoded_where_the_owner_allows_it() {
    for (name, actions) in functions() {
        let acts = |action: &&&str| {
            let reads = ["ec2:Describe", "ec2:Get"].iter().any(|prefix| action.starts_with(prefix));
            action.starts_with("ec2:") && !reads
        };
        let acts = actions.launcher.iter().any(|action| acts(&action));
        assert_eq!(actions.launcher.contains(&refusal::DECODE), acts, "{name}");
    }
    let template = template(TARGET);
    assert_eq!(template["Parameters"]["DecodeAuthorizationMessages"]["Default"], "false");
    let statements = &template["Resources"]["LauncherRole"]["Properties"]["Policies"][0]["PolicyDocument"]["Statement"];
    let decoding: Vec<&Value> = statements
        .as_array()
        .unwrap()
        .iter()
        .filter(|statement| statement.to_string().contains("sts:Decode"))
        .collect();
    assert_eq!(decoding.len(), 1);
    assert_eq!(decoding[0]["Fn::If"][0], "DecodeMessages");
    let parameter = json!({ "Fn::Equals": [{ "Ref": "DecodeAuthorizationMessages" }, "true"] });
    assert_eq!(template["Conditions"]["DecodeMessages"], parameter);
}

/// The roles of the accounts' templates, and what each is called as for.
type Called = fn(&Actions) -> &'static [&'static str];
const ACCOUNT_ROLES: [(&str, &str, Called); 5] = [
    (SOURCE, "SourceRole", |actions| actions.source),
    (SOURCE, "SourceReaderRole", |actions| actions.source_reader),
    (SOURCE, "SourceGrantRevokerRole", |actions| actions.source_grant_revoker),
    (TARGET, "TargetRole", |actions| actions.target),
    (TARGET, "LauncherRole", |actions| actions.launcher),
];

fn trust_policy(path: &str, role: &str) -> Value {
    properties(&template(path), role)["AssumeRolePolicyDocument"].clone()
}

/// Exactly these functions, of the hub's account, with the external id. A trust policy cannot name a role as its principal
/// that does not exist yet.
fn assert_trusts(path: &str, role: &str, functions: impl Iterator<Item = &'static str>) {
    let arn = |name| {
        let path = format!("role${{IamPath}}${{FunctionRolePrefix}}{name}FunctionRole");
        json!({ "Fn::Sub": format!("arn:${{AWS::Partition}}:iam::${{HubAccountId}}:{path}") })
    };
    let mut expected: Vec<Value> = functions.map(arn).collect();
    expected.sort_by_key(Value::to_string);
    let mut trust = trust_policy(path, role)["Statement"].clone();
    let trusted = trust[0]["Condition"]["ArnEquals"]["aws:PrincipalArn"].as_array_mut().unwrap();
    trusted.sort_by_key(|arn| arn.to_string());
    let expected = json!([{
        "Sid": trust[0]["Sid"],
        "Effect": "Allow",
        "Principal": { "AWS": { "Fn::Sub": "arn:${AWS::Partition}:iam::${HubAccountId}:root" } },
        "Action": "sts:AssumeRole",
        "Condition": {
            "ArnEquals": { "aws:PrincipalArn": expected },
            "StringEquals": { "sts:ExternalId": { "Ref": "ExternalId" } }
        }
    }, {
        // It has no key for an external id, and lets nobody in.
        "Sid": "NameTheExecution",
        "Effect": "Allow",
        "Principal": { "AWS": { "Fn::Sub": "arn:${AWS::Partition}:iam::${HubAccountId}:root" } },
        "Action": "sts:SetSourceIdentity"
    }]);
    assert_eq!(trust, expected, "{role}");
}

#[test]
fn account_roles_trust_exactly_the_functions_that_call_as_them_with_the_external_id() {
    for (path, role, called) in ACCOUNT_ROLES {
        let calling = functions().into_iter().filter(|(_, actions)| !called(actions).is_empty());
        assert_trusts(path, role, calling.map(|(name, _)| name));
    }
}

/// IAM's quota of a role's trust policy, white space aside ("IAM and AWS STS quotas", IAM user guide).
const TRUST_POLICY_CHARACTERS: usize = 2_048;

/// With every parameter as long as its pattern lets it be, in the partition with the longest name.
#[test]
fn the_longest_trust_policy_is_one_that_iam_takes() {
    let roles =
        ACCOUNT_ROLES.map(|(path, role, _)| (path, role)).into_iter().chain([(ORGANIZATION, "OrganizationRole")]);
    for (path, role) in roles {
        let policy = filled(&trust_policy(path, role), &|name| longest(&template(path), name));
        assert_fits(role, &[policy], TRUST_POLICY_CHARACTERS);
    }
}

/// IAM's quota of all inline policies of a role together, white space aside (the same page).
const INLINE_POLICIES_CHARACTERS: usize = 10_240;

#[test]
fn the_longest_policies_of_an_account_role_are_ones_that_iam_takes() {
    for (path, role) in [(SOURCE, "SourceRole"), (SOURCE, "SourceReaderRole")] {
        let policies = properties(&template(path), role)["Policies"].clone();
        let policies = policies.as_array().unwrap().iter().map(|policy| &policy["PolicyDocument"]);
        let filled: Vec<Value> =
            policies.map(|policy| filled(policy, &|name| longest(&template(path), name))).collect();
        let listed = filled[0].to_string().matches("\"111111111111\"").count();
        assert_eq!(listed, if role == "SourceRole" { 150 } else { 0 }, "{role}");
        assert_fits(role, &filled, INLINE_POLICIES_CHARACTERS);
    }
}

/// Who may get a grant is a list of accounts, or anybody where that is left to the hub; and so is who may copy snapshots.
#[test]
fn the_source_limits_who_gets_grants_and_snapshots_unless_that_is_left_to_the_hub() {
    let source = template(SOURCE);
    let limits = json!({ "Fn::Not": [{ "Fn::Equals": [{ "Ref": "AllowedTargetAccounts" }, "*"] }] });
    assert_eq!(source["Conditions"]["LimitTargets"], limits);
    let role = properties(&source, "SourceRole");
    let document = &role["Policies"][0]["PolicyDocument"]["Statement"];
    let deny = document.as_array().unwrap().iter().find(|statement| statement["Fn::If"][0] == "LimitTargets").unwrap();
    let (deny, none) = (&deny["Fn::If"][1], &deny["Fn::If"][2]);
    assert_eq!((&deny["Effect"], none), (&json!("Deny"), &json!({ "Ref": "AWS::NoValue" })));
    for (accounts, grantees) in [
        ("*", json!(["arn:*:iam::*:root"])),
        ("111111111111,222222222222", json!(["arn:*:iam::111111111111:root", "arn:*:iam::222222222222:root"])),
    ] {
        let of = |value: &Value| {
            filled(value, &|name| if name == "AllowedTargetAccounts" { accounts } else { "x" }.to_owned())
        };
        let grants = inline(&role).into_iter().find(|statement| statement["Sid"] == "GiveGrants").unwrap();
        assert_eq!(of(&grants["Condition"]["StringLike"]["kms:GranteePrincipal"]), grantees);
        let listed: Vec<&str> = accounts.split(',').collect();
        assert_eq!(of(&deny["Condition"]["ForAnyValue:StringNotEquals"]["ec2:Add/userId"]), json!(listed));
    }
}

fn assert_fits(role: &str, policies: &[Value], most: usize) {
    let text = policies.iter().map(Value::to_string).collect::<String>();
    let characters = text.chars().filter(|c| !c.is_whitespace()).count();
    println!("{role}: {characters} of {most} characters");
    assert!(characters <= most, "{role}: {characters} of {most} characters: {text}");
}

/// The longest value of a parameter: of `[a-z]{1,32}` that is 32 characters.
fn longest(template: &Value, parameter: &str) -> String {
    if parameter == "AWS::Partition" {
        return "aws-us-gov".to_owned();
    }
    if parameter == "AWS::AccountId" {
        return "0".repeat(12);
    }
    if let Some(most) = template["Parameters"][parameter]["MaxLength"].as_u64() {
        return "x".repeat(usize::try_from(most).unwrap());
    }
    let pattern = template["Parameters"][parameter]["AllowedPattern"].as_str().unwrap();
    let (_, times) = pattern.rsplit_once('{').unwrap();
    let most: usize = times.split(['}', ')']).next().unwrap().rsplit(',').next().unwrap().parse().unwrap();
    // A list of accounts is one, and so many more.
    if pattern.contains("(,[0-9]{12})") { vec!["1".repeat(12); most + 1].join(",") } else { "x".repeat(most) }
}

/// What CloudFormation makes of it, with the first branch of every condition.
fn filled(value: &Value, parameter: &dyn Fn(&str) -> String) -> Value {
    let text = |value: &Value| filled(value, parameter).as_str().unwrap().to_owned();
    let substituted = |template: &str, own: &Value| {
        let mut parts = template.split("${");
        let first = parts.next().unwrap().to_owned();
        let rest = parts.map(|part| part.split_once('}').unwrap());
        let rest = rest.map(|(name, rest)| own.get(name).map_or_else(|| parameter(name), text) + rest);
        rest.fold(first, |all, part| all + &part)
    };
    let Value::Object(object) = value else {
        let items = value.as_array().map(|items| items.iter().map(|item| filled(item, parameter)).collect());
        return items.unwrap_or_else(|| value.clone());
    };
    match object.iter().next().map(|(name, argument)| (name.as_str(), argument)) {
        Some(("Ref", name)) if name == "AWS::NoValue" => Value::Null,
        Some(("Ref", name)) => json!(parameter(name.as_str().unwrap())),
        Some(("Fn::Sub", Value::String(template))) => json!(substituted(template, &Value::Null)),
        Some(("Fn::Sub", argument)) => json!(substituted(argument[0].as_str().unwrap(), &argument[1])),
        Some(("Fn::If", argument)) => filled(&argument[1], parameter),
        Some(("Fn::Join", argument)) => {
            let items: Vec<String> = filled(&argument[1], parameter).as_array().unwrap().iter().map(text).collect();
            json!(items.join(argument[0].as_str().unwrap()))
        }
        Some(("Fn::Split", argument)) => text(&argument[1]).split(argument[0].as_str().unwrap()).collect(),
        _ => object.iter().map(|(name, value)| (name.clone(), filled(value, parameter))).collect(),
    }
}

#[test]
fn each_function_has_a_role_of_its_own_that_the_account_roles_trust() {
    let hub = template(HUB);
    for (name, _) in functions() {
        let role = format!("{name}FunctionRole");
        assert_eq!(properties(&hub, &format!("{name}Function"))["Role"], json!({ "Fn::GetAtt": [role, "Arn"] }));
        assert_eq!(properties(&hub, &role)["RoleName"], json!({ "Fn::Sub": format!("${{FunctionRolePrefix}}{role}") }));
        let longest = role.len() + 32;
        assert!(longest <= 64, "{role} may be {longest} characters long; IAM takes 64");
    }
}

#[test]
fn each_functions_role_assumes_exactly_the_roles_that_its_step_calls_as() {
    let hub = template(HUB);
    for (name, actions) in functions() {
        let any = if is_for_any_account(name) { "Any" } else { "" };
        let mut expected: Vec<Value> = [
            ("WriteLogsAndTracesPolicy".to_owned(), true),
            (format!("Assume{any}SourceRolePolicy"), !actions.source.is_empty()),
            (format!("Assume{any}SourceGrantRevokerRolePolicy"), !actions.source_grant_revoker.is_empty()),
            (format!("Assume{any}SourceReaderRolePolicy"), !actions.source_reader.is_empty()),
            ("LockKeyPoliciesPolicy".to_owned(), takes_the_lock(name)),
            (format!("Assume{any}TargetRolePolicy"), !actions.target.is_empty()),
            (format!("Assume{any}LauncherRolePolicy"), !actions.launcher.is_empty()),
        ]
        .into_iter()
        .filter(|(_, needed)| *needed)
        .map(|(policy, _)| json!({ "Ref": policy }))
        .collect();
        if asks_organizations(name) {
            let (policy, nothing) = (json!({ "Ref": "AskOrganizationsPolicy" }), json!({ "Ref": "AWS::NoValue" }));
            expected.push(json!({ "Fn::If": ["AskOrganizations", policy, nothing] }));
        }
        let role = properties(&hub, &format!("{name}FunctionRole"));
        assert_eq!(role["ManagedPolicyArns"], json!(expected), "{name}");
    }
}

#[test]
fn the_policies_that_functions_share_allow_the_one_role() {
    let hub = template(HUB);
    let unlimited = vec![Value::Null];
    for (role, limits) in [
        ("Source", vec![sources_condition()]),
        ("SourceReader", vec![sources_condition()]),
        ("Target", allow_list_conditions()),
        ("Launcher", allow_list_conditions()),
    ] {
        for (any, limits) in [("", &limits), ("Any", &unlimited)] {
            let policy = properties(&hub, &format!("Assume{any}{role}RolePolicy"));
            let statements = statements(&policy["PolicyDocument"]);
            for statement in &statements {
                assert_eq!(statement["Effect"], "Allow");
                assert_eq!(statement["Action"], "sts:AssumeRole");
                let arn = format!("arn:${{AWS::Partition}}:iam::*:role${{IamPath}}${{{role}RoleName}}");
                let expected = json!({ "Fn::Sub": arn });
                assert_eq!(statement["Resource"], expected);
            }
            let conditions: Vec<Value> = statements.iter().map(|statement| statement["Condition"].clone()).collect();
            assert_eq!(conditions, *limits, "{any}{role}");
        }
    }
}

/// `list` of the hub's parameters, or the source of a request that names none.
fn sources(list: &Value) -> Value {
    let default = json!({ "Fn::If": ["HubIsSource", { "Ref": "AWS::AccountId" }, { "Ref": "SourceAccountId" }] });
    json!({ "Fn::If": ["SomeSources", list, default] })
}

fn sources_condition() -> Value {
    json!({ "StringEquals": { "aws:ResourceAccount": sources(&json!({ "Ref": "AllowedSourceAccountIds" })) } })
}

/// One for each list; nobody is on an empty one.
fn allow_list_conditions() -> Vec<Value> {
    let accounts = json!({ "Fn::If": ["SomeTargets", { "Ref": "AllowedTargetAccounts" }, "nobody"] });
    let paths = json!({ "Fn::Split": [",", { "Fn::Sub": [
        "*/${Units}/*",
        { "Units": { "Fn::Join": ["/*,*/", { "Ref": "AllowedOrganizationalUnits" }] } }
    ]}]});
    vec![
        json!({ "StringEquals": { "aws:ResourceAccount": accounts } }),
        json!({ "StringEquals": { "aws:ResourceOrgID": { "Ref": "AllowedOrganizations" } } }),
        json!({ "ForAnyValue:StringLike": { "aws:ResourceOrgPaths": paths } }),
    ]
}

/// An empty list makes no statement: `*//*` would be a pattern.
#[test]
fn the_lists_of_organizations_and_units_make_statements_only_when_they_are_not_empty() {
    let hub = template(HUB);
    for role in ["Target", "Launcher"] {
        let document = properties(&hub, &format!("Assume{role}RolePolicy"))["PolicyDocument"].clone();
        let conditional: Vec<&Value> =
            document["Statement"].as_array().unwrap().iter().filter_map(|statement| statement.get("Fn::If")).collect();
        assert_eq!(conditional.len(), 2);
        for (statement, condition) in conditional.iter().zip(["SomeOrganizations", "SomeUnits"]) {
            assert_eq!(statement[0], condition);
            assert_eq!(statement[2], json!({ "Ref": "AWS::NoValue" }));
        }
    }
    for (condition, parameter) in [
        ("SomeSources", "AllowedSourceAccountIds"),
        ("SomeTargets", "AllowedTargetAccounts"),
        ("SomeOrganizations", "AllowedOrganizations"),
        ("SomeUnits", "AllowedOrganizationalUnits"),
    ] {
        // Of an empty list there may be no first item to select.
        let joined = json!({ "Fn::Join": ["", { "Ref": parameter }] });
        assert_eq!(hub["Conditions"][condition], json!({ "Fn::Not": [{ "Fn::Equals": [joined, ""] }] }));
    }
}

/// As the role of accounts/organization.yaml, or as itself: exactly what the look-up calls.
#[test]
fn functions_that_ask_organizations_may_ask_exactly_what_they_ask() {
    let asked: Set = ami_share_allow_list::ACTIONS.map(str::to_owned).into();
    let hub = template(HUB);
    assert_eq!(hub["Resources"]["AskOrganizationsPolicy"]["Condition"], "AskOrganizations");
    let either = json!({ "Fn::Or": [{ "Condition": "SomeOrganizations" }, { "Condition": "SomeUnits" }] });
    assert_eq!(hub["Conditions"]["AskOrganizations"], either);
    let document = properties(&hub, "AskOrganizationsPolicy")["PolicyDocument"].clone();
    assert_eq!(document["Statement"].as_array().unwrap().len(), 1);
    let by_role = &document["Statement"][0]["Fn::If"];
    assert_eq!(by_role[0], "AskAsRole");
    assert_eq!(by_role[1]["Action"], "sts:AssumeRole");
    assert_eq!(by_role[1]["Resource"], json!({ "Ref": "OrganizationsRoleArn" }));
    assert_eq!(allowed([&by_role[2]]), asked);
    let role = properties(&template(ORGANIZATION), "OrganizationRole");
    assert_eq!(allowed(&inline(&role)), asked);
    assert!(role["ManagedPolicyArns"].is_null());
}

#[test]
fn the_organizations_role_trusts_exactly_the_functions_that_ask_with_the_external_id() {
    let asking = || functions().into_iter().map(|(name, _)| name).filter(|name| asks_organizations(name));
    assert!(asking().count() >= 4, "{:?}", asking().collect::<Vec<_>>());
    assert_trusts(ORGANIZATION, "OrganizationRole", asking());
}

/// A function that is not told of it allows nobody, so one that looks must be told.
#[test]
fn functions_that_look_at_the_allow_list_are_told_it_and_no_others() {
    let hub = template(HUB);
    let joined = |parameter: &str| json!({ "Fn::Join": [",", { "Ref": parameter }] });
    let lists = ["AllowedTargetAccounts", "AllowedOrganizations", "AllowedOrganizationalUnits"].map(joined);
    let reader = json!({ "Fn::If": ["AskAsRole", { "Ref": "OrganizationsRoleArn" }, { "Ref": "AWS::AccountId" }] });
    let mut told = Set::new();
    for (name, _) in functions() {
        let variables = properties(&hub, &format!("{name}Function"))["Environment"]["Variables"].clone();
        if is_told_the_allow_list(name) {
            assert_eq!(variables["ALLOWED_TARGETS"], json!({ "Fn::Join": [",", lists] }), "{name}");
            told.insert(name.to_owned());
        } else {
            assert!(variables["ALLOWED_TARGETS"].is_null(), "{name}");
        }
        let expected = if asks_organizations(name) { &reader } else { &Value::Null };
        assert_eq!(variables["ORGANIZATIONS_READER"], *expected, "{name}");
    }
    for name in [
        "ResolveImage",
        "ShareKey",
        "GrantKeys",
        "ShareSnapshots",
        "ShareImage",
        "GrantPrincipals",
        "CopyImage",
        "LaunchInstance",
    ] {
        assert!(told.contains(name), "{name} gives something, and does not look at the allow-list");
    }
}

/// The request is read by the first, and every other one gives something.
#[test]
fn every_function_on_the_way_to_a_target_looks_at_the_list_of_sources() {
    let hub = template(HUB);
    let told = &hub["Globals"]["Function"]["Environment"]["Variables"]["ALLOWED_SOURCES"];
    assert_eq!(*told, sources(&json!({ "Fn::Join": [",", { "Ref": "AllowedSourceAccountIds" }] })));
    let looks = |name: &str| uses(name, "sources.check(");
    for (name, _) in functions() {
        let gives = is_told_the_allow_list(name) && name != "AuditShares";
        assert_eq!(looks(name), gives || name == "StartShare", "{name}");
    }
}

/// What functions do with the notes of what targets were given.
const NOTES: [(&str, &[&[&str]]); 6] = [
    ("ResolveImage", &[&ami_share_record::HUB_ACTIONS]),
    ("ResolveUndo", &[&ami_share_record::HUB_ACTIONS, &[ami_share_record::UPDATE]]),
    ("ResolveRevoke", &[&ami_share_record::HUB_ACTIONS, &[ami_share_record::UPDATE]]),
    ("RewriteNotes", &[&ami_share_record::REWRITE_ACTIONS]),
    ("StartShare", &[&[ami_share_record::PUT]]),
    ("AuditShares", &[&ami_share_record::HUB_ACTIONS, &audit_shares::HUB_ACTIONS]),
];

fn uses_the_notes(name: &str) -> bool {
    uses(name, "Record::open(")
}

fn with_the_notes(name: &str) -> Set {
    let actions = NOTES.iter().find(|(function, _)| *function == name).map_or(&[][..], |(_, actions)| actions);
    assert_eq!(actions.is_empty(), !uses_the_notes(name), "{name}");
    actions.concat().into_iter().map(str::to_owned).collect()
}

/// StartShare notes what it has started, in items of its own.
fn notes_starts(name: &str) -> bool {
    uses(name, "Starts::open(")
}

/// Whether the function takes the lock on key policies.
fn takes_the_lock(name: &str) -> bool {
    let package = kebab(name.trim_start_matches("Undo"));
    text(&format!("functions/{package}/Cargo.toml")).contains("ami-share-key-lock")
}

/// Of the table, a function that writes key policies may change the lock, and nothing else.
#[test]
fn functions_that_take_the_lock_may_change_nothing_else_in_the_table() {
    let hub = template(HUB);
    let policy = properties(&hub, "LockKeyPoliciesPolicy");
    let statement = &policy["PolicyDocument"]["Statement"][0];
    assert_eq!(definition::strings(&statement["Action"]), ami_share_key_lock::HUB_ACTIONS);
    assert_eq!(statement["Resource"], json!({ "Fn::GetAtt": ["RecordTable", "Arn"] }));
    let keys = &statement["Condition"]["ForAllValues:StringLike"]["dynamodb:LeadingKeys"];
    assert_eq!(*keys, "keys#*");
    for (name, _) in functions() {
        let role = properties(&hub, &format!("{name}FunctionRole"));
        let attached =
            role["ManagedPolicyArns"].as_array().unwrap().contains(&json!({ "Ref": "LockKeyPoliciesPolicy" }));
        assert_eq!(attached, takes_the_lock(name), "{name}");
    }
}

#[test]
fn functions_that_use_the_table_are_told_where_it_is_and_no_others() {
    let hub = template(HUB);
    for (name, _) in functions() {
        let table = &properties(&hub, &format!("{name}Function"))["Environment"]["Variables"]["RECORD_TABLE_ARN"];
        let expected = if uses_the_notes(name) || takes_the_lock(name) || notes_starts(name) {
            json!({ "Fn::GetAtt": ["RecordTable", "Arn"] })
        } else {
            Value::Null
        };
        assert_eq!(*table, expected, "{name}");
    }
}

/// All that every function may, beyond assuming roles.
#[test]
fn functions_write_logs_and_traces() {
    let hub = template(HUB);
    let policy = properties(&hub, "WriteLogsAndTracesPolicy");
    let statements = statements(&policy["PolicyDocument"]);
    let found: Vec<(Vec<&str>, &Value)> = statements
        .iter()
        .map(|statement| (definition::strings(&statement["Action"]), &statement["Resource"]))
        .collect();
    let group = json!({ "Fn::GetAtt": ["FunctionsLogGroup", "Arn"] });
    let everything = json!("*");
    let own_key = json!({ "Ref": "FunctionsKeyArn" });
    let any_role = json!({ "Fn::Sub": "arn:${AWS::Partition}:iam::*:role/*" });
    assert_eq!(policy["PolicyDocument"]["Statement"][3]["Fn::If"][0], "NameExecutions");
    let expected = [
        (vec!["logs:CreateLogStream", "logs:PutLogEvents"], &group),
        (vec!["xray:PutTelemetryRecords", "xray:PutTraceSegments"], &everything),
        (vec!["kms:Decrypt"], &own_key),
        (vec!["sts:SetSourceIdentity"], &any_role),
    ];
    assert_eq!(found, expected);
    assert_eq!(hub["Globals"]["Function"]["LoggingConfig"]["LogGroup"], json!({ "Ref": "FunctionsLogGroup" }));
}

/// Beyond assuming roles, logs and traces: the notes; and for StartShare what it calls in the hub, among it the notes of
/// what it has started.
#[test]
fn a_functions_role_may_do_nothing_else() {
    let hub = template(HUB);
    for (name, _) in functions() {
        let role = properties(&hub, &format!("{name}FunctionRole"));
        let mut expected = Set::new();
        if name == "StartShare" {
            expected.extend(start_share::HUB_ACTIONS.map(str::to_owned));
            // Lambda itself puts a failed event into the queue, as the function's role.
            expected.insert("sqs:SendMessage".to_owned());
            // Where the queue is under a key of the operator's.
            expected.extend(["kms:Decrypt", "kms:GenerateDataKey"].map(str::to_owned));
        }
        expected.extend(with_the_notes(name));
        let statements = inline(&role);
        assert_eq!(allowed(&statements), expected, "{name}");
        for statement in &statements {
            assert_ne!(statement["Resource"], "*", "{name}");
            let actions = definition::strings(&statement["Action"]);
            if actions.iter().any(|action| action.starts_with("dynamodb:")) {
                if notes_starts(name) {
                    assert_limited_to(&json!("start#*"), name, statement);
                } else {
                    assert_limited_to_notes(name, statement);
                }
            }
        }
        let function = properties(&hub, &format!("{name}Function"));
        assert_eq!(function["LoggingConfig"], Value::Null, "{name}");
    }
}

/// Of the table, the notes of targets; their index has nothing but ids. An audit, which changes nothing, reads both. What
/// StartShare starts is noted by it, and read by ResolveImage.
fn assert_limited_to_notes(name: &str, statement: &Value) {
    let table = json!({ "Fn::GetAtt": ["RecordTable", "Arn"] });
    let index = json!({ "Fn::Sub": "${RecordTable.Arn}/index/ByImage" });
    if statement["Resource"] == table {
        let keys = if name == "ResolveImage" { json!(["target#*", "start#*"]) } else { json!("target#*") };
        assert_limited_to(&keys, name, statement);
        return;
    }
    assert!(["ResolveRevoke", "AuditShares"].contains(&name), "{name}: {statement}");
    assert_eq!(statement["Resource"], index, "{name}: {statement}");
    let reads = if name == "AuditShares" { &["dynamodb:Query", "dynamodb:Scan"][..] } else { &["dynamodb:Query"] };
    assert_eq!(definition::strings(&statement["Action"]), reads, "{name}");
}

fn assert_limited_to(keys: &Value, name: &str, statement: &Value) {
    assert_eq!(statement["Resource"], json!({ "Fn::GetAtt": ["RecordTable", "Arn"] }), "{name}");
    let keys = json!({ "ForAllValues:StringLike": { "dynamodb:LeadingKeys": keys } });
    assert_eq!(statement["Condition"], keys, "{name}");
}

/// It is the only thing that says what to take back.
#[test]
fn the_record_table_can_be_restored_and_not_be_deleted_by_mistake() {
    let hub = template(HUB);
    let resource = &hub["Resources"]["RecordTable"];
    for policy in ["DeletionPolicy", "UpdateReplacePolicy"] {
        assert_eq!(resource[policy], "Retain");
    }
    let table = &resource["Properties"];
    assert_eq!(table["DeletionProtectionEnabled"], true);
    assert_eq!(table["PointInTimeRecoverySpecification"]["PointInTimeRecoveryEnabled"], true);
    let own = json!({ "SSEEnabled": true, "SSEType": "KMS", "KMSMasterKeyId": { "Ref": "RecordTableKeyArn" } });
    let encryption = json!({ "Fn::If": ["OwnRecordTableKey", own, { "Ref": "AWS::NoValue" }] });
    assert_eq!(table["SSESpecification"], encryption);
    assert_eq!(hub["Parameters"]["RecordTableKeyArn"]["Default"], "");
    let given = json!({ "Fn::Not": [{ "Fn::Equals": [{ "Ref": "RecordTableKeyArn" }, ""] }] });
    assert_eq!(hub["Conditions"]["OwnRecordTableKey"], given);
}

/// Its own role: the functions, what it does with the table, and other executions. The shared policies: the rest.
#[test]
fn each_state_machine_may_do_exactly_what_its_definition_calls() {
    let hub = template(HUB);
    for machine in definition::machines() {
        let role = properties(&hub, &format!("{}Role", machine.logical_id));
        let mut policies = vec![json!({ "Ref": "RunStateMachinesPolicy" })];
        if !machine.calls("sns:").is_empty() {
            policies.push(json!({ "Ref": "SendNotificationsPolicy" }));
        }
        assert_eq!(role["ManagedPolicyArns"], json!(policies), "{}", machine.path);
        let mut invoked = Set::new();
        let (mut asked, mut described) = (Set::new(), Set::new());
        let executions = "execution:${ShareAmiStateMachine.Name}:*";
        for statement in inline(&role) {
            assert_eq!(statement["Effect"], "Allow");
            let actions = definition::strings(&statement["Action"]).into_iter().map(str::to_owned);
            if statement["Resource"] == json!({ "Fn::GetAtt": ["RecordTable", "Arn"] }) {
                asked.extend(actions);
            } else if statement["Resource"]["Fn::Sub"].as_str().is_some_and(|arn| arn.ends_with(executions)) {
                described.extend(actions);
            } else if !for_take_back().contains(&limits(&statement)) {
                assert_eq!(actions.collect::<Vec<_>>(), ["lambda:InvokeFunction"], "{}", machine.path);
                let functions = statement["Resource"].as_array().unwrap().iter();
                invoked.extend(functions.map(|function| function["Fn::GetAtt"][0].as_str().unwrap().to_owned()));
            }
        }
        let called: Set = machine.tasks().into_iter().map(|(state, _)| format!("{state}Function")).collect();
        assert_eq!(invoked, called, "{}", machine.path);
        assert_eq!(asked, calls(&machine, "dynamodb"), "{}", machine.path);
        let mut of_shares = calls(&machine, "aws-sdk:sfn");
        // Of take-back's executions, as all may that wait for one.
        if of_shares.remove("states:StopExecution") {
            assert_eq!(machine.state("StopTakeBack")["Arguments"]["ExecutionArn"], "{% $child %}");
        }
        assert_eq!(described, of_shares, "{}", machine.path);
    }
}

/// What a statement is about, without its name.
fn limits(statement: &Value) -> Value {
    let mut statement = statement.clone();
    statement.as_object_mut().unwrap().remove("Sid");
    statement
}

/// What `startExecution.sync:2` needs of the role ("IAM policies for calling Step Functions workflows", Step Functions
/// developer guide), for one state machine.
fn for_take_back() -> [Value; 3] {
    let arn = |service: &str, rest: &str| json!({ "Fn::Sub": format!("arn:${{AWS::Partition}}:{service}:${{AWS::Region}}:${{AWS::AccountId}}:{rest}") });
    [
        json!({
            "Effect": "Allow",
            "Action": "states:StartExecution",
            "Resource": { "Ref": "TakeBackStateMachine" }
        }),
        json!({
            "Effect": "Allow",
            "Action": ["states:DescribeExecution", "states:StopExecution"],
            "Resource": arn("states", "execution:${TakeBackStateMachine.Name}:*")
        }),
        json!({
            "Effect": "Allow",
            "Action": ["events:DescribeRule", "events:PutRule", "events:PutTargets"],
            "Resource": arn("events", "rule/StepFunctionsGetEventsForStepFunctionsExecutionRule")
        }),
    ]
}

/// No local engine evaluates these.
#[test]
fn whoever_runs_take_back_may_do_what_that_needs_and_nobody_else() {
    let hub = template(HUB);
    let mut starting = 0;
    for machine in definition::machines() {
        let statements = inline(&properties(&hub, &format!("{}Role", machine.logical_id)));
        let allowed: Vec<Value> = statements.iter().map(limits).collect();
        let starts = machine.calls("states:");
        for (name, state) in &starts {
            assert_eq!(state["Resource"], "arn:aws:states:::states:startExecution.sync:2", "{name}");
            assert_eq!(state["Arguments"]["StateMachineArn"], "${TakeBackStateMachineArn}", "{name}");
        }
        let substitutions = properties(&hub, machine.logical_id)["DefinitionSubstitutions"].clone();
        let told = json!({ "Ref": "TakeBackStateMachine" });
        assert_eq!(substitutions["TakeBackStateMachineArn"] == told, !starts.is_empty(), "{}", machine.path);
        for statement in for_take_back() {
            let count = allowed.iter().filter(|allowed| **allowed == statement).count();
            assert_eq!(count, usize::from(!starts.is_empty()), "{}: {statement}", machine.path);
        }
        starting += starts.len();
    }
    assert_eq!(starting, 3);
}

/// The actions of a service that the definition calls by its integration: `dynamodb:PutItem`.
fn calls(machine: &Machine, service: &str) -> Set {
    // Step Functions' own actions have another prefix than its SDK's name.
    let prefix = service.replace("aws-sdk:sfn", "states");
    let action = |(_, state): (String, Value)| {
        let call = state["Resource"].as_str().unwrap().rsplit(':').next().unwrap().to_owned();
        format!("{prefix}:{}{}", call[..1].to_uppercase(), &call[1..])
    };
    machine.calls(&format!("{service}:")).into_iter().map(action).collect()
}

#[test]
fn what_the_state_machines_share_is_to_notify_and_to_be_watched() {
    let hub = template(HUB);
    let document = properties(&hub, "RunStateMachinesPolicy")["PolicyDocument"].clone();
    for statement in statements(&document) {
        let services = ["logs:", "xray:"];
        for action in definition::strings(&statement["Action"]) {
            assert!(services.iter().any(|service| action.starts_with(service)), "{action}");
        }
    }
    let document = properties(&hub, "SendNotificationsPolicy")["PolicyDocument"].clone();
    let mut published = Set::new();
    for statement in statements(&document) {
        match statement["Sid"].as_str().unwrap() {
            "Notify" => {
                assert_eq!(statement["Resource"], json!({ "Ref": "NotificationTopic" }));
                published.extend(definition::strings(&statement["Action"]).into_iter().map(str::to_owned));
            }
            "EncryptNotifications" => {
                let key = json!([
                    "NoTopicKey", { "Fn::GetAtt": ["NotificationKey", "Arn"] }, { "Ref": "TopicKeyArn" }
                ]);
                assert_eq!(statement["Resource"], json!({ "Fn::If": key }));
            }
            sid => panic!("nobody knows why both may do {sid}"),
        }
    }
    for machine in definition::machines() {
        // Whoever starts take-back tells of it, and whoever asks for a plan reads it.
        let silent = [definition::take_back().path, definition::plan_share().path].contains(&machine.path);
        assert_eq!(calls(&machine, "sns"), if silent { Set::new() } else { published.clone() }, "{}", machine.path);
        let services = ["lambda:", "dynamodb:", "sns:", "aws-sdk:sfn:", "states:"];
        let kinds = services.map(|service| machine.calls(service).len());
        assert_eq!(machine.calls("").len(), kinds.iter().sum::<usize>(), "{} calls another service", machine.path);
    }
}

/// Whoever may start it may plan, and nothing else: by what its functions call, and by what their roles allow.
#[test]
fn a_plan_reaches_no_function_that_writes() {
    let (hub, machine) = (template(HUB), definition::plan_share());
    let looks = |action: &str| {
        let (service, call) = action.split_once(':').unwrap();
        ["Describe", "Get", "List", "Simulate"].iter().any(|verb| call.starts_with(verb))
            || action == "dynamodb:Query"
            || service == "organizations"
    };
    let role = properties(&hub, "PlanShareStateMachineRole");
    assert_eq!(role["ManagedPolicyArns"], json!([{ "Ref": "RunStateMachinesPolicy" }]));
    let statements = inline(&role);
    assert_eq!(allowed(&statements), ["dynamodb:PutItem", "lambda:InvokeFunction"].map(str::to_owned).into());
    // That there is a plan it notes itself, and nothing else.
    let notes = statements.iter().find(|statement| statement["Action"] == "dynamodb:PutItem").unwrap();
    assert_eq!(notes["Condition"], json!({ "ForAllValues:StringLike": { "dynamodb:LeadingKeys": "plan#*" } }));
    let called: Set = machine.tasks().into_iter().map(|(name, _)| name).collect();
    assert_eq!(called, ["ResolveImage", "PlanShare"].map(str::to_owned).into());
    for (name, actions) in functions().into_iter().filter(|(name, _)| called.contains(*name)) {
        assert!(actions.source.is_empty(), "{name} changes things in the source");
        for action in [actions.source_reader, actions.target, actions.launcher].concat() {
            assert!(looks(action), "{name} calls {action}");
        }
        for action in allowed(&inline(&properties(&hub, &format!("{name}FunctionRole")))) {
            assert!(looks(&action), "{name} may call {action} in the hub");
        }
    }
    // A target has no role that only looks: docs/security.md says so.
    let reader = allowed(&inline(&properties(&template(SOURCE), "SourceReaderRole")));
    let writes: Vec<&String> = reader.iter().filter(|action| !looks(action)).collect();
    assert_eq!(writes, ["ec2:CreateImageUsageReport"]);
}

/// They may have run no Catch.
#[test]
fn undo_share_is_started_for_exactly_the_executions_that_did_not_succeed() {
    let hub = template(HUB);
    let expected = json!({
        "source": ["aws.states"],
        "detail-type": ["Step Functions Execution Status Change"],
        "detail": { "stateMachineArn": [{ "Ref": "ShareAmiStateMachine" }], "status": ["ABORTED", "TIMED_OUT", "FAILED"] }
    });
    let rule = properties(&hub, "ShareStoppedRule");
    assert_eq!(rule["EventPattern"], expected);
    let machine = json!({ "Ref": "UndoShareStateMachine" });
    assert_eq!(rule["Targets"].as_array().unwrap().len(), 1);
    assert_eq!(rule["Targets"][0]["Arn"], machine);
    assert_eq!(rule["Targets"][0]["RoleArn"], json!({ "Fn::GetAtt": ["ShareStoppedRole", "Arn"] }));
    let statements = inline(&properties(&hub, "ShareStoppedRole"));
    assert_eq!(statements.len(), 1);
    assert_eq!((&statements[0]["Action"], &statements[0]["Resource"]), (&json!("states:StartExecution"), &machine));
}

/// The one target of the rule by which that parameter is a schedule: there is nothing of it where that is empty.
fn scheduled(hub: &Value, parameter: &str, condition: &str, made: [&str; 2]) -> Value {
    assert_eq!(hub["Parameters"][parameter]["Default"], "");
    let empty = json!({ "Fn::Not": [{ "Fn::Equals": [{ "Ref": parameter }, ""] }] });
    assert_eq!(hub["Conditions"][condition], empty);
    for id in made {
        assert_eq!(hub["Resources"][id]["Condition"], condition, "{id}");
    }
    let rule = properties(hub, made[0]);
    assert_eq!(rule["ScheduleExpression"], json!({ "Ref": parameter }));
    assert_eq!(rule["Targets"].as_array().unwrap().len(), 1);
    rule["Targets"][0].clone()
}

/// With an input of its own: what EventBridge would send otherwise is no request.
#[test]
fn an_audit_is_started_by_the_schedule_that_is_asked_for_and_by_nothing_else() {
    let hub = template(HUB);
    let target = scheduled(&hub, "AuditSchedule", "ScheduleAudits", ["AuditScheduleRule", "AuditScheduleRole"]);
    let machine = json!({ "Ref": "AuditSharesStateMachine" });
    assert_eq!((&target["Arn"], &target["Input"]), (&machine, &json!("{}")));
    assert_eq!(target["RoleArn"], json!({ "Fn::GetAtt": ["AuditScheduleRole", "Arn"] }));
    let statements = inline(&properties(&hub, "AuditScheduleRole"));
    assert_eq!(statements.len(), 1);
    assert_eq!((&statements[0]["Action"], &statements[0]["Resource"]), (&json!("states:StartExecution"), &machine));
    assert!(properties(&hub, "AuditSharesStateMachine")["Events"].is_null());
}

/// The event is EventBridge's own: no input replaces it.
#[test]
fn images_are_looked_for_by_the_schedule_that_is_asked_for() {
    let hub = template(HUB);
    assert_eq!(
        hub["Parameters"]["ImageSchedule"]["AllowedPattern"],
        hub["Parameters"]["AuditSchedule"]["AllowedPattern"]
    );
    let target = scheduled(&hub, "ImageSchedule", "ScheduleImages", ["ImageScheduleRule", "ImageSchedulePermission"]);
    assert_eq!(
        (&target["Arn"], &target["Input"]),
        (&json!({ "Fn::GetAtt": ["StartShareFunction", "Arn"] }), &Value::Null)
    );
    let expected = json!({
        "FunctionName": { "Ref": "StartShareFunction" },
        "Action": "lambda:InvokeFunction",
        "Principal": "events.amazonaws.com",
        "SourceArn": { "Fn::GetAtt": ["ImageScheduleRule", "Arn"] },
    });
    assert_eq!(properties(&hub, "ImageSchedulePermission"), expected);
}

/// What the source's rules send, the hub's bus takes, and the hub's rules want: the same events of the same images.
#[test]
fn a_source_sends_the_events_that_the_hub_takes_and_hears() {
    let (hub, source) = (template(HUB), template(SOURCE));
    let function = properties(&hub, "StartShareFunction");
    let mut sent = Set::new();
    for (theirs, ours, parameter) in
        [("ImageEventsRule", "ImageState", "ImageEventSource"), ("ImageTagsRule", "ImageTagged", "TagEventSource")]
    {
        let sending = properties(&source, theirs);
        assert_eq!(source["Resources"][theirs]["Condition"], "ForwardEvents");
        assert_eq!(sending["Targets"][0]["Arn"], json!({ "Ref": "HubEventBusArn" }));
        let mut heard = function["Events"][ours]["Properties"]["Pattern"].clone();
        assert_eq!(heard["source"], json!([{ "Ref": parameter }]));
        heard["source"] = json!([hub["Parameters"][parameter]["Default"]]);
        assert_eq!(sending["EventPattern"], heard, "{theirs}");
        let queue = &function["Events"][ours]["Properties"]["DeadLetterConfig"]["Arn"];
        assert_eq!(*queue, json!({ "Fn::GetAtt": ["LostImageEventsQueue", "Arn"] }));
        for key in ["source", "detail-type"] {
            sent.extend(definition::strings(&heard[key]).into_iter().map(|value| format!("{key} {value}")));
        }
    }
    let taken = properties(&hub, "ForwardedImageEventsPolicy")["Statement"]["Condition"]["StringEquals"].clone();
    let taken: Set = taken
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(key, values)| {
            let key = key.trim_start_matches("events:");
            definition::strings(values).into_iter().map(move |value| format!("{key} {value}"))
        })
        .collect();
    assert_eq!(taken, sent);
    let types = [start_share::IMAGE_STATE, start_share::TAGS].map(|kind| format!("detail-type {kind}"));
    assert!(types.iter().all(|kind| sent.contains(kind)), "{sent:?}");
}

/// Whoever may pass a role may become it.
#[test]
fn nobody_may_pass_a_role_in_another_account() {
    for (path, roles) in
        [(SOURCE, &["SourceRole", "SourceGrantRevokerRole"][..]), (TARGET, &["TargetRole", "LauncherRole"])]
    {
        for role in roles {
            let allowed = allowed(&inline(&properties(&template(path), role)));
            assert!(!allowed.iter().any(|pattern| matches(pattern, "iam:PassRole")), "{role}");
        }
    }
}

#[test]
fn nobody_is_allowed_every_action_of_a_service() {
    for path in [SOURCE, TARGET, ORGANIZATION, HUB] {
        let template = template(path);
        for kind in ["AWS::IAM::Role", "AWS::IAM::ManagedPolicy"] {
            for (id, resource) in resources(&template, kind) {
                let properties = &resource["Properties"];
                let mut statements = inline(properties);
                if properties["PolicyDocument"].is_object() {
                    statements.extend(self::statements(&properties["PolicyDocument"]));
                }
                for action in allowed(&statements) {
                    assert!(!action.ends_with(":*") && action != "*", "{id} allows {action}");
                }
            }
        }
    }
}

/// A name that one template gives and another expects.
#[test]
fn the_templates_parameters_agree() {
    let hub = template(HUB);
    for (path, names) in [
        (SOURCE, ["SourceRoleName", "SourceReaderRoleName", "SourceGrantRevokerRoleName"].as_slice()),
        (TARGET, &["TargetRoleName", "LauncherRoleName", "KeyAccessPolicyName"]),
        (ORGANIZATION, &[]),
    ] {
        let account = template(path);
        let of_all = ["ExternalId", "FunctionRolePrefix", "IamPath", "PermissionsBoundaryArn"];
        for name in of_all.iter().chain(names) {
            for property in ["Default", "AllowedPattern", "MaxLength", "Type"] {
                let (theirs, ours) = (&account["Parameters"][name][property], &hub["Parameters"][name][property]);
                assert_eq!(theirs, ours, "{path}: {property} of {name}");
            }
        }
    }
}

/// Guardrails of some organizations let nobody make a role without them. Without a path of its own a role has none in the
/// template: to add one may mean to replace it, and CloudFormation replaces nothing that has a name.
#[test]
fn every_role_has_the_path_and_the_boundary_that_the_stack_is_given() {
    let own = |what: &str, parameter: &str| json!({ "Fn::If": [format!("Own{what}"), { "Ref": parameter }, { "Ref": "AWS::NoValue" }] });
    for path in [SOURCE, TARGET, ORGANIZATION, HUB] {
        let template = template(path);
        for (id, role) in resources(&template, "AWS::IAM::Role") {
            let properties = &role["Properties"];
            assert_eq!(properties["Path"], own("Path", "IamPath"), "{path}: {id}");
            let boundary = own("Boundary", "PermissionsBoundaryArn");
            assert_eq!(properties["PermissionsBoundary"], boundary, "{path}: {id}");
        }
        for (id, policy) in resources(&template, "AWS::IAM::ManagedPolicy") {
            assert_eq!(policy["Properties"]["Path"], own("Path", "IamPath"), "{path}: {id}");
        }
        for (condition, parameter, none) in [("OwnPath", "IamPath", "/"), ("OwnBoundary", "PermissionsBoundaryArn", "")]
        {
            let expected = json!({ "Fn::Not": [{ "Fn::Equals": [{ "Ref": parameter }, none] }] });
            assert_eq!(template["Conditions"][condition], expected, "{path}");
        }
        for unplaced in ["role/${", "policy/${"] {
            assert!(!crate::text(path).contains(unplaced), "{path} has {unplaced}");
        }
    }
}

/// It would have neither path nor boundary.
#[test]
fn sam_makes_no_role_by_itself() {
    let hub = template(HUB);
    for (id, function) in resources(&hub, "AWS::Serverless::Function") {
        assert!(function["Properties"]["Role"].is_object(), "{id}");
    }
    for (id, machine) in resources(&hub, "AWS::Serverless::StateMachine") {
        assert!(machine["Properties"]["Role"].is_object(), "{id}");
        assert!(machine["Properties"]["Events"].is_null(), "{id}: what starts it needs a role");
    }
}

#[test]
fn functions_are_told_every_setting_that_they_read() {
    let hub = template(HUB);
    let mut told: Set =
        hub["Globals"]["Function"]["Environment"]["Variables"].as_object().unwrap().keys().cloned().collect();
    // Of those only that look: see functions_that_look_at_the_allow_list_are_told_it_and_no_others.
    told.extend(["ALLOWED_TARGETS", "ORGANIZATIONS_READER"].map(str::to_owned));
    // Of ResolveImage, which refuses.
    let resolve = properties(&hub, "ResolveImageFunction")["Environment"]["Variables"].clone();
    assert_eq!(resolve["ALLOW_UNENCRYPTED"], json!({ "Ref": "AllowUnencrypted" }));
    assert_eq!(hub["Parameters"]["AllowUnencrypted"]["Default"], "false");
    told.insert("ALLOW_UNENCRYPTED".to_owned());
    // Of the two that hold a share to its plan.
    assert_eq!(hub["Parameters"]["RequirePlan"]["Default"], "false");
    for name in ["ResolveImage", "PlanShare"] {
        let variables = properties(&hub, &format!("{name}Function"))["Environment"]["Variables"].clone();
        assert_eq!(variables["REQUIRE_PLAN"], json!({ "Ref": "RequirePlan" }), "{name}");
    }
    told.insert("REQUIRE_PLAN".to_owned());
    // Of those only that use it: see functions_that_use_the_table_are_told_where_it_is_and_no_others.
    told.insert("RECORD_TABLE_ARN".to_owned());
    // Of none: it is for engines whose waits are shorter than AWS's.
    told.insert("STALE_READ_SECONDS".to_owned());
    let read: Set = crate::text("functions/lib/core/src/settings.rs")
        .split('"')
        .filter(|text| text.contains('_') && text.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'))
        .map(str::to_owned)
        .collect();
    assert_eq!(told, read);
}

/// What a template's roles and policies allow: (role or policy, action), and the same with each resource and the condition.
fn grants_of(template: &Value) -> (usize, usize) {
    let (mut actions, mut triples) = (Set::new(), Set::new());
    for kind in ["AWS::IAM::Role", "AWS::IAM::ManagedPolicy"] {
        for (id, resource) in resources(template, kind) {
            let properties = &resource["Properties"];
            let own = properties["PolicyDocument"].is_object().then(|| statements(&properties["PolicyDocument"]));
            for statement in inline(properties).into_iter().chain(own.into_iter().flatten()) {
                if statement["Effect"] != "Allow" {
                    continue;
                }
                for action in definition::strings(&statement["Action"]) {
                    actions.insert(format!("{id} {action}"));
                    for on in statement["Resource"].as_array().unwrap_or(&vec![statement["Resource"].clone()]) {
                        triples.insert(format!("{id} {action} {on} {}", statement["Condition"]));
                    }
                }
            }
        }
    }
    (actions.len(), triples.len())
}

/// So that whoever signs for the roles sees when they grow.
#[test]
fn the_page_on_security_counts_what_the_roles_may_do() {
    let page = text("docs/security.md");
    for path in [SOURCE, TARGET, ORGANIZATION, HUB] {
        let (actions, triples) = grants_of(&template(path));
        println!("{path}: {actions} actions, {triples} triples of action, resource and condition");
        let row =
            page.lines().find(|line| line.starts_with(&format!("| `{path}` |")) && line.matches('|').count() == 6);
        let cells: Vec<&str> = row.unwrap_or_else(|| panic!("no row of {path}")).split('|').map(str::trim).collect();
        assert_eq!((cells[3], cells[5]), (actions.to_string().as_str(), triples.to_string().as_str()), "{path}");
    }
}
