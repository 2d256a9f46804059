"""An S3 program on this machine."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.ports import free_port

KEYS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
}


class S3(NamedTuple):
    """A running server: its port, and a client that has made the bucket `bucket`."""

    port: int
    client: Any

    def address(self, path: str) -> str:
        return f"s3://bucket/{path}?region=us-east-1&endpoint_override=http://127.0.0.1:{self.port}"


@contextlib.contextmanager
def s3_server(log: Path, host: str = "127.0.0.1", **environment: str) -> Iterator[S3]:
    """Runs moto's server while the context is open."""
    import boto3

    port = free_port()
    with log.open("w") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", host, "-p", str(port)],
            stdout=out,
            stderr=out,
            env=os.environ | environment,
        )
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert server.poll() is None, log.read_text()
            time.sleep(0.1)
        client = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{port}",
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
            region_name="us-east-1",
        )
        client.create_bucket(Bucket="bucket")
        yield S3(port, client)
    finally:
        server.terminate()
        server.wait(20)
