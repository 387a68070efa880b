//! Key policies of the kinds that people and generators write: each is shared, written, read again and taken back, and
//! comes out with the same meaning.

use super::*;

const ROOT: &str = r#"{"Sid":"Enable IAM User Permissions","Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111111111111:root"},"Action":"kms:*","Resource":"*"}"#;

/// What it is, and its text as kms:GetKeyPolicy gives it; `ROOT` stands for the statement that most have.
const POLICIES: [(&str, &str); 20] = [
    ("KMS's default", r#"{"Version":"2012-10-17","Id":"key-default-1","Statement":[ROOT]}"#),
    (
        "the console's, with administrators, users and attachment of resources",
        r#"{"Id":"key-consolepolicy-3","Version":"2012-10-17","Statement":[ROOT,
        {"Sid":"Allow access for Key Administrators","Effect":"Allow","Principal":{"AWS":["arn:aws:iam::111111111111:role/admins","arn:aws:iam::111111111111:user/root-of-keys"]},
         "Action":["kms:Create*","kms:Describe*","kms:Put*","kms:TagResource","kms:ScheduleKeyDeletion"],"Resource":"*"},
        {"Sid":"Allow attachment of persistent resources","Effect":"Allow","Principal":{"AWS":"arn:aws:iam::444444444444:root"},
         "Action":["kms:CreateGrant","kms:ListGrants","kms:RevokeGrant"],"Resource":"*","Condition":{"Bool":{"kms:GrantIsForAWSResource":"true"}}}]}"#,
    ),
    (
        "a landing zone's, for Auto Scaling's service-linked roles",
        r#"{"Version":"2012-10-17","Statement":[ROOT,
        {"Sid":"Allow service-linked role use of the customer managed key","Effect":"Allow",
         "Principal":{"AWS":"arn:aws:iam::444444444444:role/aws-service-role/autoscaling.amazonaws.com/AWSServiceRoleForAutoScaling"},
         "Action":["kms:Encrypt","kms:Decrypt","kms:ReEncrypt*","kms:GenerateDataKey*","kms:DescribeKey"],"Resource":"*"}]}"#,
    ),
    (
        "a landing zone's, denying what guards the key to all but its pipeline",
        r#"{"Version":"2012-10-17","Statement":[ROOT,
        {"Sid":"DenyAllButPipeline","Effect":"Deny","NotPrincipal":{"AWS":["arn:aws:iam::111111111111:role/AmiShareSource","arn:aws:iam::111111111111:root"]},
         "Action":["kms:ScheduleKeyDeletion","kms:DisableKey"],"Resource":"*"}]}"#,
    ),
    (
        "Terraform's, with generated Sids left out",
        r#"{"Statement":[{"Action":"kms:*","Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111111111111:root"},"Resource":"*"},
        {"Action":["kms:Decrypt","kms:DescribeKey"],"Effect":"Allow","Principal":{"AWS":["arn:aws:iam::333333333333:root","arn:aws:iam::444444444444:root"]},"Resource":"*"}],"Version":"2012-10-17"}"#,
    ),
    (
        "Terraform's, with empty Sids",
        r#"{"Statement":[{"Action":"kms:*","Effect":"Allow","Principal":{"AWS":"111111111111"},"Resource":"*","Sid":""},
        {"Action":"kms:Encrypt","Effect":"Allow","Principal":"*","Resource":"*","Sid":""}],"Version":"2012-10-17"}"#,
    ),
    (
        "CloudFormation's, all on lists of one",
        r#"{"Version":"2012-10-17","Id":"cfn","Statement":[{"Sid":"Root","Effect":"Allow","Principal":{"AWS":["arn:aws:iam::111111111111:root"]},"Action":["kms:*"],"Resource":["*"]}]}"#,
    ),
    (
        "CDK's, through services",
        r#"{"Version":"2012-10-17","Statement":[ROOT,
        {"Effect":"Allow","Principal":{"AWS":"*"},"Action":["kms:Decrypt","kms:GenerateDataKey*"],"Resource":"*",
         "Condition":{"StringEquals":{"kms:CallerAccount":"111111111111"},"StringLike":{"kms:ViaService":["s3.*.amazonaws.com","secretsmanager.*.amazonaws.com"]}}}]}"#,
    ),
    (
        "a multi-Region key's",
        r#"{"Version":"2012-10-17","Statement":[ROOT,
        {"Sid":"Replicas","Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111111111111:role/replicator"},"Action":"kms:ReplicateKey","Resource":"*",
         "Condition":{"StringEquals":{"kms:ReplicaRegion":["eu-west-1","us-east-1"]}}},
        {"Sid":"Both","Effect":"Allow","Principal":{"AWS":"arn:aws:iam::444444444444:root"},"Action":"kms:Decrypt","Resource":"*",
         "Condition":{"StringEquals":{"kms:ViaService":["ec2.eu-west-1.amazonaws.com","ec2.us-east-1.amazonaws.com"]}}}]}"#,
    ),
    (
        "for an organization",
        r#"{"Version":"2012-10-17","Statement":[ROOT,
        {"Sid":"Organization","Effect":"Allow","Principal":"*","Action":["kms:Decrypt","kms:DescribeKey"],"Resource":"*","Condition":{"StringEquals":{"aws:PrincipalOrgID":"o-a1b2c3d4e5"}}}]}"#,
    ),
    (
        "for units of an organization",
        r#"{"Version":"2012-10-17","Statement":[ROOT,
        {"Effect":"Allow","Principal":{"AWS":"*"},"Action":"kms:CreateGrant","Resource":"*",
         "Condition":{"Bool":{"kms:GrantIsForAWSResource":true},"ForAnyValue:StringLike":{"aws:PrincipalOrgPaths":"o-a1b2c3d4e5/r-ab12/ou-ab12-11111111/*"}}}]}"#,
    ),
    (
        "CloudTrail's, with its encryption context",
        r#"{"Version":"2012-10-17","Id":"Key policy created by CloudTrail","Statement":[ROOT,
        {"Sid":"Allow CloudTrail to encrypt logs","Effect":"Allow","Principal":{"Service":"cloudtrail.amazonaws.com"},"Action":"kms:GenerateDataKey*","Resource":"*",
         "Condition":{"StringLike":{"kms:EncryptionContext:aws:cloudtrail:arn":"arn:aws:cloudtrail:*:111111111111:trail/*"}}}]}"#,
    ),
    (
        "CloudWatch Logs', with its encryption context",
        r#"{"Version":"2012-10-17","Statement":[ROOT,
        {"Effect":"Allow","Principal":{"Service":["logs.eu-west-1.amazonaws.com","delivery.logs.amazonaws.com"]},"Action":["kms:Encrypt*","kms:Decrypt*"],"Resource":"*",
         "Condition":{"ArnLike":{"kms:EncryptionContext:aws:logs:arn":"arn:aws:logs:eu-west-1:111111111111:*"}}}]}"#,
    ),
    (
        "with two statements of one Sid",
        r#"{"Version":"2012-10-17","Statement":[ROOT,
        {"Sid":"Use","Effect":"Allow","Principal":{"AWS":"arn:aws:iam::444444444444:root"},"Action":"kms:Decrypt","Resource":"*"},
        {"Sid":"Use","Effect":"Allow","Principal":{"AWS":"arn:aws:iam::444444444444:root"},"Action":"kms:Encrypt","Resource":"*"}]}"#,
    ),
    (
        "with bare account ids",
        r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":["111111111111","222222222222"]},"Action":"kms:*","Resource":"*"}]}"#,
    ),
    (
        "of Version 2008, in one statement without a list",
        r#"{"Version":"2008-10-17","Id":"old","Statement":{"Sid":"All","Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111111111111:root"},"Action":"kms:*","Resource":"*"}}"#,
    ),
    (
        "with numbers, booleans and a date in conditions",
        r#"{"Version":"2012-10-17","Statement":[ROOT,
        {"Effect":"Deny","Principal":"*","Action":"kms:ScheduleKeyDeletion","Resource":"*",
         "Condition":{"NumericLessThan":{"kms:ScheduleKeyDeletionPendingWindowInDays":30},"BoolIfExists":{"aws:MultiFactorAuthPresent":false},"DateGreaterThan":{"aws:CurrentTime":"2026-01-01T00:00:00Z"}}}]}"#,
    ),
    (
        "with NotAction, a federated principal and a policy variable",
        r#"{"Version":"2012-10-17","Statement":[ROOT,
        {"Effect":"Allow","Principal":{"Federated":"arn:aws:iam::111111111111:saml-provider/idp","AWS":"arn:aws:iam::111111111111:role/app"},"NotAction":"kms:PutKeyPolicy","Resource":"*",
         "Condition":{"StringEquals":{"aws:ResourceTag/team":"${aws:PrincipalTag/team}"}}}]}"#,
    ),
    (
        "in other letters, and other cases",
        r#"{"Version":"2012-10-17","Id":"Cl\u00e9","Statement":[ROOT,
        {"Sid":"L\u2019\u00e9quipe \u00abcl\u00e9s\u00bb \u9375","Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111111111111:role/equipe"},"Action":["KMS:decrypt","kms:describekey"],"Resource":"*"}]}"#,
    ),
    (
        "with statements of ours for another target",
        r#"{"Version":"2012-10-17","Statement":[
        {"Sid":"AmiShareUse","Effect":"Allow","Principal":{"AWS":"arn:aws:iam::444444444444:root"},
         "Action":["kms:DescribeKey","kms:Decrypt","kms:ReEncrypt*","kms:GenerateDataKeyWithoutPlaintext"],"Resource":"*","Condition":{"StringEquals":{"kms:ViaService":"ec2.eu-west-1.amazonaws.com"}}},
        ROOT,
        {"Sid":"AmiShareCreateGrant","Effect":"Allow","Principal":{"AWS":"arn:aws:iam::444444444444:root"},
         "Action":"kms:CreateGrant","Resource":"*","Condition":{"StringEquals":{"kms:ViaService":"ec2.eu-west-1.amazonaws.com"},"Bool":{"kms:GrantIsForAWSResource":"true"}}}]}"#,
    ),
];

