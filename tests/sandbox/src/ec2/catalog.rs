//! What exists without being made: instance types, and one default subnet in each
//! of three zones of every account and region.

use super::filters::{Filters, page};
use super::{Request, Tags, account_arn};
use crate::auth::Context;
use crate::wire::{ApiError, Reply, Xml};

/// Some instance types to list: name, vCPUs, memory in MiB. Others launch as well.
const INSTANCE_TYPES: [(&str, u32, u32); 8] = [
    ("c7g.large", 2, 4096),
    ("m5.large", 2, 8192),
    ("m7g.large", 2, 8192),
    ("t3.micro", 2, 1024),
    ("t3.small", 2, 2048),
    ("t3.medium", 2, 4096),
    ("t4g.micro", 2, 1024),
    ("t4g.small", 2, 2048),
];

/// `arm64` for Graviton families (`a1`, and those with a `g` after the generation's
/// number), else `x86_64`. `None` when it has not the form of an instance type.
pub(super) fn architecture_of(instance_type: &str) -> Option<&'static str> {
    let (family, size) = instance_type.split_once('.')?;
    let digits = family.find(|character: char| character.is_ascii_digit())?;
    let well_formed =
        |part: &str| !part.is_empty() && part.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'));
    if digits == 0 || !well_formed(family) || !well_formed(size) {
        return None;
    }
    let attributes = family[digits..].trim_start_matches(|character: char| character.is_ascii_digit());
    Some(if family == "a1" || attributes.starts_with('g') { "arm64" } else { "x86_64" })
}

pub(super) fn describe_instance_types(request: &mut Request<'_>) -> Reply {
    request.authorize("*", &Context::new())?;
    let filters = Filters::parse(request.params, &["instance-type", "processor-info.supported-architecture"])?;
    request.end_dry_run()?;
    let wanted = request.params.list("InstanceType");
    let mut types: Vec<(String, &str, u32, u32)> = Vec::new();
    if wanted.is_empty() {
        for (name, cpus, memory) in INSTANCE_TYPES {
            if let Some(architecture) = architecture_of(name) {
                types.push((name.to_owned(), architecture, cpus, memory));
            }
        }
    }
    for name in &wanted {
        let architecture = architecture_of(name).ok_or_else(|| {
            ApiError::bad_request(
                "InvalidInstanceType",
                format!("The following supplied instance types do not exist: [{name}]"),
            )
        })?;
        let (cpus, memory) = INSTANCE_TYPES
            .iter()
            .find(|(known, ..)| known == name)
            .map_or((2, 4096), |(_, cpus, memory)| (*cpus, *memory));
        types.push((name.clone(), architecture, cpus, memory));
    }
    types.retain(|(name, architecture, ..)| {
        filters.match_item(&Tags::new(), |filter| {
            vec![match filter {
                "instance-type" => name.clone(),
                _ => (*architecture).to_owned(),
            }]
        })
    });
    let ids_given = (!wanted.is_empty()).then_some("instanceTypesSet");
    let (types, next_token) = page(request.params, types, ids_given)?;
    let mut xml = Xml::new();
    xml.items("instanceTypeSet", types, |xml, (name, architecture, cpus, memory)| {
        xml.elem("instanceType", name).elem("currentGeneration", true);
        xml.nest("processorInfo", |xml| {
            xml.items("supportedArchitectures", [architecture], |xml, name| {
                xml.text(name);
            });
        });
        xml.nest("vCpuInfo", |xml| {
            xml.elem("defaultVCpus", cpus);
        });
        xml.nest("memoryInfo", |xml| {
            xml.elem("sizeInMiB", memory);
        });
    });
    xml.opt("nextToken", next_token);
    Ok(xml.finish())
}

/// Where an instance goes in the network.
#[derive(Debug, Clone)]
pub(super) struct Subnet {
    pub(super) id: String,
    pub(super) vpc_id: String,
    pub(super) availability_zone: String,
}

/// The default subnets of an account, the same in every region but for the zone.
fn default_subnets(account: &str, region: &str) -> Vec<Subnet> {
    ["a", "b", "c"]
        .iter()
        .map(|zone| Subnet {
            id: format!("subnet-0000{zone}{account}"),
            vpc_id: format!("vpc-00000{account}"),
            availability_zone: format!("{region}{zone}"),
        })
        .collect()
}

/// The default security group of an account.
pub(super) fn default_security_group(account: &str) -> String {
    format!("sg-00000{account}")
}

/// The subnet of that id, or the default one. Any id of the right form is taken
/// for a subnet of the account's VPC.
pub(super) fn subnet(account: &str, region: &str, id: Option<&str>) -> Result<Subnet, ApiError> {
    let mut defaults = default_subnets(account, region);
    let Some(id) = id else {
        return Ok(defaults.swap_remove(0));
    };
    let well_formed = id
        .strip_prefix("subnet-")
        .is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
    if !well_formed {
        return Err(ApiError::bad_request("InvalidSubnetID.NotFound", format!("The subnet ID '{id}' does not exist")));
    }
    let mut subnet = match defaults.iter().position(|subnet| subnet.id == id) {
        Some(index) => defaults.swap_remove(index),
        None => defaults.swap_remove(0),
    };
    id.clone_into(&mut subnet.id);
    Ok(subnet)
}

pub(super) fn describe_subnets(request: &mut Request<'_>) -> Reply {
    request.authorize("*", &Context::new())?;
    let filters = Filters::parse(request.params, &["availability-zone", "default-for-az", "subnet-id", "vpc-id"])?;
    request.end_dry_run()?;
    let (account, region) = (&request.caller.account, request.region);
    let ids = request.params.list("SubnetId");
    let mut subnets = if ids.is_empty() {
        default_subnets(account, region)
    } else {
        ids.iter().map(|id| subnet(account, region, Some(id))).collect::<Result<_, _>>()?
    };
    subnets.retain(|subnet| {
        filters.match_item(&Tags::new(), |filter| {
            vec![match filter {
                "availability-zone" => subnet.availability_zone.clone(),
                "default-for-az" => "true".to_owned(),
                "subnet-id" => subnet.id.clone(),
                _ => subnet.vpc_id.clone(),
            }]
        })
    });
    let ids_given = (!ids.is_empty()).then_some("subnetSet");
    let (subnets, next_token) = page(request.params, subnets, ids_given)?;
    let mut xml = Xml::new();
    xml.items("subnetSet", subnets, |xml, subnet| {
        xml.elem("subnetId", &subnet.id)
            .elem("subnetArn", account_arn(region, account, "subnet", &subnet.id))
            .elem("state", "available")
            .elem("ownerId", account)
            .elem("vpcId", &subnet.vpc_id)
            .elem("cidrBlock", "172.31.0.0/20")
            .elem("availabilityZone", &subnet.availability_zone)
            .elem("availableIpAddressCount", 4091)
            .elem("defaultForAz", true)
            .elem("mapPublicIpOnLaunch", true);
    });
    xml.opt("nextToken", next_token);
    Ok(xml.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn graviton_families_are_arm64() {
        for name in ["t4g.micro", "m7gd.large", "x2gd.metal", "a1.large"] {
            assert_eq!(architecture_of(name), Some("arm64"), "{name}");
        }
        for name in ["t3.micro", "m5.large", "g4dn.xlarge", "u-6tb1.metal"] {
            assert_eq!(architecture_of(name), Some("x86_64"), "{name}");
        }
        assert_eq!(architecture_of("micro"), None);
    }
}
