"""Dockerfile and compose file against the code that they run: commands, settings, users, packages, folders."""

from __future__ import annotations

import json
import os
import re
import shlex
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import typer
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from retrieval.edge.cli.app import app
from retrieval.edge.settings import Settings, load_settings

ROOT = Path(__file__).parents[2]
IMAGES = ("serve", "worker")


@dataclass(frozen=True)
class Stage:
    """One stage of the Dockerfile with those it is built from: its instructions in their order."""

    bases: tuple[str, ...]
    instructions: tuple[tuple[str, str], ...]

    def all(self, name: str) -> list[str]:
        return [argument for instruction, argument in self.instructions if instruction == name]

    def last(self, name: str) -> str:
        return self.all(name)[-1]

    @property
    def environment(self) -> dict[str, str]:
        return dict(pair.split("=", 1) for line in self.all("ENV") for pair in shlex.split(line))

    @property
    def health_check(self) -> list[str]:
        command: list[str] = json.loads(self.last("HEALTHCHECK").split("CMD", 1)[1])
        return command


def read_stages(text: str) -> dict[str, Stage]:
    """The stages of a Dockerfile by name."""
    stages: dict[str, Stage] = {}
    name = ""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in filter(None, "\n".join(lines).replace("\\\n", " ").splitlines()):
        instruction, argument = line.split(maxsplit=1)
        if instruction == "FROM":
            base, _, name = argument.split()
            parent = stages.get(base, Stage((base,), ()))
            stages[name] = Stage((*parent.bases, name), parent.instructions)
        else:
            stages[name] = Stage(stages[name].bases, (*stages[name].instructions, (instruction, argument)))
    return stages


def interpolated(value: str) -> str:
    """The value with the defaults of its variables, as compose reads it in an empty environment."""
    return re.sub(r"\$\{\w+:-(.*?)\}", r"\1", value)


STAGES = read_stages((ROOT / "deploy" / "Dockerfile").read_text())
SERVICES: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
SHARED = {"store"}  # volumes of several services
COMMANDS = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]  # a group


def image_of(service: dict[str, Any]) -> Stage:
    return STAGES[service["build"]["target"]]


def environment_of(service: dict[str, Any]) -> dict[str, str]:
    given = {name: interpolated(value) for name, value in service["environment"].items()}
    return {**image_of(service).environment, **given}


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> dict[str, Settings]:
    """The settings of each of our services, read by the code that runs there."""
    found = {}
    for name, service in OURS.items():
        with monkeypatch.context() as context:
            for variable in [variable for variable in os.environ if variable.startswith("RETRIEVAL_")]:
                context.delenv(variable)
            for variable, value in environment_of(service).items():
                context.setenv(variable, value)
            found[name] = load_settings()
    return found


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


def test_images_install_no_torch() -> None:
    """The set that the build installs by default brings no training library."""
    (install,) = re.findall(r'pip install .*"\.\[(.+?)\]"', STAGES["build"].last("RUN"))
    assert install == "${RUNTIME}"
    extra = dict(argument.split("=") for argument in STAGES["build"].all("ARG"))["RUNTIME"]
    installed = closure("threshold-retrieval", frozenset({extra}))
    assert {"onnxruntime", "faiss-cpu", "grpcio", "celery"} <= installed
    assert not installed & {"torch", "torchvision", "timm", "pytorch-metric-learning"}
    assert "torch" in closure("threshold-retrieval", frozenset({"train"})), "the walk would have found it"


@pytest.mark.parametrize("image", IMAGES)
def test_images_run_as_a_user_that_is_not_root(image: str) -> None:
    """The user is a number, so that an orchestrator can check it, and nothing after it needs another."""
    user, group = map(int, STAGES[image].last("USER").split(":"))
    assert user > 0
    assert group > 0


@pytest.mark.parametrize("image", IMAGES)
def test_the_environment_is_built_and_run_by_one_python(image: str) -> None:
    """A virtual environment works only under the release that made it, and that release is pinned."""
    built, run = STAGES["build"].bases[0], STAGES[image].bases[0]
    assert built == run
    assert re.fullmatch(r"python:3\.\d+\.\d+-\S+", run)


def test_what_the_build_copies_exists() -> None:
    """A file that was moved in the tree is missed here, not in the build."""
    sources = [source for line in STAGES["build"].all("COPY") for source in line.split()[:-1]]
    assert "pyproject.toml" in sources
    assert [source for source in sources if not (ROOT / source).exists()] == []
    sent = (ROOT / ".dockerignore").read_text().splitlines()
    assert [source for source in sources if f"!{source}" not in sent] == []


@pytest.mark.parametrize("image", IMAGES)
def test_images_start_commands_that_exist(image: str) -> None:
    """The program is `retrieval`, its argument one of its commands."""
    assert json.loads(STAGES[image].last("ENTRYPOINT")) == ["retrieval"]
    (command,) = json.loads(STAGES[image].last("CMD"))
    assert command in COMMANDS


