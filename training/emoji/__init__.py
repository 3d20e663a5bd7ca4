"""The demonstration's data set: the same emoji drawn by eight makers, split by class."""

from training.emoji.dataset import (
    PACKAGES,
    SUMMARY,
    EmojiRecipe,
    EmojiSummary,
    prepare_emoji,
    render_drawings,
    split_drawings,
)
from training.emoji.drawings import VERSIONS

__all__ = [
    "PACKAGES",
    "SUMMARY",
    "VERSIONS",
    "EmojiRecipe",
    "EmojiSummary",
    "prepare_emoji",
    "render_drawings",
    "split_drawings",
]
