"""Settings: documented, bounded, all problems at once."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr

from retrieval.contract.preprocessing import ImageLimits
from retrieval.contract.sources import check_source
from retrieval.edge.settings import Settings, child_environment, load_settings
from retrieval.errors import InvalidSettings, SourceNotAllowed

ROOT = Path(__file__).parents[2]
# | `RETRIEVAL_NAME` | `default` | meaning |
ROW = re.compile(r"^\| `RETRIEVAL_(\w+)` \| (.*?) \| (.+?) \|$", flags=re.MULTILINE)


def documented() -> dict[str, tuple[str, str]]:
    """Default and meaning of each setting by its name, from the page that holds the table."""
    pages = [page for page in (ROOT / "docs" / "settings.md", ROOT / "README.md") if page.exists()]
    tables = [rows for page in pages if (rows := ROW.findall(page.read_text()))]
    assert len(tables) == 1, f"expected one table of settings in {pages}, found {len(tables)}"
    return {name.lower(): (default.strip().strip("`"), meaning) for name, default, meaning in tables[0]}


def test_exactly_the_settings_are_documented_in_their_order() -> None:
    """No setting is missing from the table, none is left in it after it was removed."""
    assert list(documented()) == list(Settings.model_fields)


@pytest.mark.parametrize("name", Settings.model_fields)
def test_documented_default_and_meaning_are_those_of_the_class(name: str) -> None:
    """A reader of the table and a reader of the class learn the same."""
    field = Settings.model_fields[name]
    default = field.default.get_secret_value() if isinstance(field.default, SecretStr) else field.default
    assert field.description, name
    assert documented()[name] == (str(default), field.description)


def test_settings_load_nothing_heavy() -> None:
    """Every command loads them, and most need neither arrays nor images."""
    program = "import sys, retrieval.edge.settings; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {module.split(".")[0] for module in done.stdout.split()}
    assert not loaded & {"numpy", "PIL", "grpc", "celery", "redis", "scipy", "sklearn", "pyarrow"}


def test_limits_of_images_are_those_of_the_settings() -> None:
    """Both limits reach the decoder; the defaults are the decoder's own."""
    limits = load_settings(image_bytes=7, image_pixels=11).limits
    assert (limits.image_bytes, limits.pixels) == (7, 11)
    assert load_settings().limits == ImageLimits()


def test_a_child_process_gets_the_same_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Options of the command line included; the rest of the environment is passed on."""
    monkeypatch.setenv("RETRIEVAL_MAX_BATCH", "3")
    monkeypatch.setenv("OTHER", "kept")
    settings = load_settings(address="127.0.0.1:2", redis_url="redis://:secret@host/0", audit_every_h=0.5)
    for name, value in child_environment(settings).items():
        monkeypatch.setenv(name, value)
    assert load_settings() == settings
    assert child_environment(settings)["OTHER"] == "kept"


def test_all_problems_are_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two wrong settings give one error that names both, with what was found."""
    monkeypatch.setenv("RETRIEVAL_MAX_BATCH", "0")
    monkeypatch.setenv("RETRIEVAL_DEVICE", "tpu")
    with pytest.raises(InvalidSettings, match=r"(?s)RETRIEVAL_DEVICE.*'tpu'.*RETRIEVAL_MAX_BATCH.*'0'"):
        load_settings()


def test_command_line_wins_over_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """An option that is given replaces the variable, one that is not leaves it."""
    monkeypatch.setenv("RETRIEVAL_ADDRESS", "10.0.0.1:1")
    monkeypatch.setenv("RETRIEVAL_CATALOGS", "a, b")
    settings = load_settings(address="127.0.0.1:2", catalogs=None)
    assert settings.address == "127.0.0.1:2"
    assert settings.served_catalogs == ("a", "b")


def test_password_of_redis_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logged or printed settings hide the Redis URL."""
    monkeypatch.setenv("RETRIEVAL_REDIS_URL", "redis://:secret@host/0")
    assert "secret" not in repr(load_settings())


def test_store_path_is_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A relative store means the same folder for every process."""
    monkeypatch.chdir(tmp_path)
    assert load_settings(store_url="here").store == (tmp_path / "here").as_uri()
    assert load_settings(store_url="s3://bucket/x").store == "s3://bucket/x"


def test_settings_of_the_developer_do_not_reach_the_tests() -> None:
    """With a store among them, the tests of the server would write to it."""
    assert [name for name in os.environ if name.startswith("RETRIEVAL_")] == []


@pytest.mark.parametrize(
    ("settings", "allowed", "refused"),
    [
        ({}, "/data/a.png", "http://images.example/a.png"),
        ({}, "relative.png", "s3://bucket/a.png"),
        ({"store_url": "s3://bucket/store"}, "s3://other/a.png", "http://127.0.0.1/a.png"),
        ({"store_url": "s3://bucket/store"}, "/data/a.png", "gs://bucket/a.png"),
        ({"image_roots": "http://images.example/shop"}, "http://images.example/shop/a.png", "/data/a.png"),
        ({"image_roots": "*"}, "http://127.0.0.1/a.png", "http://10.0.0.1/a.png"),
        ({"image_roots": "*,http://10.0.0.1/"}, "http://10.0.0.1/a.png", "http://10.0.0.2/a.png"),
    ],
)
def test_jobs_read_local_paths_and_the_scheme_of_the_store_unless_told_otherwise(
    settings: dict[str, str], allowed: str, refused: str
) -> None:
    roots = load_settings(**settings).job_limits.roots
    check_source(allowed, roots)
    with pytest.raises(SourceNotAllowed, match="RETRIEVAL_IMAGE_ROOTS"):
        check_source(refused, roots)


def test_a_user_who_names_a_url_reads_from_its_host() -> None:
    """A private one too, and no other private one."""
    settings = load_settings()
    for roots in (
        settings.limits_for("http://10.0.0.1/table.csv", "").roots,
        settings.reading("http://10.0.0.1/table.csv").job_limits.roots,
    ):
        check_source("http://10.0.0.1/images/a.png", roots)
        check_source("/data/a.png", roots)
        with pytest.raises(SourceNotAllowed, match="RETRIEVAL_IMAGE_ROOTS"):
            check_source("http://10.0.0.2/images/a.png", roots)
    assert settings.reading("/data/table.csv") == settings
