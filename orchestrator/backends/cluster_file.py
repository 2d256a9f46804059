"""The check of a file for `ray up` before anything is made: what Ray would take, and what we need beyond it.

No provider is asked, so that an image, a quota and rights are only known once `ray up` has tried them.
"""

import contextlib
import io
import ipaddress
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from trainables.errors import UserError
from trainables.io.faults import Fault, fault_lines, placed, shorten
from trainables.io.yaml import Document, load_document

#: Providers of the files in cluster/ -> the scheme of addresses in their buckets; of one's own machines none.
PROVIDERS = {"aws": "s3", "gcp": "gs", "local": ""}

#: vCPUs and NVIDIA GPUs of AWS's machines, because Ray believes `resources` and not the machine.
AWS_GPU_MACHINES = {
    f"{family}.{size}": machine
    for families, sizes in {
        "g4dn": {"xlarge": (4, 1), "2xlarge": (8, 1), "4xlarge": (16, 1), "8xlarge": (32, 1)}
        | {"12xlarge": (48, 4), "16xlarge": (64, 1), "metal": (96, 8)},
        "g5 g6 g6e": {"xlarge": (4, 1), "2xlarge": (8, 1), "4xlarge": (16, 1), "8xlarge": (32, 1)}
        | {"12xlarge": (48, 4), "16xlarge": (64, 1), "24xlarge": (96, 4), "48xlarge": (192, 8)},
        "gr6": {"4xlarge": (16, 1), "8xlarge": (32, 1)},
        "g7e": {"2xlarge": (8, 1), "4xlarge": (16, 1), "8xlarge": (32, 1)}
        | {"12xlarge": (48, 2), "24xlarge": (96, 4), "48xlarge": (192, 8)},
        "p4d p4de": {"24xlarge": (96, 8)},
        "p5": {"4xlarge": (16, 1), "48xlarge": (192, 8)},
        "p5e p5en p6-b200": {"48xlarge": (192, 8)},
    }.items()
    for family in families.split()
    for size, machine in sizes.items()
}

