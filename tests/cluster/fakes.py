"""Programs in the place of ssh, rsync, scp and aws, and a mock of AWS on the loopback that records its calls.

The mock invents public addresses, which Ray's launcher would really dial over ssh. So the programs have to be
first on PATH before anything starts.
"""

import contextlib
import io
import json
import os
import re
import shlex
import socketserver
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

REGION = "us-west-2"

#: Notes its call and does nothing. rsync also keeps the files that the head gets, in place of the head.
_SHELL = """#!/bin/bash
printf '%s %s\\n' "${0##*/}" "$(printf '%q ' "$@")" >> "$FAKES/calls"
source=${@: -2:1} target=${@: -1}
if [ "${0##*/}" = rsync ] && [ -f "$source" ]; then cp "$source" "$FAKES/head/${target##*/}"; fi
exit 0
"""

#: Hands its arguments to the process of the test, which has the clients of AWS already.
_AWS = f"""#!{sys.executable} -IS
import json, os, socket, sys
with socket.create_connection(("127.0.0.1", int(os.environ["FAKE_AWS_PORT"])), 60) as there:
    there.sendall(json.dumps([os.getcwd(), *sys.argv[1:]]).encode() + b"\\n")
    said = json.loads(there.makefile().readline())
print(said["text"], file=sys.stderr if said["status"] else sys.stdout)
sys.exit(said["status"])
"""


def programs(place: Path) -> Path:
    """Writes the programs into a folder and returns it; `place` also takes what they note."""
    folder = place / "bin"
    folder.mkdir()
    (place / "head").mkdir()
    for name in ("ssh", "rsync", "scp", "aws"):
        (folder / name).write_text(_AWS if name == "aws" else _SHELL)
        (folder / name).chmod(0o755)
    return folder


@dataclass
class Mock:
    """A mock of AWS: its address, and its calls as (key of the caller, `service Action`, parameters)."""

    url: str
    calls: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)

    def first_calls(self, since: int, key: str) -> list[str]:
        """Returns a caller's calls from an index on, each once, in the order of their first time."""
        return list(dict.fromkeys(name for who, name, _ in self.calls[since:] if who == key))

    def client(self, service: str) -> Any:
        import boto3

        return boto3.client(service, REGION)


@contextlib.contextmanager
def mock_of_aws() -> Iterator[Mock]:
    """Starts an empty mock on the loopback, and empties it in the end."""
    from moto.moto_api._internal import moto_api_backend
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    application = DomainDispatcherApplication(create_backend_app)
    mock = Mock("")

    def recorded(environ: dict[str, Any], start: Any) -> Any:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        signed = re.search(r"Credential=([^/]+)/\d+/[^/]+/(\w+)/", environ.get("HTTP_AUTHORIZATION", ""))
        if signed:
            values = {key: value[0] for key, value in parse_qs(body.decode("latin-1")).items()}
            name = values.get("Action") or f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}"
            mock.calls.append((signed[1], f"{signed[2]} {name}", values))
        return application(environ, start)

    class Quiet(WSGIRequestHandler):
        def log(self, *arguments: Any) -> None:
            pass

    moto_api_backend.reset()
    server = make_server("127.0.0.1", 0, recorded, threaded=True, request_handler=Quiet)
    mock.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield mock
    finally:
        server.shutdown()
        server.server_close()
        moto_api_backend.reset()


@contextlib.contextmanager
def aws_commands(mock: Mock) -> Iterator[int]:
    """Serves the program aws and yields its port."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            folder, *words = json.loads(self.rfile.readline())
            try:
                said = {"status": 0, "text": _do(mock, Path(folder), words)}
            except Exception as error:
                said = {"status": 254, "text": f"aws {shlex.join(words)}: {error}"}
            self.wfile.write(json.dumps(said).encode() + b"\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def _do(mock: Mock, folder: Path, words: list[str]) -> str:
    """Does what a command of the AWS CLI does, as far as README needs it. Raises on what it does not know."""
    service, operation, *rest = words
    if service == "s3":
        return _bucket(mock, operation, rest)
    from botocore import xform_name

    client = mock.client(service)
    name = operation.replace("-", "_")
    shape = client.meta.service_model.operation_model(client.meta.method_to_api_mapping[name]).input_shape
    members = {f"--{xform_name(member, '-')}": member for member in shape.members}
    values = {}
    for option, value in zip(rest[::2], rest[1::2], strict=True):
        values[members[option]] = (folder / value[7:]).read_text() if value.startswith("file://") else value
    answer = getattr(client, name)(**values)
    answer.pop("ResponseMetadata")
    return json.dumps(answer, default=str)


def _bucket(mock: Mock, operation: str, rest: list[str]) -> str:
    client = mock.client("s3")
    name = rest[0].removeprefix("s3://")
    match operation, rest[1:]:
        case "mb", []:
            client.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION})
        case "rb", ["--force"]:
            for one in client.list_objects_v2(Bucket=name).get("Contents", []):
                client.delete_object(Bucket=name, Key=one["Key"])
            client.delete_bucket(Bucket=name)
        case other:
            raise ValueError(f"not known here: {other}")
    return f"{operation}: {name}"


def environment(place: Path, mock: Mock, port: int, keys: tuple[str, str]) -> dict[str, str]:
    """Returns the variables of a user without anything of the real one: home, PATH, keys, temporary files."""
    bin_folder = programs(place)
    for name in ("home", "tmp"):
        (place / name).mkdir()
    return {
        "PATH": f"{bin_folder}:{Path(sys.executable).parent}:{os.defpath}:/usr/bin:/bin",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "HOME": str(place / "home"),
        "TMPDIR": str(place / "tmp"),
        # Ray's sockets of ssh lie in /tmp under a hash of the user's name.
        "USER": f"vitc-sweep-test-{os.getpid()}",
        "LOGNAME": f"vitc-sweep-test-{os.getpid()}",
        "FAKES": str(place),
        "FAKE_AWS_PORT": str(port),
        "AWS_ENDPOINT_URL": mock.url,
        "AWS_ACCESS_KEY_ID": keys[0],
        "AWS_SECRET_ACCESS_KEY": keys[1],
        "AWS_EC2_METADATA_DISABLED": "true",
        "RAY_USAGE_STATS_ENABLED": "0",
        "COLUMNS": "200",
    }
