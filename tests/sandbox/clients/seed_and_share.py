"""Seeds two accounts of a running sandbox and shares an encrypted image by hand, with boto3.

Usage: seed_and_share.py http://127.0.0.1:<port>

Ends with an error if anything differs from what AWS would do.
"""

import json
import sys
import time

import boto3
from botocore.exceptions import ClientError

A, B = "111111111111", "222222222222"
REGION = "eu-west-1"
KEY_ACTIONS = [
    "kms:DescribeKey",
    "kms:Decrypt",
    "kms:ReEncrypt*",
    "kms:GenerateDataKeyWithoutPlaintext",
]
WAIT = {"Delay": 0.05, "MaxAttempts": 200}
VIA_EC2 = {"kms:ViaService": f"ec2.{REGION}.amazonaws.com"}


def session(access_key, secret="secret"):
    return boto3.Session(access_key, secret, region_name=REGION)


def use_statements(resource, principal=None):
    """The statements that let somebody use keys through EC2."""
    statements = [
        {
            "Sid": "UseTheKey",
            "Effect": "Allow",
            "Action": KEY_ACTIONS,
            "Resource": resource,
            "Condition": {"StringEquals": VIA_EC2},
        },
        {
            "Sid": "CreateGrantsForVolumes",
            "Effect": "Allow",
            "Action": "kms:CreateGrant",
            "Resource": resource,
            "Condition": {
                "StringEquals": VIA_EC2,
                "Bool": {"kms:GrantIsForAWSResource": "true"},
            },
        },
    ]
    if principal:
        for statement in statements:
            statement["Principal"] = {"AWS": principal}
    return statements


def document(statements):
    return json.dumps({"Version": "2012-10-17", "Statement": statements})


def wait(ec2, waiter, **what):
    ec2.get_waiter(waiter).wait(**what, WaiterConfig=WAIT)


def make_image(ec2, kms):
    """An image of two volumes under two keys; the image and the keys' ARNs."""
    keys = [kms.create_key()["KeyMetadata"]["Arn"] for _ in range(2)]
    devices = []
    for name, key in zip(["/dev/xvda", "/dev/xvdb"], keys):
        volume = ec2.create_volume(
            AvailabilityZone=f"{REGION}a", Size=8, Encrypted=True, KmsKeyId=key
        )
        wait(ec2, "volume_available", VolumeIds=[volume["VolumeId"]])
        snapshot = ec2.create_snapshot(VolumeId=volume["VolumeId"])
        wait(ec2, "snapshot_completed", SnapshotIds=[snapshot["SnapshotId"]])
        devices.append({"DeviceName": name, "Ebs": {"SnapshotId": snapshot["SnapshotId"]}})
    image = ec2.register_image(
        Name="golden",
        Architecture="x86_64",
        VirtualizationType="hvm",
        RootDeviceName="/dev/xvda",
        BlockDeviceMappings=devices,
    )["ImageId"]
    wait(ec2, "image_available", ImageIds=[image])
    return image, keys


def make_launcher(iam):
    """A user that may launch instances but use no key; its access key."""
    iam.create_user(UserName="launcher")
    launch = {"Effect": "Allow", "Action": "ec2:*", "Resource": "*"}
    iam.put_user_policy(
        UserName="launcher", PolicyName="launch", PolicyDocument=document([launch])
    )
    key = iam.create_access_key(UserName="launcher")["AccessKey"]
    return session(key["AccessKeyId"], key["SecretAccessKey"])


def launch(ec2, image):
    """Launches the image and follows the instance until it runs or is dead."""
    instance = ec2.run_instances(
        ImageId=image, InstanceType="t3.micro", MinCount=1, MaxCount=1
    )["Instances"][0]["InstanceId"]
    for _ in range(100):
        described = ec2.describe_instances(InstanceIds=[instance])
        instance_now = described["Reservations"][0]["Instances"][0]
        if instance_now["State"]["Name"] in ("running", "terminated"):
            return instance_now
        time.sleep(0.05)
    sys.exit(f"{instance} is still {instance_now['State']['Name']}")


def expect(what, actual, expected):
    if actual != expected:
        sys.exit(f"{what}: expected {expected}, got {actual}")
    print(f"{what}: {actual}")


def main(endpoint):
    def client(of, service):
        return of.client(service, endpoint_url=endpoint)

    in_a, in_b = session(A), session(B)
    expect("root of A", client(in_a, "sts").get_caller_identity()["Account"], A)
    ec2_a, kms_a = client(in_a, "ec2"), client(in_a, "kms")
    iam_b = client(in_b, "iam")
    image, keys = make_image(ec2_a, kms_a)
    launcher = client(make_launcher(iam_b), "ec2")

    try:
        launch(launcher, image)
        sys.exit("the image could be launched before it was shared")
    except ClientError as error:
        expect("before sharing", error.response["Error"]["Code"], "AuthFailure")

    ec2_a.modify_image_attribute(
        ImageId=image, LaunchPermission={"Add": [{"UserId": B}]}
    )
    permissions = ec2_a.describe_image_attribute(ImageId=image, Attribute="launchPermission")
    expect("launch permissions", permissions["LaunchPermissions"], [{"UserId": B}])
    dead = launch(launcher, image)
    expect("without the keys", dead["State"]["Name"], "terminated")
    expect("reason", dead["StateReason"]["Code"], "Client.InternalError")

    for key in keys:
        policy = json.loads(kms_a.get_key_policy(KeyId=key, PolicyName="default")["Policy"])
        policy["Statement"] += use_statements("*", f"arn:aws:iam::{B}:root")
        kms_a.put_key_policy(KeyId=key, PolicyName="default", Policy=json.dumps(policy))
    expect("without an IAM policy", launch(launcher, image)["State"]["Name"], "terminated")

    access = iam_b.create_policy(
        PolicyName="KeyAccess", PolicyDocument=document(use_statements(keys))
    )["Policy"]["Arn"]
    iam_b.attach_user_policy(UserName="launcher", PolicyArn=access)
    running = launch(launcher, image)
    expect("with everything", running["State"]["Name"], "running")

    default_key = client(in_b, "kms").describe_key(KeyId="alias/aws/ebs")["KeyMetadata"]["Arn"]
    volumes = launcher.describe_volumes(
        Filters=[{"Name": "attachment.instance-id", "Values": [running["InstanceId"]]}]
    )["Volumes"]
    expect("keys of the volumes", [volume["KmsKeyId"] for volume in volumes], [default_key] * 2)
    launcher.terminate_instances(InstanceIds=[running["InstanceId"]])


if __name__ == "__main__":
    main(sys.argv[1])
