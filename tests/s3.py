"""An S3 of this machine for tests: a process that can be stopped, continued and killed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

_START_S = 60.0


@dataclass
class S3:
    """A server of moto on a free loopback port; what it holds is gone when it ends."""

    port: int
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which botocore finds it."""
        return {
            "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def start(self) -> None:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + _START_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            assert time.monotonic() < deadline, "S3 did not start"
            time.sleep(0.1)

    def send(self, number: signal.Signals) -> None:
        """SIGSTOP: it hangs. SIGCONT: it goes on. SIGKILL: it refuses connections."""
        assert self._process is not None
        self._process.send_signal(number)
        if number is signal.SIGKILL:
            self._process.wait()

    def make_bucket(self, name: str) -> None:
        import boto3

        own = self.environment
        boto3.client(
            "s3",
            endpoint_url=own["AWS_ENDPOINT_URL_S3"],
            aws_access_key_id="key",
            aws_secret_access_key="secret",
            region_name="us-east-1",
        ).create_bucket(Bucket=name)


@contextlib.contextmanager
def running_s3() -> Iterator[S3]:
    """Run an S3 while the block runs."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        s3 = S3(int(listener.getsockname()[1]))
    s3.start()
    try:
        yield s3
    finally:
        s3.send(signal.SIGKILL)


@contextlib.contextmanager
def variables(values: dict[str, str]) -> Iterator[None]:
    """Set variables of this process while the block runs, and forget the file systems that it opened before."""
    import s3fs

    before: dict[str, Any] = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        yield
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
