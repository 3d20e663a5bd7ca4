"""The images of deploy/Dockerfile: what they hold, and that compose asks them for what exists."""

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from retrieval.edge.settings import Settings

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
SERVICES: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]
IMAGE_COMMANDS = {words[-1] for words in map(json.loads, re.findall(r"CMD (\[.*\])", DOCKERFILE)) if words[0] != "sh"}
COMPOSE_COMMANDS = {
    service["command"][0] for service in SERVICES.values() if "command" in service and "build" in service
}


def closure(distribution: str, extras: frozenset[str]) -> set[str]:
    """Names of all distributions that installing `distribution[extras]` brings, by installed metadata."""
    seen: set[tuple[str, frozenset[str]]] = set()
    queue = [(distribution, extras)]
    while queue:
        name, wanted = queue.pop()
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        for requirement in map(Requirement, metadata.requires(name) or []):
            markers = [{"extra": extra} for extra in (wanted or {""})]
            if requirement.marker is None or any(requirement.marker.evaluate(marker) for marker in markers):
                queue.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return {name for name, _ in seen}


def test_serving_set_has_no_torch() -> None:
    """What the images install, the base dependencies with the extra cpu, brings no training library."""
    served = closure("threshold-retrieval", frozenset({"cpu"}))
    assert {"onnxruntime", "faiss-cpu", "grpcio", "celery"} <= served
    assert not served & {"torch", "torchvision", "timm", "pytorch-metric-learning"}
    assert "torch" in closure("threshold-retrieval", frozenset({"train"})), "the walk would have found it"


@pytest.mark.parametrize("command", sorted(IMAGE_COMMANDS | COMPOSE_COMMANDS))
def test_started_commands_exist(command: str) -> None:
    """Whatever the images and compose start, health checks included, is a command of `retrieval`."""
    program = [sys.executable, "-c", "from retrieval.edge.cli import main; main()", command, "--help"]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_environment_names_settings() -> None:
    """Every RETRIEVAL_ variable in the images and in compose is read by Settings."""
    given = set(re.findall(r"^(?:ENV|   ) (RETRIEVAL_\w+)=", DOCKERFILE, flags=re.MULTILINE))
    for service in SERVICES.values():
        given |= set(service.get("environment", {}))
    assert {"RETRIEVAL_STORE_URL", "RETRIEVAL_ADDRESS", "RETRIEVAL_REDIS_URL"} <= given
    assert given <= {f"RETRIEVAL_{name.upper()}" for name in Settings.model_fields}


def test_images_run_unprivileged_from_pinned_bases() -> None:
    """Both stages start from the same exact Python release and the last user is numeric and not root."""
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, flags=re.MULTILINE)
    external = {base for base in bases if ":" in base}
    assert len(external) == 1
    assert all(re.fullmatch(r"python:3\.11\.\d+-slim-\w+", base) for base in external)
    user = re.findall(r"^USER (\d+):\d+", DOCKERFILE, flags=re.MULTILINE)[-1]
    assert int(user) > 0


def test_compose_survives_restarts() -> None:
    """Redis appends to a file on a volume and evicts nothing; every service comes back by itself."""
    command = " ".join(SERVICES["redis"]["command"])
    assert "--appendonly yes" in command
    assert "--maxmemory-policy noeviction" in command
    assert any(volume.endswith(":/data") for volume in SERVICES["redis"]["volumes"])
    assert {service["restart"] for service in SERVICES.values()} == {"unless-stopped"}


def test_compose_confines_every_service() -> None:
    """Read-only root, no capabilities, bounded memory; queries do not wait for Redis."""
    for name, service in SERVICES.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["deploy"]["resources"]["limits"]["memory"], name
    assert "depends_on" not in SERVICES["server"]


def test_compose_publishes_on_loopback_only() -> None:
    """Plain gRPC is not offered to the network."""
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
