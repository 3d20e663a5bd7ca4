"""The messages in docs/troubleshooting.md are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [path for package in ("retrieval", "training") for path in sorted((ROOT / package).rglob("*.py"))]
# The end of one string and the beginning of the next, which Python joins.
_JOIN = re.compile(r"""["']\s*\n\s*\+?\s*\(?f?["']""")
ROWS = re.findall(r"^\| (`.+?`) \|", (ROOT / "docs" / "troubleshooting.md").read_text(), flags=re.MULTILINE)
MESSAGES = [message for row in ROWS for message in re.findall(r"`([^`]+)`", row)]


@pytest.fixture(scope="module")
def source() -> str:
    """All code, with split messages joined and `{...}` where a value stands."""
    text = "\n".join(_JOIN.sub("", path.read_text()) for path in SOURCES)
    return re.sub(r"\{[^{}\n]*\}", "{}", text)


@pytest.mark.parametrize("message", MESSAGES)
def test_every_message_is_one_of_the_code(message: str, source: str) -> None:
    """The parts of a message between `...` occur in the code, word for word."""
    parts = [part.strip(" ,;:") for part in message.split("...")]
    assert any(parts)
    assert [part for part in parts if part not in source] == []


def test_there_are_messages() -> None:
    """A table whose form changed would leave nothing to check."""
    assert len(MESSAGES) > 40
