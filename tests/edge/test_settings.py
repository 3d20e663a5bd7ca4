"""Settings: documented, bounded, all problems at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from retrieval.edge.settings import Settings, load_settings
from retrieval.errors import InvalidSettings

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_documented(name: str) -> None:
    """The README's table of settings is complete."""
    assert f"`RETRIEVAL_{name.upper()}`" in README.read_text()


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