@pytest.mark.parametrize("name", OURS)
def test_compose_starts_commands_that_exist(name: str) -> None:
    """A service runs its image's command or one of its own; then the image's health check does not apply to it."""
    service, image = OURS[name], image_of(OURS[name])
    default = json.loads(image.last("CMD"))
    command = service.get("command", default)
    assert command[0] in COMMANDS
    if command != default:
        assert service["healthcheck"] == {"disable": True} or "test" in service["healthcheck"]


def test_the_health_check_of_the_server_is_a_command() -> None:
    """The worker's is run for real in test_health.py."""
    program, command, option = STAGES["serve"].health_check
    assert program == "retrieval"
    assert command in COMMANDS
    assert option == "--ready", "one broken catalogue among others must not make the container unhealthy"


@pytest.mark.parametrize("name", OURS)
def test_every_variable_is_a_setting(name: str) -> None:
    """A misspelt variable would be ignored in silence."""
    given = {variable for variable in environment_of(OURS[name]) if variable.startswith("RETRIEVAL_")}
    assert {"RETRIEVAL_STORE_URL", "RETRIEVAL_STATE_DIR", "RETRIEVAL_REDIS_URL"} <= given
    assert given <= {f"RETRIEVAL_{field.upper()}" for field in Settings.model_fields}


def test_services_agree_on_store_and_queue(settings: dict[str, Settings]) -> None:
    """All read one store, and the queue is the service of that name."""
    assert len({found.store for found in settings.values()}) == 1
    (url,) = {found.redis_url.get_secret_value() for found in settings.values()}
    assert re.fullmatch(r"redis://(\w+):6379/0", url)
    assert url.split("/")[2].split(":")[0] in SERVICES


def test_the_published_port_is_the_one_that_is_listened_on(settings: dict[str, Settings]) -> None:
    """From outside on loopback only, because gRPC is plain; inside on all interfaces."""
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert set(published) == {"server"}
    (port,) = published["server"]
    host, _, inside = interpolated(port).split(":")
    assert host == "127.0.0.1"
    assert settings["server"].address == f"0.0.0.0:{inside}"
    assert STAGES["serve"].last("EXPOSE") == inside


@pytest.mark.parametrize("name", OURS)
def test_a_read_only_container_can_write_where_it_must(name: str, settings: dict[str, Settings]) -> None:
    """State and settings of libraries are in memory, the store is a volume."""
    service = OURS[name]
    assert service["read_only"]
    volumes = [interpolated(volume).split(":")[1:] for volume in service["volumes"]]
    writable = [PurePosixPath(path) for path, *mode in volumes if mode != ["ro"]]
    in_memory = [PurePosixPath(path.split(":")[0]) for path in service["tmpfs"]]
    state, cache = str(settings[name].state_dir), image_of(service).environment["MPLCONFIGDIR"]
    assert all(any(PurePosixPath(path).is_relative_to(folder) for folder in in_memory) for path in (state, cache))
    assert PurePosixPath(settings[name].store.removeprefix("file://")) in writable


@pytest.mark.parametrize("name", ["worker", "server"])
def test_large_temporary_files_are_on_a_disk(name: str) -> None:
    """Copies of a remote store take 8 GiB: in memory they would exceed the limit of the container and kill it."""
    service = OURS[name]
    folder = PurePosixPath(service["environment"]["TMPDIR"])
    volumes = dict(interpolated(volume).split(":")[1::-1] for volume in service["volumes"])
    assert volumes[str(folder)] not in SHARED, "each service bounds its own copies"
    made = next(line for line in image_of(service).all("RUN") if str(folder) in line)
    assert "--owner=10001" in made, "a new volume takes the owner of the folder in the image"
    (tmpfs,) = service["tmpfs"]
    assert not folder.is_relative_to(tmpfs.split(":")[0])
    assert re.search(r"size=(\d+)m", tmpfs), "a tmpfs may grow to half of the machine's memory"


@pytest.mark.parametrize("name", ["worker", "server"])
def test_processes_and_threads_fit_the_processors(name: str, settings: dict[str, Settings]) -> None:
    """A container sees every core of its machine, so the settings must say how many are its own."""
    granted = float(SERVICES[name]["deploy"]["resources"]["limits"]["cpus"])
    processes = settings[name].worker_processes if name == "worker" else 1
    assert processes * settings[name].threads == granted


def test_a_stopping_server_has_time_to_finish_its_calls(settings: dict[str, Settings]) -> None:
    """It is killed after the grace period of compose, so its own must be shorter."""
    assert settings["server"].shutdown_grace_s < int(SERVICES["server"]["stop_grace_period"].removesuffix("s"))


def test_queries_do_not_wait_for_the_queue() -> None:
    """The server starts, and comes back, without Redis."""
    assert "depends_on" not in SERVICES["server"]
    assert {service["restart"] for service in SERVICES.values()} == {"unless-stopped"}


def test_there_is_one_scheduler() -> None:
    """Two would start every audit twice."""
    schedulers = [service for service in OURS.values() if service.get("command") == ["beat"]]
    assert len(schedulers) == 1
    assert "replicas" not in schedulers[0]["deploy"]
