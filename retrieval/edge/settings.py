"""The settings, each with its bounds, its default and its meaning.

Only this module reads the environment. A command-line option overrides the environment, the environment overrides the
default. Values that belong to a model are part of its bundle and are not settings. Imports nothing heavy, because every
command loads this module.
"""

import dataclasses
import os
from pathlib import Path
from typing import Literal

import pydantic
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from retrieval.contract.limits import ImageLimits
from retrieval.contract.sources import ANYWHERE, origin_of
from retrieval.errors import InvalidSettings

# Read by the libraries when they are loaded: OpenMP (FAISS), OpenBLAS and MKL (NumPy, SciPy, FAISS).
_THREAD_COUNTS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Settings(BaseSettings):
    """Settings of every process, each from the environment variable RETRIEVAL_<NAME>."""

    model_config = SettingsConfigDict(env_prefix="RETRIEVAL_", frozen=True, extra="ignore")

    store_url: str = Field(
        default="", description="Store of artefacts: an fsspec URL or a path; empty: the folder `store` in state_dir."
    )
    store_timeout_s: float = Field(
        default=20.0,
        gt=0,
        le=3600,
        description="Seconds within which the server answers a call that needs the store; UNAVAILABLE after that.",
    )
    state_dir: Path = Field(
        default=Path(".retrieval"), description="Folder of this machine's own state: embedded Valkey, default store."
    )
    redis_url: SecretStr = Field(
        default=SecretStr(""), description="Redis or Valkey for jobs; empty: the embedded one that `worker` starts."
    )
    milvus_servers: str = Field(
        default="",
        description="Milvus servers that may hold indexes, such as http://milvus:19530, separated by commas.",
    )
    milvus_token: SecretStr = Field(
        default=SecretStr(""),
        description="Token, or user:password, for indexes in Milvus; snapshots record their address only.",
    )
    address: str = Field(
        default="127.0.0.1:50051", description="host:port that the server listens on and clients call."
    )
    catalogs: str = Field(default="", description="Catalogues to serve, separated by commas; empty: all in the store.")
    device: Literal["cpu", "cuda", "auto"] = Field(
        default="cpu",
        description=(
            "Device of the models and exact indexes: cpu, cuda (refuses to start without a GPU) or auto (a GPU if "
            "present)."
        ),
    )
    threads: int = Field(default=0, ge=0, le=256, description="CPU threads of a process; 0: the machine's cores.")
    max_batch: int = Field(default=16, ge=1, le=1024, description="Largest number of images in one forward pass.")
    max_waiting: int = Field(
        default=256, ge=1, le=100_000, description="Queries that may wait for the model before others are refused."
    )
    image_bytes: int = Field(default=20 * 1024 * 1024, ge=1, description="Largest accepted image file, in bytes.")
    image_pixels: int = Field(default=50_000_000, ge=1, description="Largest accepted image, in pixels.")
    image_memory_bytes: int = Field(
        default=1536 * 1024 * 1024,
        ge=64 * 1024 * 1024,
        description="Memory that the images of a process may take together while they are decoded, in bytes.",
    )
    image_cpu_s: float = Field(
        default=10.0,
        ge=0.1,
        le=3600,
        description=(
            "CPU seconds that decoding one image may take; then it is refused and the process that decodes it is "
            "replaced."
        ),
    )
    image_roots: str = Field(
        default="",
        description=(
            "Paths and URLs inside which jobs may read images and their tables, separated by commas; *: all but "
            "private and link-local addresses; empty: local paths and URLs of the store's scheme. The container "
            "images set /images."
        ),
    )
    refresh_s: float = Field(
        default=2.0, gt=0, le=3600, description="Seconds between checks for a new snapshot or operating point."
    )
    worker_processes: int = Field(
        default=0, ge=0, le=256, description="Worker processes; 0: the machine's cores, one with a GPU."
    )
    redelivery_s: int = Field(
        default=900, ge=10, description="Seconds after which a task that a dead worker held is given to another."
    )
    keep_snapshots: int = Field(
        default=5, ge=0, description="Newest snapshots of a catalogue that stay when a new one is published; 0: all."
    )
    keep_audits: int = Field(
        default=100, ge=0, description="Newest audits of a catalogue that stay when a snapshot is published; 0: all."
    )
    keep_days: float = Field(
        default=0.0, ge=0, description="Days for which snapshots and audits stay in any case; 0: only numbers count."
    )
    cache_bytes: int = Field(
        default=8 * 1024**3, ge=0, description="Bytes of local copies of a remote store, in the temporary folder."
    )
    metrics_port: int = Field(
        default=0, ge=0, le=65535, description="Port of the server's Prometheus metrics on its host; 0: none."
    )
    shutdown_grace_s: float = Field(
        default=10.0, ge=0, le=600, description="Seconds that a stopping server waits for running calls."
    )
    audit_every_h: float = Field(
        default=0.0, ge=0, description="Hours between scheduled audits of audit_catalog; 0: none."
    )
    audit_catalog: str = Field(default="", description="Catalogue of the scheduled audits.")
    audit_manifest: str = Field(default="", description="Labelled images for scheduled audits: a path or URL.")
    audit_group_by: str = Field(
        default="", description="Columns that name groups in scheduled audits, separated by commas."
    )
    audit_family: str = Field(
        default="", description="Column that names families of classes in scheduled audits; empty: none."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Lowest level that is logged."
    )

    @property
    def store(self) -> str:
        """URL of the store; a path becomes absolute, so that every process uses the same folder."""
        url = self.store_url or str(self.state_dir / "store")
        return url if "://" in url else Path(url).resolve().as_uri()

    @property
    def limits(self) -> ImageLimits:
        """Largest image that is decoded."""
        return ImageLimits(
            image_bytes=self.image_bytes,
            pixels=self.image_pixels,
            memory_bytes=self.image_memory_bytes,
            cpu_s=self.image_cpu_s,
        )

    @property
    def job_limits(self) -> ImageLimits:
        """Largest image that a job decodes, and where its images may be: others than the operator start jobs."""
        return dataclasses.replace(self.limits, roots=self._roots)

    @property
    def _roots(self) -> tuple[str, ...]:
        scheme = self.store.partition("://")[0]
        return _names(self.image_roots) or ("/", *(() if scheme == "file" else (f"{scheme}://",)))

    def limits_for(self, *sources: str) -> ImageLimits:
        """Largest image of a command whose user names the sources: it may read from their hosts, private ones too."""
        return dataclasses.replace(self.limits, roots=(ANYWHERE, *filter(None, map(origin_of, sources))))

    def reading(self, source: str) -> "Settings":
        """Return the settings for jobs on a source that the user of this machine names: its host may be read too."""
        origin = origin_of(source)
        return self.model_copy(update={"image_roots": ",".join((*self._roots, origin))}) if origin else self

    @property
    def n_threads(self) -> int:
        """Number of threads that a process uses."""
        return self.threads or os.cpu_count() or 1

    @property
    def n_worker_processes(self) -> int:
        """Number of worker processes: one with a GPU, because a CUDA context does not survive a fork."""
        return 1 if self.device != "cpu" else self.worker_processes or self.n_threads

    @property
    def served_catalogs(self) -> tuple[str, ...]:
        """Names of the catalogues to serve; none means all."""
        return _names(self.catalogs)

    @property
    def audit_groups(self) -> tuple[str, ...]:
        """Names of the columns that scheduled audits compare."""
        return _names(self.audit_group_by)