#[test]
fn policies_of_all_kinds_come_back_with_their_meaning_order_and_spelling() {
    let key = KeyArn::parse("arn:aws:kms:eu-west-1:111111111111:key/1234").unwrap();
    let account = AccountId::parse("555555555555").unwrap();
    for (kind, text) in POLICIES {
        let text = text.replace("ROOT", ROOT);
        let mut before: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{kind}: {error}"));
        let found = KeyPolicy::parse(&key, &text).unwrap();
        let shared = found.with([&account]).unwrap().expect(kind).to_text().unwrap();
        assert!(shared.chars().all(|c| c <= '\u{ff}'), "{kind}: {shared}");
        let shared = KeyPolicy::parse(&key, &shared).unwrap();
        assert!(shared.accounts().contains(&account), "{kind}");
        assert!(shared.with([&account]).unwrap().is_none(), "{kind}: a second share changes nothing");
        let after = shared.without([&account]).expect(kind).to_text().unwrap();
        let mut after: Value = serde_json::from_str(&after).unwrap();
        for policy in [&mut before, &mut after] {
            let statements = policy["Statement"].take();
            policy["Statement"] = if statements.is_array() { statements } else { json!([statements]) };
            // To ours, a list of one is as good as what it holds.
            for statement in policy["Statement"].as_array_mut().unwrap().iter_mut().filter(|one| has_our_sid(one)) {
                *statement = canonical(statement);
            }
        }
        assert_eq!(after.to_string(), before.to_string(), "{kind}");
    }
}
