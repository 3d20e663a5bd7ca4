"""The model card says what evaluation.json says, and nothing that comes from outside changes its shape."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from retrieval.contract.bundle import open_bundle
from retrieval.contract.preprocessing import Preprocessing
from training.config import ModelConfig
from training.export.card import backbone_licence, render_card

pytestmark = pytest.mark.slow  # each exports a network


@pytest.fixture
def evaluation(exported: Path) -> dict[str, Any]:
    return dict(open_bundle(exported).evaluation)


def _render(evaluation: dict[str, Any]) -> str:
    preprocessing = Preprocessing(resize=32, crop=32, mean=(127.0,) * 3, std=(128.0,) * 3)
    return render_card(evaluation, preprocessing=preprocessing, dimension=16)


def test_the_card_of_a_bundle(lower: dict[str, Path]) -> None:
    """Data, classes, metrics, evidence for the threshold, precision with its flips, licence."""
    bundle = open_bundle(lower["int8"])
    card, evaluation = bundle.model_card, bundle.evaluation
    assert card is not None
    shift = evaluation["export"]["shift"]
    for expected in (
        "unit vector of 16 numbers",
        "| precision | int8; pooling, head and unit norm in float32 |",
        r"| licence of this model | ours \| to keep |",
        "| licence of the pretrained backbone | Apache-2.0 |",
        f"| training | 40 | 8 | {evaluation['data']['training']['digest']} |",
        f"| held out | 70 | 14 | {evaluation['data']['validation']['digest']} |",
        "No class is in both parts",
        f"| r_at_1 | {evaluation['held_out']['r_at_1']:.4g} | share of images whose nearest other image",
        "retrieval calibrate --bundle BUNDLE",
        f"{100 * shift['flips']:.3g} % of the {shift['n_accepted']} pairs accepted before",
        "Ranges of activations were taken from 40 of 40 images",
        '"backbone": "efficientnet-lite0"',
    ):
        assert expected in card


def test_classes_on_both_sides_are_told(evaluation: dict[str, Any]) -> None:
    data = evaluation["data"] | {"shared_classes": ["cup"]}
    assert "**Classes in both parts: 1** (`cup`)" in _render(evaluation | {"data": data})


def test_flips_on_classes_trained_on_are_told(evaluation: dict[str, Any]) -> None:
    assert "were used for training**" not in _render(evaluation)
    export = evaluation["export"] | {"shift_trained_classes": ["cup", "hat"]}
    assert "**2 of these classes were used for training** (`cup`, `hat`)" in _render(evaluation | {"export": export})


def test_the_threshold_is_told_with_its_evidence(evaluation: dict[str, Any]) -> None:
    """TAR at every FAR that was measured, what a threshold fixed on other classes does, and on what weights depend."""
    card = _render(evaluation)
    rates = evaluation["held_out"]["tar_at_far"]
    assert rates
    for rate in rates:
        assert f"| {rate['far']:.4g} | {rate['threshold']:.7f} | {rate['tar']:.4g} |" in card  # all close to 1 here
    held_out = evaluation["held_out"] | {"threshold": 0.48811}
    assert "a threshold of 0.4881 on the cosine similarity" in _render(evaluation | {"held_out": held_out})
    assert "applied to the other" not in card  # too few classes here
    assert "used to choose the best step" not in card
    other = {"far": 0.011, "tar": 0.7, "far_range": {"low": 0.008, "high": 0.013}, "worst_tar": 0.2, "worst_far": 0.03}
    held_out = evaluation["held_out"] | {"other_classes": other | {"n_splits": 5}}
    training = evaluation["training"] | {"loop": evaluation["training"]["loop"] | {"evaluate_every": 5}}
    card = _render(evaluation | {"held_out": held_out, "training": training})
    assert "it accepts 0.011 of the pairs of two classes (0.008 to 0.013 from half to half)" in " ".join(card.split())
    assert "were also used to choose the best step of training" in card


def test_a_run_that_recorded_no_data(evaluation: dict[str, Any]) -> None:
    assert "did not record its images" in _render(evaluation | {"data": None})


def test_names_of_classes_are_quoted_and_cut(evaluation: dict[str, Any]) -> None:
    emoji = "\N{MAN}\u200d\N{SLICE OF PIZZA}"
    names = ["a`b", "two\nlines", "`", "left\u202eright", emoji, "x" * 99, *map(str, range(16))]
    training = evaluation["data"]["training"] | {"classes": names}
    card = _render(evaluation | {"data": evaluation["data"] | {"training": training}})
    long = "x" * 60 + "…"
    expected = f"`a b`, `two lines`, `?`, `left right`, `{emoji}`, `{long}`, `0`, `1` and 14 more"
    assert f"- Training classes: {expected}\n" in card


@pytest.mark.parametrize(
    ("backbone", "weights", "expected"),
    [
        ("efficientnet-lite0", "pretrained", "Apache-2.0"),
        ("efficientnet-lite0", "random", "none: the backbone was not pretrained"),
        ("efficientnet-lite0", "mine.pt", "not stated"),
        ("torchvision/resnet18", "pretrained", "not stated"),
        ("timm/resnet50.a1_in1k", "pretrained", "apache-2.0"),
        ("timm/convnext_tiny.fb_in22k", "pretrained", "apache-2.0"),
    ],
)
def test_licence_of_the_backbone(backbone: str, weights: str, expected: str) -> None:
    """As the package that publishes the weights states it."""
    assert backbone_licence(replace(ModelConfig(), backbone=backbone, weights=weights)) == expected