def load_settings(**overrides: object) -> Settings:
    """Read the settings of this process; an override that is not None replaces the value of the environment.

    Raises InvalidSettings with all problems at once.
    """
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})  # type: ignore[arg-type]  # pydantic checks the values
    except pydantic.ValidationError as error:
        problems = "; ".join(
            f"RETRIEVAL_{'_'.join(map(str, e['loc'])).upper()}: {e['msg']}, found {e['input']!r}"
            for e in error.errors()
        )
        raise InvalidSettings(problems) from error


def child_environment(settings: Settings) -> dict[str, str]:
    """Return the environment for a child process that needs the same settings, overrides included."""
    own = {}
    for name, value in settings:
        text = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
        own[f"RETRIEVAL_{name.upper()}"] = text
    return {**os.environ, **own}


def use_cores_once(threads: int) -> None:
    """Let every numerical library of this process use at most so many threads. Call it before the first is imported.

    FAISS, NumPy and SciPy each start a team of as many threads as there are cores, for each thread that calls them,
    and idle teams spin: a query then costs several times its CPU time. A process that answers many queries on threads
    of its own gives each library one. A variable that the environment sets already keeps its value.
    """
    for name in _THREAD_COUNTS:
        os.environ.setdefault(name, str(threads))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads sleep


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())
