"""The commands of cluster/README.md for AWS against a mock, from the roles to the clean-up."""

import hashlib
import os
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from tests.cluster import fakes
from tests.cluster.readme import README, Commands, section

ROOT = Path(__file__).parents[2]
IMAGE = "ami-0123456789abcdef0"
USER = ("AKIAUSERUSERUSERUSER", "of-the-user")

MISSING = [name for name in ("moto", "flask", "boto3") if find_spec(name) is None]
pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
    pytest.mark.slow,
]


class Desk:
    """The user's machine: a copy of the project, and commands in its folder with the fakes first on PATH."""

    def __init__(self, place: Path, environment: dict[str, str]) -> None:
        self.place, self.environment = place, environment
        self.home, self.folder = place / "home", place / "project"
        self.folder.mkdir()
        for name in ("orchestrator", "trainables", "search_spaces"):
            (self.folder / name).symlink_to(ROOT / name)
        for name in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, self.folder)
        shutil.copytree(ROOT / "cluster", self.folder / "cluster")
        self.file = self.folder / "cluster" / "gpu.yaml"

    def do(self, command: str) -> str:
        # Ray asks nothing without a terminal, but wants to be told.
        done = subprocess.run(
            ["bash", "-c", re.sub(r"\bray (up|down)\b", r"ray \1 --yes", command)],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        # Without the colours of Ray.
        return re.sub(r"\x1b\[[\d;]*m", "", done.stdout + done.stderr)

    def programs_called(self) -> list[str]:
        return (self.place / "calls").read_text().splitlines()


def calls_of_the_readme(by: str) -> list[str]:
    """The calls that the README lists for one who calls, in order."""
    rows = re.findall(r"^\| ([^|]+) \| `([^`]+)` \|", section(README.read_text(), "AWS"), re.MULTILINE)
    return [call for who, call in rows if who == by]


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    with fakes.mock_of_aws() as mock, fakes.aws_commands(mock) as port:
        environment = fakes.environment(tmp_path, mock, port, USER)
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        for name, value in environment.items():
            if name.startswith("AWS_") or name == "PATH":
                monkeypatch.setenv(name, value)
        # What runs in this process is the head's.
        monkeypatch.setenv("HOME", str(tmp_path / "head"))
        from moto.ec2.models import instance_types

        # Of 1,395 types, because Ray asks for all of them, which takes the mock 18 s.
        few = {
            name: one for name, one in instance_types.INSTANCE_TYPES.items() if re.match(r"m7i\.|g6\.", name)
        }
        assert few
        monkeypatch.setattr(instance_types, "INSTANCE_TYPES", few)
        yield mock, Desk(tmp_path, environment)
    shutil.rmtree(f"/tmp/ray_ssh_{_hash(environment['USER'])}", ignore_errors=True)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def test_gpu_yaml_from_the_roles_to_the_last_of_what_it_leaves(cloud):
    mock, desk = cloud
    readme = Commands(section(README.read_text(), "AWS"), {})

    # Roles, and the file filled in.
    desk.do(readme.take("sed -i"))
    region = readme.take("export ").partition("=")[2]
    desk.environment["AWS_DEFAULT_REGION"] = region
    desk.do(readme.take("aws s3 mb"))
    desk.do(readme.take("for role"))
    desk.do(readme.take("aws iam create-service-linked-role"))
    iam, ec2 = mock.client("iam"), mock.client("ec2")
    policies = {}
    for role in ("head", "worker"):
        profile = iam.get_instance_profile(InstanceProfileName=f"vitc-sweep-{role}")["InstanceProfile"]
        assert [one["RoleName"] for one in profile["Roles"]] == [f"vitc-sweep-{role}"]
        [statement] = profile["Roles"][0]["AssumeRolePolicyDocument"]["Statement"]
        assert statement["Principal"] == {"Service": "ec2.amazonaws.com"}
        policy = iam.get_role_policy(RoleName=f"vitc-sweep-{role}", PolicyName="vitc-sweep")
        policies[role] = policy["PolicyDocument"]["Statement"]

    # A file with CHANGE in it makes nothing, not even with the token.
    desk.do(readme.take("ray get-auth-token"))
    assert (desk.home / ".ray" / "auth_token").stat().st_size > 30
    desk.do(readme.take("python -m orchestrator.store.provenance"))
    up = readme.take("vitc-sweep cluster check")
    since = len(mock.calls)
    with pytest.raises(AssertionError, match=r"1 fault\n.*ImageId: must be an image"):
        desk.do(up)
    assert mock.calls[since:] == []
    desk.file.write_text(desk.file.read_text().replace("ami-CHANGE", IMAGE))

    # `ray up`, as far as `ray start` on the head.
    said = desk.do(up)
    assert "New status: up-to-date" in said
    assert mock.first_calls(since, USER[0]) == calls_of_the_readme("ray up")
    started = [line for line in desk.programs_called() if "--head" in line]
    assert len(started) == 1
    assert "RAY_AUTH_MODE=token" in started[0].replace("\\", "")
    assert any(
        "VITC_SWEEP_STATES=s3://my-bucket/states" in re.sub(r"\\", "", line)
        for line in desk.programs_called()
    )
    [head] = machines(ec2)
    assert tag(head, "ray-node-type") == "head"

    # A machine of each type of workers, as the autoscaler on the head starts it, with the rights of the head.
    since = len(mock.calls)
    key = start_workers(mock, desk)
    assert mock.first_calls(since, key) == calls_of_the_readme("head")
    workers = {
        tag(one, "ray-user-node-type"): one for one in machines(ec2) if tag(one, "ray-node-type") == "worker"
    }
    assert set(workers) == {"gpu", "gpu_on_demand"}
    check_rights(policies, mock.calls[since:], key)
    check_machines(ec2, iam, head, workers)

    # All is taken away again.
    while not readme.left()[0].startswith("ray down"):
        readme.take("")
    since = len(mock.calls)
    desk.do(readme.take("ray down"))
    assert mock.first_calls(since, USER[0]) == calls_of_the_readme("ray down")
    assert machines(ec2) == []
    left = [one["KeyName"] for one in ec2.describe_key_pairs()["KeyPairs"]]
    assert left == ["ray-autoscaler_us-west-2"]
    assert [path.name for path in (desk.place / "tmp").glob("ray-config-*")]
    for command in readme.left():
        desk.do(command)
    assert not ec2.describe_key_pairs()["KeyPairs"]
    assert [one["GroupName"] for one in ec2.describe_security_groups()["SecurityGroups"]] == ["default"]
    assert not [one for one in ec2.describe_volumes()["Volumes"] if one["State"] != "deleting"]
    # The role of the account's spot machines is AWS's own.
    roles = [one["RoleName"] for one in iam.list_roles()["Roles"]]
    assert [name for name in roles if not name.startswith("AWSServiceRoleFor")] == []
    assert not iam.list_instance_profiles()["InstanceProfiles"]
    assert not mock.client("s3").list_buckets()["Buckets"]
    assert not list((desk.home / ".ssh").iterdir())
    assert not list((desk.place / "tmp").glob("ray-config-*"))


def machines(ec2) -> list[dict]:
    """The machines that are there, the head first."""
    found = ec2.describe_instances(
        Filters=[{"Name": "instance-state-name", "Values": ["pending", "running"]}]
    )
    return [one for group in found["Reservations"] for one in group["Instances"]]


def tag(machine: dict, name: str) -> str:
    return next(one["Value"] for one in machine["Tags"] if one["Key"] == name)


def start_workers(mock: fakes.Mock, desk: Desk) -> str:
    """Starts a machine of each type of workers from the head's own configuration. Returns the head's key."""
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.aws.utils import client_cache, resource_cache
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.instance_manager.node_provider import NodeProviderAdapter

    # Of a mock that another test has started.
    client_cache.cache_clear(), resource_cache.cache_clear()
    role = mock.client("iam").get_role(RoleName="vitc-sweep-head")["Role"]["Arn"]
    taken = mock.client("sts").assume_role(RoleArn=role, RoleSessionName="head")["Credentials"]
    config = yaml.safe_load((desk.place / "head" / "ray_bootstrap_config.yaml").read_text())
    config["provider"]["aws_credentials"] = {
        "aws_access_key_id": taken["AccessKeyId"],
        "aws_secret_access_key": taken["SecretAccessKey"],
        "aws_session_token": taken["SessionToken"],
    }
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    reader = SimpleNamespace(
        get_cached_autoscaling_config=lambda: AutoscalingConfig(config, skip_content_hash=True)
    )
    adapter = NodeProviderAdapter(provider, reader)
    for name in ("gpu", "gpu_on_demand"):
        adapter._launch_nodes_by_type(name, 1, "request")
    assert adapter.poll_errors() == []
    found = adapter.get_non_terminated()
    assert len(found) == 3
    # What the head notes while it sets a machine up, and what it does with an idle one.
    worker = next(one for one in found if found[one].node_type == "gpu")
    provider.set_node_tags(worker, {"ray-node-status": "up-to-date"})
    adapter._launch_nodes_by_type("gpu", 1, "request")
    [idle] = set(adapter.get_non_terminated()) - set(found)
    provider.terminate_nodes([idle])
    return str(taken["AccessKeyId"])


def check_rights(policies: dict[str, list[dict]], calls: list, key: str) -> None:
    """The head's policy allows what the head did, on this cluster's machines only, and one role to pass."""
    allowed: dict[str, list[dict]] = {}
    for statement in policies["head"]:
        actions = statement["Action"]
        for action in [actions] if isinstance(actions, str) else actions:
            assert "*" not in action
            allowed.setdefault(action.replace(":", " "), []).append(statement)
    for who, name, values in calls:
        if who != key:
            continue
        assert name in allowed, name
        if name == "ec2 RunInstances":
            own = [one for one in allowed[name] if "instance/" in str(one["Resource"])]
            assert own[0]["Condition"] == {"StringEquals": {"aws:RequestTag/ray-cluster-name": "vitc-sweep"}}
            tags = {
                values[k]: values[k.replace("Key", "Value")]
                for k in values
                if re.fullmatch(r"TagSpecification\.1\.Tag\.\d+\.Key", k)
            }
            assert tags["ray-cluster-name"] == "vitc-sweep"
    [passing] = allowed["iam PassRole"]
    assert passing["Resource"].endswith(":role/vitc-sweep-worker")
    for role, statements in policies.items():
        buckets = [one for one in statements if "s3:" in str(one["Action"])]
        assert {one["Resource"] for one in buckets} == {
            "arn:aws:s3:::my-bucket",
            "arn:aws:s3:::my-bucket/*",
        }, role
    assert not [one for one in policies["worker"] if "s3:" not in str(one["Action"])]


def check_machines(ec2, iam, head: dict, workers: dict[str, dict]) -> None:
    """Profile, image, zone, disk, key, group, market and metadata of each machine."""
    assert head["InstanceType"] == "m7i.2xlarge"
    assert {one["InstanceType"] for one in workers.values()} == {"g6.12xlarge"}
    assert workers["gpu"]["InstanceLifecycle"] == "spot"
    assert not {"InstanceLifecycle"} & (set(workers["gpu_on_demand"]) | set(head))
    [key] = ec2.describe_key_pairs()["KeyPairs"]
    [group] = [
        one for one in ec2.describe_security_groups()["SecurityGroups"] if one["GroupName"] != "default"
    ]
    assert group["GroupName"] == "ray-autoscaler-vitc-sweep"
    rules = sorted(group["IpPermissions"], key=lambda rule: rule["IpProtocol"])
    assert [rule["IpProtocol"] for rule in rules] == ["-1", "tcp"]
    assert [pair["GroupId"] for pair in rules[0]["UserIdGroupPairs"]] == [group["GroupId"]]
    assert (rules[1]["FromPort"], rules[1]["ToPort"]) == (22, 22)
    for name, machine in {"head": head, **workers}.items():
        profile = "vitc-sweep-head" if name == "head" else "vitc-sweep-worker"
        arn = iam.get_instance_profile(InstanceProfileName=profile)["InstanceProfile"]["Arn"]
        assert machine["IamInstanceProfile"]["Arn"] == arn
        assert machine["ImageId"] == IMAGE
        assert machine["Placement"]["AvailabilityZone"] == "us-west-2a"
        assert machine["KeyName"] == key["KeyName"] == "ray-autoscaler_us-west-2"
        assert [one["GroupId"] for one in machine["SecurityGroups"]] == [group["GroupId"]]
        assert machine["MetadataOptions"]["HttpTokens"] == "required"
        assert machine["MetadataOptions"]["HttpPutResponseHopLimit"] == 1
        [disk] = machine["BlockDeviceMappings"]
        assert disk["DeviceName"] == "/dev/sda1"
        [volume] = ec2.describe_volumes(VolumeIds=[disk["Ebs"]["VolumeId"]])["Volumes"]
        assert (volume["Size"], volume["VolumeType"]) == (200, "gp3")
        assert tag(machine, "ray-cluster-name") == "vitc-sweep"
        assert tag(machine, "ray-user-node-type") == name