#: Networks of examples in documents (RFC 5737), which no machine has.
_EXAMPLES = [ipaddress.ip_network(net) for net in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24")]


class ClusterFileError(UserError):
    """A file for `ray up` that cannot be used as it is, with all its faults."""


def check(path: Path, home: Path, project: Path) -> str:
    """Checks a file for `ray up` and asks no provider.

    Args:
      path: the file.
      home: the user's home, for sources of `file_mounts` that begin with `~`.
      project: the folder in which `ray up` will run, for the other sources.

    Returns:
      The provider: a key of `PROVIDERS`.

    Raises:
      ClusterFileError: the file has faults.
      YamlError: it cannot be read as YAML.
    """
    document = load_document(path)
    config = document.value
    provider = _at(config, "provider", "type")
    if provider not in PROVIDERS:
        rule = f"must be one of {', '.join(PROVIDERS)}, in a file for `ray up`"
        _refuse(path, document, [Fault("provider.type", rule, _found(provider))])
    faults = [
        *_left(config, document.places),
        *_mounts(config, home, project),
        *_token(config),
        *_sizes(config),
        *{"aws": _aws, "gcp": _gcp, "local": _none}[provider](config),
        *_states(config, PROVIDERS[provider]),
    ]
    # Ray's word on a key that we refuse as well says no more.
    known = {fault.path for fault in faults}
    faults += [fault for fault in _of_ray(path) if fault.path not in known]
    if faults:
        _refuse(path, document, faults)
    return str(provider)


def _refuse(path: Path, document: Document, faults: list[Fault]) -> None:
    def line(place: str) -> int:
        return int((re.findall(r":(\d+):\d+$", place) or [0])[0])

    found: dict[tuple[str, str], Fault] = {}
    for fault in faults:
        place = placed(fault, document.places)
        # Types that take over the keys of another one with `<<` have its faults, too.
        found.setdefault((place, fault.rule), Fault(fault.path, fault.rule, fault.found, place=place))
    raise ClusterFileError(fault_lines(str(path), sorted(found.values(), key=lambda one: line(one.place))))


# -------------------------------------------------------------------------------------- what is left to do


def _left(config: Any, places: Mapping[str, str]) -> Iterator[Fault]:
    """Yields the values that are still those of the examples."""
    for path, value in _leaves(config, ""):
        if not isinstance(value, str) or path.endswith(".ImageId"):
            continue
        if re.search(r"\bCHANGE\b", value):
            yield Fault(path, "holds CHANGE where a value of yours must stand", shorten(_word(value)))
        elif _is_example(value):
            yield Fault(path, "is an address for examples; write that of your machine", shorten(value))


def _word(value: str) -> str:
    """Returns the word of a command that holds CHANGE."""
    return next(word for word in value.split() if "CHANGE" in word).strip("'\"")


def _is_example(value: str) -> bool:
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        return False
    return any(address in network for network in _EXAMPLES)


def _mounts(config: Any, home: Path, project: Path) -> Iterator[Fault]:
    """Yields the sources of mounts that do not exist."""
    for target, source in _dict(config, "file_mounts").items():
        if not isinstance(source, str):
            continue
        place = home / source[2:] if source.startswith("~/") else project / source
        if place.exists():
            continue
        makes = "run `ray get-auth-token --generate`" if source == TOKEN else "run in the project's folder"
        yield Fault(f"file_mounts.{target}", f"does not exist on this machine; {makes}", shorten(source))


#: Where Ray looks for the token on every machine.
TOKEN = "~/.ray/auth_token"


def _token(config: Any) -> Iterator[Fault]:
    """Yields what lets others use the cluster."""
    mounts = _dict(config, "file_mounts")
    if TOKEN not in mounts:
        rule = f"must hold `{TOKEN}: {TOKEN}`, else whoever reaches Ray's ports can run any code"
        yield Fault("file_mounts", rule, "no token")
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        starts = [(at, line) for at, line in _commands(config, key) if re.search(r"\bray start\b", line)]
        if not starts:
            yield Fault(key, "must start Ray with RAY_AUTH_MODE=token", "no `ray start`")
        for at, line in starts:
            if not re.search(r"(^|[\s;])RAY_AUTH_MODE=token\s[^;&|]*\bray start\b", line):
                rule = "must start Ray with RAY_AUTH_MODE=token before the command"
                yield Fault(f"{key}.{at}", rule, shorten(line))


def _states(config: Any, scheme: str) -> Iterator[Fault]:
    """Yields a fault if the head does not know the bucket of states."""
    if not scheme:
        return
    lines = [line for _, line in _commands(config, "head_setup_commands")]
    if not any(re.search(rf"VITC_SWEEP_STATES={scheme}://[^/\s'\"]", line) for line in lines):
        rule = (
            f"must export VITC_SWEEP_STATES={scheme}://BUCKET/FOLDER, as no folder is common to the machines"
        )
        yield Fault("head_setup_commands", rule, "no such line")


# ------------------------------------------------------------------------------------------- machine types


def _types(config: Any) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Yields each machine type's path, its settings, and if it is the head's."""
    head = _at(config, "head_node_type")
    for name, settings in _dict(config, "available_node_types").items():
        if isinstance(settings, dict):
            yield f"available_node_types.{name}", settings, name == head


def _sizes(config: Any) -> Iterator[Fault]:
    """Yields resources and numbers of machines that cannot be."""
    most = _at(config, "max_workers")
    for path, settings, is_head in _types(config):
        resources = settings.get("resources", {})
        if not isinstance(resources, dict):
            yield Fault(
                f"{path}.resources", "must be numbers by name, such as {CPU: 48, GPU: 4}", _found(resources)
            )
            continue
        wrong = {name for name, value in resources.items() if not _is_count(value)}
        for name in sorted(wrong):
            rule = "must be a whole number of at least 0; trials share a GPU by resources.gpus_per_worker"
            yield Fault(f"{path}.resources.{name}", rule, _found(resources[name]))
        cpus, gpus = resources.get("CPU"), resources.get("GPU", 0)
        if not is_head and not wrong and cpus is not None and cpus < max(gpus, 1):
            rule = f"must be at least {max(gpus, 1)}: every worker of a trial takes a CPU"
            yield Fault(f"{path}.resources.CPU", rule, _found(cpus))
        low, high = settings.get("min_workers", 0), settings.get("max_workers", most)
        if _is_count(low) and _is_count(high) and low > high:
            yield Fault(f"{path}.min_workers", f"must be at most max_workers, which is {high}", _found(low))
        if _is_count(high) and _is_count(most) and high > most:
            rule = f"must be at most that of all machines, which is {most}"
            yield Fault(f"{path}.max_workers", rule, _found(high))
        known = AWS_GPU_MACHINES.get(str(_at(settings, "node_config", "InstanceType")))
        if known and not is_head and not wrong and (cpus, gpus) != known:
            rule = (
                f"must be {{CPU: {known[0]}, GPU: {known[1]}}}, of {settings['node_config']['InstanceType']}"
            )
            yield Fault(f"{path}.resources", rule, _found(resources))


def _region(config: Any) -> Iterator[Fault]:
    if not _at(config, "provider", "region"):
        rule = "must be the region of your machines and bucket"
        yield Fault("provider.region", rule, _found(_at(config, "provider", "region")))


def _aws(config: Any) -> Iterator[Fault]:
    yield from _region(config)
    region, zones = _at(config, "provider", "region"), _at(config, "provider", "availability_zone")
    for zone in str(zones).split(",") if zones and region else ():
        if not zone.strip().startswith(str(region)):
            rule = f"must name zones of the region, such as {region}a"
            yield Fault("provider.availability_zone", rule, _found(zones))
            break
    for path, settings, is_head in _types(config):
        machine = _dict(settings, "node_config")
        image = machine.get("ImageId")
        if not re.fullmatch(r"ami-(?!0+$)([0-9a-f]{8}|[0-9a-f]{17})", str(image)):
            rule = "must be an image of your region, such as ami-0123456789abcdef0"
            if image in (None, "", "latest_dlami"):
                rule += "; without one Ray takes Ubuntu 18.04 with CUDA 11.2"
            yield Fault(f"{path}.node_config.ImageId", rule, _found(image))
        profile = machine.get("IamInstanceProfile")
        if not (isinstance(profile, dict) and (profile.get("Name") or profile.get("Arn"))):
            kind, instead = (
                ("head", "without one Ray makes a role that may do all in EC2 and S3")
                if is_head
                else ("worker", "without one the machine cannot read s3://")
            )
            rule = f"must name a profile, such as {{Name: vitc-sweep-{kind}}}; {instead}"
            yield Fault(f"{path}.node_config.IamInstanceProfile", rule, _found(profile))
        if _at(machine, "MetadataOptions", "HttpTokens") != "required":
            rule = (
                "must be {HttpTokens: required}, else any program that fetches an address can take the role"
            )
            found = _found(machine.get("MetadataOptions"))
            yield Fault(f"{path}.node_config.MetadataOptions", rule, found)


def _gcp(config: Any) -> Iterator[Fault]:
    yield from _region(config)
    zone, region = _at(config, "provider", "availability_zone"), _at(config, "provider", "region")
    if region and not str(zone).startswith(f"{region}-"):
        rule = f"must be one zone of the region, such as {region}-a"
        yield Fault("provider.availability_zone", rule, _found(zone))
    for path, settings, is_head in _types(config):
        accounts = _at(settings, "node_config", "serviceAccounts")
        emails = [_at(one, "email") for one in accounts] if isinstance(accounts, list) else []
        # The head gets the account that Ray makes, whatever the file says.
        if not is_head and not all(emails or [None]):
            rule = "must name an account with rights to the bucket; without one the machine cannot read gs://"
            yield Fault(f"{path}.node_config.serviceAccounts", rule, _found(accounts))


def _none(config: Any) -> Iterator[Fault]:
    yield from ()


# ----------------------------------------------------------------------------------------------------- Ray


def _of_ray(path: Path) -> Iterator[Fault]:
    """Yields what `ray up` itself refuses before it asks the provider anything."""
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    # As `ray up` reads it, by the older rules of YAML.
    config = yaml.safe_load(path.read_text("utf-8-sig"))
    try:
        # Ray prints what matters with Docker only.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            validate_config(prepare_config(config))
    except ValidationError as error:
        key = ".".join(str(part) for part in error.absolute_path)
        yield Fault(key, f"Ray refuses it: {error.message}")
    except Exception as error:
        # What the preparation raises on a config of another form is no interface of Ray's.
        yield Fault("", f"Ray refuses it: {type(error).__name__}: {error}")


# ------------------------------------------------------------------------------------------------- looking


def _at(tree: Any, *keys: str) -> Any:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _dict(tree: Any, key: str) -> dict[str, Any]:
    value = _at(tree, key)
    return value if isinstance(value, dict) else {}


def _commands(config: Any, key: str) -> Iterator[tuple[int, str]]:
    lines = _at(config, key)
    for at, line in enumerate(lines if isinstance(lines, list) else []):
        if isinstance(line, str):
            yield at, line


def _leaves(tree: Any, path: str) -> Iterator[tuple[str, Any]]:
    items: Iterator[tuple[Any, Any]]
    if isinstance(tree, dict):
        items = iter(tree.items())
    elif isinstance(tree, list):
        items = iter(enumerate(tree))
    else:
        yield path, tree
        return
    for key, value in items:
        yield from _leaves(value, f"{path}.{key}" if path else str(key))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _found(value: Any) -> str:
    return "nothing" if value is None else shorten(value)
