//! Organizations: who is in the organization, and where. It answers the management account and
//! delegated administrators only (Organizations API reference, DescribeAccount and ListParents).

use crate::auth::{self, Caller, Context};
use crate::wire::{ApiError, Reply, Service};
use crate::world::{Organization, PARTITION, World};
use serde_json::{Value, json};

impl Organization {
    /// `o-…`
    pub fn id(&self) -> &str {
        self.organization_arn.rsplit('/').next().unwrap_or_default()
    }

    pub fn management_account(&self) -> &str {
        self.organization_arn.split(':').nth(4).unwrap_or_default()
    }

    /// The ARN of one of its service control policies.
    pub fn policy_arn(&self, id: &str) -> String {
        let (account, organization) = (self.management_account(), self.id());
        format!("arn:{PARTITION}:organizations::{account}:policy/{organization}/service_control_policy/{id}")
    }

    /// The path of the account's own unit, `o-…/r-…/ou-…/`, as `aws:ResourceOrgPaths` has it (IAM user
    /// guide, "Understand the AWS Organizations entity path").
    pub fn path(&self) -> String {
        let mut path = format!("{}/{}/", self.id(), self.root());
        for unit in self.units().rev() {
            path.push_str(unit);
            path.push('/');
        }
        path
    }

    /// The ids of the units that the account is in, from the innermost to the outermost.
    fn units(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.unit_arns.iter().filter_map(|arn| arn.rsplit('/').next())
    }

    /// The root's id: what its units' ids have between their dashes.
    fn root(&self) -> String {
        let of_unit = self.units().next().and_then(|unit| unit.split('-').nth(1));
        format!("r-{}", of_unit.unwrap_or("root"))
    }

    /// What `child`, a unit or the account `account`, is in; nothing where it is neither.
    fn parent(&self, account: &str, child: &str) -> Option<String> {
        let mut above = self.units().skip_while(|unit| child != account && *unit != child);
        if child != account {
            above.next()?;
        }
        Some(above.next().map_or_else(|| self.root(), str::to_owned))
    }
}

/// Handles one call of Organizations. `body` is the JSON request.
pub fn handle(world: &mut World, caller: &Caller, action: &str, body: &Value) -> Reply {
    match action {
        "DescribeAccount" => describe_account(world, caller, body),
        "ListParents" => list_parents(world, caller, body),
        _ => {
            let message = format!("The sandbox has no organizations:{action}");
            Err(ApiError::bad_request("UnknownOperationException", message))
        }
    }
}

fn describe_account(world: &mut World, caller: &Caller, body: &Value) -> Reply {
    let id = required(body, "AccountId")?;
    world.note_resource(id);
    let own = authorize(world, caller, "organizations:DescribeAccount", |own| {
        format!("arn:{PARTITION}:organizations::{}:account/{}/{id}", own.management_account(), own.id())
    })?;
    let member = member(world, &own, id).ok_or_else(|| {
        ApiError::bad_request("AccountNotFoundException", "You specified an account that doesn't exist.")
    })?;
    Ok(json!({ "Account": {
        "Id": id,
        "Arn": format!("arn:{PARTITION}:organizations::{}:account/{}/{id}", own.management_account(), own.id()),
        "Email": format!("{id}@example.com"),
        "Name": format!("account {id}"),
        "State": member.state.as_deref().unwrap_or("ACTIVE"),
        "JoinedMethod": "CREATED",
        "JoinedTimestamp": 1_700_000_000,
    }})
    .to_string())
}

fn list_parents(world: &mut World, caller: &Caller, body: &Value) -> Reply {
    let child = required(body, "ChildId")?;
    world.note_resource(child);
    let own = authorize(world, caller, "organizations:ListParents", |_| "*".to_owned())?;
    if child.starts_with("r-") {
        return Err(ApiError::bad_request("InvalidInputException", "You specified an invalid value."));
    }
    let parent = match member(world, &own, child) {
        Some(member) => member.parent(child, child),
        None => world.accounts.iter().find_map(|(id, account)| {
            let organization = account.organization.as_ref()?;
            (organization.organization_arn == own.organization_arn).then(|| organization.parent(id, child))?
        }),
    };
    let parent = parent
        .ok_or_else(|| ApiError::bad_request("ChildNotFoundException", "You specified a child that doesn't exist."))?;
    let kind = if parent.starts_with("ou-") { "ORGANIZATIONAL_UNIT" } else { "ROOT" };
    Ok(json!({ "Parents": [{ "Id": parent, "Type": kind }] }).to_string())
}

/// The account's place in the organization, if it has one.
fn member<'w>(world: &'w World, own: &Organization, account: &str) -> Option<&'w Organization> {
    let organization = world.account(account)?.organization.as_ref()?;
    (organization.organization_arn == own.organization_arn).then_some(organization)
}

/// The caller's own place, where its policies let it ask and its account may.
fn authorize(
    world: &World,
    caller: &Caller,
    action: &str,
    resource: impl FnOnce(&Organization) -> String,
) -> Result<Organization, ApiError> {
    let own = world.account(&caller.account).and_then(|account| account.organization.clone());
    let resource = own.as_ref().map_or_else(|| "*".to_owned(), resource);
    auth::authorize(world, caller, action, &resource, &Context::new())
        .map_err(|denied| Service::Organizations.denied(denied))?;
    let own = own.ok_or_else(|| {
        let message = "Your account is not a member of an organization.";
        ApiError::bad_request("AWSOrganizationsNotInUseException", message)
    })?;
    if own.management_account() != caller.account && !own.delegated_administrator {
        let message = "You don't have permissions to access this resource.";
        return Err(ApiError::bad_request("AccessDeniedException", message));
    }
    Ok(own)
}

fn required<'b>(body: &'b Value, name: &str) -> Result<&'b str, ApiError> {
    body.get(name).and_then(Value::as_str).ok_or_else(|| {
        let message = format!("{name} is required.");
        ApiError::bad_request("InvalidInputException", message)
    })
}
