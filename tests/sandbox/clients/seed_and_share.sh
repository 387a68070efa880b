#!/usr/bin/env bash
# Seeds two accounts of a running sandbox and shares an encrypted image by hand,
# with the AWS CLI.
#
# Usage: seed_and_share.sh http://127.0.0.1:<port>
#
# Ends with an error if anything differs from what AWS would do.
set -euo pipefail

export AWS_ENDPOINT_URL=$1 AWS_DEFAULT_REGION=eu-west-1 AWS_SECRET_ACCESS_KEY=secret AWS_PAGER="" AWS_MAX_ATTEMPTS=1
unset AWS_PROFILE AWS_REGION AWS_SESSION_TOKEN
A=111111111111 B=222222222222

as() { # as <access key id> <arguments of aws>
    AWS_ACCESS_KEY_ID=$1 aws --output text "${@:2}"
}

expect() { # expect <what> <actual> <expected>
    if [ "$2" != "$3" ]; then
        echo "$1: expected $3, got $2" >&2
        exit 1
    fi
    echo "$1: $2"
}

use_statements() { # use_statements <resource> [<"Principal": …,>]
    local via='"kms:ViaService": "ec2.eu-west-1.amazonaws.com"'
    cat <<JSON
{ "Effect": "Allow", ${2-} "Resource": "$1",
  "Action": ["kms:DescribeKey", "kms:Decrypt", "kms:ReEncrypt*", "kms:GenerateDataKeyWithoutPlaintext"],
  "Condition": { "StringEquals": { $via } } },
{ "Effect": "Allow", ${2-} "Resource": "$1", "Action": "kms:CreateGrant",
  "Condition": { "StringEquals": { $via }, "Bool": { "kms:GrantIsForAWSResource": "true" } } }
JSON
}

launch() { # launch <image>; the state that the instance ends up in
    local instance state
    instance=$(as "$LAUNCHER" ec2 run-instances --image-id "$1" --instance-type t3.micro \
        --query 'Instances[0].InstanceId') || return
    for _ in $(seq 20); do
        state=$(as "$LAUNCHER" ec2 describe-instances --instance-ids "$instance" \
            --query 'Reservations[0].Instances[0].State.Name') || return
        if [ "$state" = running ] || [ "$state" = terminated ]; then
            break
        fi
        sleep 0.1
    done
    echo "$state"
}

# Seeding: a key, a volume under it, a snapshot, an image in A; a user in B.
key=$(as $A kms create-key --query KeyMetadata.Arn)
volume=$(as $A ec2 create-volume --availability-zone eu-west-1a --size 8 --encrypted --kms-key-id "$key" \
    --query VolumeId)
snapshot=$(as $A ec2 create-snapshot --volume-id "$volume" --query SnapshotId)
as $A ec2 wait snapshot-completed --snapshot-ids "$snapshot"
image=$(as $A ec2 register-image --name golden --architecture x86_64 --root-device-name /dev/xvda \
    --virtualization-type hvm \
    --block-device-mappings "DeviceName=/dev/xvda,Ebs={SnapshotId=$snapshot}" --query ImageId)
as $B iam create-user --user-name launcher >/dev/null
as $B iam put-user-policy --user-name launcher --policy-name launch --policy-document \
    '{"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Action": "ec2:*", "Resource": "*"}}'
LAUNCHER=$(as $B iam create-access-key --user-name launcher --query AccessKey.AccessKeyId)

if refused=$(launch "$image" 2>&1); then
    echo "the image could be launched before it was shared" >&2
    exit 1
fi
expect "before sharing" "$(grep -o 'AuthFailure' <<<"$refused")" AuthFailure

# Sharing: launch permission, key policy, IAM policy.
as $A ec2 modify-image-attribute --image-id "$image" --launch-permission "Add=[{UserId=$B}]"
expect "without the key" "$(launch "$image")" terminated
as $A kms put-key-policy --key-id "$key" --policy-name default --policy "{
  \"Version\": \"2012-10-17\", \"Statement\": [
    { \"Effect\": \"Allow\", \"Principal\": { \"AWS\": \"arn:aws:iam::$A:root\" }, \"Action\": \"kms:*\", \"Resource\": \"*\" },
    $(use_statements '*' "\"Principal\": { \"AWS\": \"$B\" },")
  ] }"
expect "without an IAM policy" "$(launch "$image")" terminated
policy=$(as $B iam create-policy --policy-name KeyAccess --query Policy.Arn --policy-document \
    "{ \"Version\": \"2012-10-17\", \"Statement\": [ $(use_statements "$key") ] }")
as $B iam attach-user-policy --user-name launcher --policy-arn "$policy"
expect "with everything" "$(launch "$image")" running
