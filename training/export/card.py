"""The model card: what a bundle says about itself to people. Every figure in it is in evaluation.json, too.

Decides what is said and what a metric means; the wording lies in `model_card.md.jinja`.
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
    "r_at_1": "share of images whose nearest other image shows the same class",
    **{f"r_at_{k}": f"share of images with one of the same class among the {k} nearest" for k in (2, 4, 8)},
    "map_at_r": "mean average precision among the R nearest, R being the number of images of the class that are left",
    "far_target": "false accept rate for which the threshold was chosen: share of pairs of two classes accepted",
    "threshold": "lowest cosine similarity that keeps it on these images",
    "tar": "share of pairs of one class accepted at that threshold",
    "opis": "how unevenly one threshold treats the classes, 0 for classes that are treated alike",
    "opis_floor": "what classes that are truly alike would score with so few images",
    "opis_debiased": "OPIS with that noise taken out",
    "n_images": "images",
    "n_classes": "classes",
    "n_single": "classes with one image, which have no pair",
    "n_unreadable": "images that could not be decoded",
}
_SHOWN_CLASSES = 8
_CLOSE = 0.99
_LONGEST_NAME = 60
_JOINERS = "\u200c\u200d"  # inside words of some scripts, and emoji of several parts

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("training.export", package_path=""),
    undefined=jinja2.StrictUndefined,
    autoescape=False,  # Markdown; names of classes, the only text from outside, are quoted by `_quoted`
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def render_card(evaluation: Mapping[str, Any], *, preprocessing: Preprocessing, dimension: int) -> str:
    """The model card of a bundle with this evaluation.json, in Markdown."""
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
    """The licence of the pretrained weights where their publisher's package states one."""
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
    """With all digits that float32 has where it is close to 1: there the last ones decide."""
    return f"{value:.4f}" if abs(value) < _CLOSE else f"{value:.7f}"


def _cell(text: str) -> str:
    """Text for a cell of a table."""
    return " ".join(text.split()).replace("\\", r"\\").replace("|", r"\|")


def _quoted(names: Sequence[str]) -> str:
    """The first few names as Markdown code, and how many more there are."""
    shown = ", ".join(f"`{_printable(name)}`" for name in names[:_SHOWN_CLASSES])
    more = len(names) - _SHOWN_CLASSES
    return f"{shown} and {more:,} more" if more > 0 else shown


def _printable(name: str) -> str:
    """A name without what ends Markdown code, moves or turns the text around it; cut where it is very long."""
    kept = "".join(letter if letter.isprintable() or letter in _JOINERS else " " for letter in name.replace("`", " "))
    text = " ".join(kept.split()) or "?"
    return text if len(text) <= _LONGEST_NAME else text[:_LONGEST_NAME] + "…"
