"""The model card, which describes a bundle for people. Every figure in it is also in evaluation.json.

Decides the content and explains the metrics; `model_card.md.jinja` holds the text.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from retrieval.contract.preprocessing import Preprocessing
from training.config import ModelConfig
from training.export.options import NOT_STATED
from training.model.efficientnet_lite import LITE
from training.model.torchvision_compat import allow_mismatched_torchvision

_MEANINGS = {
    "r_at_1": "share of images whose nearest other image has the same class",
    **{f"r_at_{k}": f"share of images with an image of the same class among the {k} nearest" for k in (2, 4, 8)},
    "map_at_r": "mean average precision among the R nearest images, where R is the number of other images of the class",
    "far_target": "false accept rate for which the threshold was chosen: share of accepted pairs of two classes",
    "threshold": "lowest cosine similarity with at most this rate on these images",
    "tar": "share of pairs of one class that are accepted at the threshold",
    "opis": "how differently classes behave at one threshold, 0 if all behave in the same way",
    "opis_floor": "OPIS by chance alone, of equal classes with this number of images (noise floor)",
    "opis_debiased": "estimate of OPIS without the part that is caused by chance (debiased)",
    "n_images": "images",
    "n_classes": "classes",
    "n_single": "classes with one image, which have no pair",
    "n_unreadable": "images that could not be decoded",
}
_SHOWN_CLASSES = 8
_CLOSE = 0.99
_LONGEST_NAME = 60
_JOINERS = "\u200c\u200d"  # used inside words of some scripts, and in emoji of several parts

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("training.export", package_path=""),
    undefined=jinja2.StrictUndefined,
    autoescape=False,  # Markdown; class names, the only external text, are quoted by `_quoted`
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def render_card(evaluation: Mapping[str, Any], *, preprocessing: Preprocessing, dimension: int) -> str:
    """Render the model card of a bundle with this evaluation.json, in Markdown."""
    held_out = evaluation["held_out"]
    metrics = [
        (name, _similarity(float(value)) if name == "threshold" else _figure(value), _MEANINGS.get(name, ""))
        for name, value in held_out.items()
        if isinstance(value, int | float | str)
    ]
    template = _TEMPLATES.get_template("model_card.md.jinja")
    return template.render(
        **evaluation,
        metrics=metrics,
        preprocessing=preprocessing,
        dimension=dimension,
        configuration=json.dumps(evaluation["training"], indent=1, sort_keys=True),
        quoted=_quoted,
        chosen_on_them=evaluation["training"]["loop"]["evaluate_every"] > 0,
        figure=_figure,
        similarity=_similarity,
        cell=_cell,
    )


def backbone_licence(config: ModelConfig) -> str:
    """Return the licence of the pretrained weights, if the package of their publisher states one."""
    if config.weights == "random":
        return "none: the backbone was not pretrained"
    if config.weights != "pretrained":
        return NOT_STATED
    if config.backbone in LITE:
        return "Apache-2.0"
    library, _, name = config.backbone.partition("/")
    if library != "timm":
        return NOT_STATED  # torchvision states none for its weights
    allow_mismatched_torchvision()
    import timm

    pretrained = timm.models.get_pretrained_cfg(name)
    return str(getattr(pretrained, "license", None) or NOT_STATED)


def _figure(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _similarity(value: float) -> str:
    """Format a similarity; close to 1 with all digits of float32, because there the last digits matter."""
    return f"{value:.4f}" if abs(value) < _CLOSE else f"{value:.7f}"


def _cell(text: str) -> str:
    """Escape text for a cell of a table."""
    return " ".join(text.split()).replace("\\", r"\\").replace("|", r"\|")


def _quoted(names: Sequence[str]) -> str:
    """Return the first names as Markdown code, and the number of the others."""
    shown = ", ".join(f"`{_printable(name)}`" for name in names[:_SHOWN_CLASSES])
    more = len(names) - _SHOWN_CLASSES
    return f"{shown} and {more:,} more" if more > 0 else shown


def _printable(name: str) -> str:
    """Remove characters that end Markdown code or change the direction of text; shorten a very long name."""
    kept = "".join(letter if letter.isprintable() or letter in _JOINERS else " " for letter in name.replace("`", " "))
    text = " ".join(kept.split()) or "?"
    return text if len(text) <= _LONGEST_NAME else text[:_LONGEST_NAME] + "…"
