"""The page of an audit: complete, self-contained, and safe whatever a label holds."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any, TypeAlias

import numpy as np
import pytest
from numpy.typing import NDArray

from retrieval.consistency import Finding, Interval, StrangerRate
from retrieval.contract.bundle import BundleDigest
from retrieval.contract.manifest import Item
from retrieval.contract.score import Score, ScoreDigest
from retrieval.engine.embedding import EmbeddedItems
from retrieval.engine.images import Failure
from retrieval.engine.labelled_embeddings import LabelledEmbeddings
from retrieval.flows.audit import AuditLimits, AuditReport, AuditRequest, measure
from retrieval.flows.calibrate import CalibrationTarget, calibrate
from retrieval.report.audit_page import p_value, percent, render_report, span

SECTIONS = [
    *("verdict", "figures", "scores", "curves", "classes", "groups", "worst"),
    *("confused", "labels", "unreadable", "provenance"),
]
HOSTILE = '<script>alert(1)</script><img src=x onerror="x"> & $\\frac{1}$ 猫'
MakeReport: TypeAlias = Callable[..., AuditReport]


class Page(HTMLParser):
    """What a browser sees: elements with their attributes, and the text outside of them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def ids(self) -> list[str]:
        return [value for _, attributes in self.elements if (value := attributes.get("id")) is not None]


def _embeddings(n_classes: int, n_images: int, seed: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    noise = 0.25 * np.exp(0.4 * rng.normal(size=(n_classes, 1, 1)))
    rows = rng.normal(size=(n_classes, 1, 12)) / np.sqrt(12) + noise * rng.normal(size=(n_classes, n_images, 12))
    rows = rows.reshape(-1, 12)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def make_report() -> MakeReport:
    """A report of real measurements on synthetic embeddings; labels, groups and sizes as asked for."""
    labels = [f"class {code:02d}" for code in range(24) for _ in range(6)]
    point = calibrate(
        LabelledEmbeddings(embeddings=_embeddings(24, 6, 0), labels=labels, data_digest="calibration"),
        bundle=BundleDigest("b" * 64),
        scores=[Score()],
        target=CalibrationTarget(),
        rng=np.random.default_rng(0),
        created_at="2026-01-02T03:04:05+00:00",
    )

    def make(
        *,
        n_classes: int = 24,
        n_images: int = 6,
        rename: Callable[[str], str] = str,
        group_by: tuple[str, ...] = ("maker",),
        failures: tuple[Failure, ...] = (),
    ) -> AuditReport:
        names = [rename(f"class {code:03d}") for code in range(n_classes) for _ in range(n_images)]
        items = tuple(
            Item(
                id=str(row), uri="", label=name, attributes={column: rename(f"group {row % 2}") for column in group_by}
            )
            for row, name in enumerate(names)
        )
        embedded = EmbeddedItems(
            items=items, embeddings=_embeddings(n_classes, n_images, 1), failures=failures, content_digest="c" * 64
        )
        request = AuditRequest(catalog=rename("shoes"), manifest_uri="new.csv", group_by=group_by)
        return measure(
            request, embedded, point, Score(), AuditLimits(), audit_id="audit-1", created_at="2026-02-03T04:05:06+00:00"
        )

    return make


@pytest.fixture(scope="module")
def report(make_report: MakeReport) -> AuditReport:
    return make_report()


@pytest.fixture(scope="module")
def html(report: AuditReport) -> str:
    return render_report(report)


def test_every_part_is_there_in_order(html: str) -> None:
    """A reader finds verdict, figures, plots, groups, classes, failures and provenance, in this order."""
    page = Page(html)
    assert [name for name in page.ids if name in SECTIONS] == SECTIONS
    assert sum(tag == "figure" for tag, _ in page.elements) == 4


@pytest.mark.slow
def test_the_figures_are_those_of_the_report(report: AuditReport) -> None:
    """Each figure stands on the page as a person would round it, next to its target, promise or noise floor."""
    choice = replace(report.point.choice, threshold=0.43218, threshold_interval=Interval(0.42101, 0.44299))
    figures = replace(
        report,
        point=replace(report.point, choice=choice),
        far=0.012341,
        far_promised=Interval(0.0081, 0.0125),
        tar=0.8762,
        tar_promised=Interval(0.85, 0.90049),
        recall_at_1=0.97501,
        opis=replace(
            report.opis, value=0.0123456, floor=0.00456, debiased=0.00789, debiased_interval=Interval(0.0012, 0.0159)
        ),
        n_images=14_400,
    )
    html = render_report(figures)
    gauges = re.findall(
        r'x1="([\d.]+)" x2="([\d.]+)"[^>]*class="promise".*?<circle cx="([\d.]+)"', html, flags=re.DOTALL
    )
    # Left edge 6, width 188: the FAR on a line to 1.15 times its largest value, the TAR on a line to 1.
    far, tar = [6 + 188 * v / (1.15 * 0.0125) for v in (0.0081, 0.0125, 0.012341)], [165.8, 175.29, 170.73]
    assert [[float(x) for x in gauge] for gauge in gauges] == [
        pytest.approx(far, abs=0.01),
        pytest.approx(tar, abs=0.01),
    ]
    text = Page(html).text
    for title, shown in (
        ("Threshold", "0.4322\n95% interval 0.4210 to 0.4430\n"),
        ("False accept rate (FAR)", "1.23%\ntarget 1%, promised 0.81% to 1.25%\n"),
        ("True accept rate (TAR)", "87.6%\npromised 85% to 90%\n"),
        ("Recall at 1 (R@1)", "97.5%\n"),
        ("Inconsistency between classes (OPIS)", "0.0123\nnoise floor 0.00456, debiased 0.00789 (0.0012 to 0.0159)\n"),
        ("Data", "24 classes\n14,400 images\n"),
    ):
        assert f"{title}{shown}" in text, title


def test_provenance_names_model_threshold_and_data(report: AuditReport, html: str) -> None:
    """Whoever reads the page can find the bundle, the operating point and the calibration data."""
    text = Page(html).text
    for name in (report.id, report.created_at, report.point.id, report.point.bundle_digest, report.point.data_digest):
        assert name in text, name


@pytest.mark.slow
@pytest.mark.parametrize("passed", [True, False])
def test_the_verdict_is_that_of_the_findings(report: AuditReport, *, passed: bool) -> None:
    """One limit that does not hold fails the audit; each finding shows its own outcome."""
    findings = [
        Finding(limit="a", passed=True, explanation="fine"),
        Finding(limit="b", passed=passed, explanation="so"),
    ]
    page = Page(render_report(replace(report, findings=findings)))
    (banner,) = [attributes["class"] for _, attributes in page.elements if attributes.get("id") == "verdict"]
    assert banner == f"banner {'passed' if passed else 'failed'}"
    items = [attributes["class"] for tag, attributes in page.elements if tag == "li" and "class" in attributes]
    assert items == ["passed", "passed" if passed else "failed"]
    assert ("✓ Passed" in page.text, "✗ Failed" in page.text) == (passed, not passed)


@pytest.mark.slow
def test_hostile_names_stay_text(make_report: MakeReport) -> None:
    """Labels, groups, columns, the catalogue, image ids and reasons are shown as they are and never become markup."""
    hostile = make_report(
        rename=lambda name: name + HOSTILE, group_by=(HOSTILE,), failures=(Failure("id" + HOSTILE, "why" + HOSTILE),)
    )
    hostile = replace(hostile, findings=[Finding(limit=HOSTILE, passed=True, explanation="says " + HOSTILE)])
    html = render_report(hostile)
    page = Page(html)
    assert not [tag for tag, _ in page.elements if tag in {"script", "img"}]
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    for shown in ("class 003", "group 0", "shoes", "id", "why", "says "):
        assert shown + HOSTILE in page.text, shown


def test_the_page_needs_nothing_else(html: str) -> None:
    """No script, no address to load anything from: the page works offline and from a file."""
    page = Page(html)
    assert not [tag for tag, _ in page.elements if tag in {"script", "link", "img", "iframe", "object"}]
    addresses = [
        value for _, attributes in page.elements for name, value in attributes.items() if name.endswith(("href", "src"))
    ]
    assert addresses
    assert all(address is not None and address.startswith("#") for address in addresses)
    assert "@import" not in html
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))


def test_plots_do_not_share_ids(html: str) -> None:
    """Each reference finds the drawing's own element, although four drawings share one page."""
    page = Page(html)
    assert len(page.ids) == len(set(page.ids))
    references = set(re.findall(r'(?:href="|url\()#([^")]+)', html))
    assert references
    assert references <= set(page.ids)


def test_colours_follow_the_reader(html: str) -> None:
    """Plots take every colour from the style sheet, so that they are readable on light and on dark."""
    drawings = "".join(re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL))
    assert "var(--ink)" in drawings
    assert not re.findall(r"(?:fill|stroke): #", drawings)
    assert set(re.findall(r"var\((--\w+)\)", html)) <= set(re.findall(r"(--\w+):", html))


def test_a_repeated_report_is_the_same(report: AuditReport, html: str) -> None:
    """Equal reports give equal pages, byte for byte."""
    assert render_report(report) == html


@pytest.mark.slow
def test_no_groups_is_said(make_report: MakeReport) -> None:
    """Without a column to group by, the section says so instead of being empty."""
    assert "No column was named with --group-by" in Page(render_report(make_report(group_by=()))).text


def test_groups_are_drawn_with_their_intervals(report: AuditReport, html: str) -> None:
    """Every group has its rate and interval, for FAR and for FRR."""
    text = Page(html).text
    for rates in report.groups["maker"]:
        assert rates.name in text
        for interval in (rates.far_interval, rates.frr_interval):
            assert f"{100 * interval.low:.3g}% to {100 * interval.high:.3g}%" in text


@pytest.mark.slow
def test_groups_with_one_image_of_a_class_are_compared_across(make_report: MakeReport) -> None:
    """One image of each class per group: FRR is of the pairs with one end in the group, and the page says so."""
    report = make_report(n_classes=30, n_images=2)
    assert report.comparisons["maker"].frr_pairs == "touching"
    text = Page(render_report(report)).text
    assert "FRR counts the pairs of one class with at least one image in the group" in text
    assert "no two images of one class" not in text


@pytest.mark.slow
def test_a_group_without_pairs_of_one_class_is_said(report: AuditReport) -> None:
    """There is no FRR, and nothing is drawn for it."""
    comparison = report.comparisons["maker"]
    groups = (replace(comparison.groups[0], positives=0, frr=None), *comparison.groups[1:])
    without = replace(report, comparisons={"maker": replace(comparison, groups=groups, frr=None, garbe=None, fdr=None)})
    text = Page(render_report(without)).text
    assert "no two images of one class" in text
    assert "GARBE" not in text


def test_differentials_are_shown_with_what_chance_would_show(report: AuditReport, html: str) -> None:
    """Nobody reads a ratio of two groups without what uncertainty alone makes of equal groups."""
    text = Page(html).text
    for differential in (report.comparisons["maker"].far, report.comparisons["maker"].frr):
        assert differential is not None
        assert f"{differential.max_min_ratio:.3g}" in text
        assert f"chance {differential.max_min_ratio_by_chance:.3g}" in text
        assert p_value(differential.p_equal) in text
        for test in differential.tests:
            assert f"{test.ratio:.3g} times the others" in text
    assert "GARBE" in text
    assert "most often confused: group 0 and group 1, FAR" in text


@pytest.mark.slow
def test_only_groups_that_differ_after_correction_are_marked(report: AuditReport) -> None:
    comparison = report.comparisons["maker"]
    assert comparison.far is not None
    for differs in (True, False):
        tests = tuple(replace(test, differs=differs) for test in comparison.far.tests)
        changed = replace(comparison, far=replace(comparison.far, tests=tests, max_min_ratio=None), frr=None)
        page = Page(render_report(replace(report, comparisons={"maker": changed})))
        assert [("b", "differs")] * (2 if differs else 0) == [
            (tag, attributes["class"]) for tag, attributes in page.elements if attributes.get("class") == "differs"
        ]
        assert "none" in page.text


@pytest.mark.slow
def test_groups_too_small_to_compare_are_said(make_report: MakeReport) -> None:
    report = make_report()
    alone = replace(report.comparisons["maker"], far=None, frr=None, garbe=None, fdr=None, across=())
    text = Page(render_report(replace(report, comparisons={"maker": alone}))).text
    assert "Fewer than two groups are large enough to be compared" in text
    assert "most often confused" not in text


@pytest.mark.parametrize(
    ("p", "text"), [(None, "not testable with so few classes"), (1e-9, "p < 0.0001"), (0.0312, "p = 0.031")]
)
def test_p_value(p: float | None, text: str) -> None:
    assert p_value(p) == text


@pytest.mark.slow
def test_many_classes_become_bands(make_report: MakeReport, report: AuditReport) -> None:
    """Above 60 classes the page shows deciles: it does not grow with the number of classes' lines."""
    many = render_report(make_report(n_classes=90, group_by=()))
    assert "shaded bands" in many
    assert "thin lines" in render_report(report)


@pytest.mark.slow
def test_classes_with_few_images_are_not_ranked_before_others(make_report: MakeReport) -> None:
    """Chance puts small classes first; they are left out of the ranking as long as there are larger ones."""
    report = make_report(group_by=())
    small = replace(report.classes[0], name="small one", far=1.0, frr=1.0, small=True)
    text = Page(render_report(replace(report, classes=[small, *report.classes[1:]]))).text
    assert "small one" not in text
    assert "Classes with few images are not ranked, because chance would put them first: 1." in text


@pytest.mark.slow
def test_opis_without_a_debiased_value_is_read_against_its_floor(make_report: MakeReport) -> None:
    """With two images a class, true differences cannot be told from chance, and the page says so."""
    report = make_report(n_classes=40, n_images=2, group_by=())
    assert report.opis.debiased is None
    assert report.opis.debiased_interval is not None
    text = Page(render_report(report)).text
    assert "compare the value only with its noise floor" in text
    assert f"at most {report.opis.debiased_interval.high:.3g}" in text


@pytest.mark.slow
def test_confused_classes_are_listed_with_their_images(report: AuditReport, html: str) -> None:
    """The worst pair of classes, its share and the ids of the images most alike; none is said to be none."""
    worst = report.confusion.pairs[0]
    text = Page(html).text
    for shown in (
        f"{worst.n_accepted} of {worst.n_pairs} pairs",
        f"{worst.examples[0].score:.3f}: {worst.examples[0].first_row}, {worst.examples[0].second_row}",
        f"{percent(report.histograms.overlap)} of their areas overlap",
    ):
        assert shown in text, shown
    none = replace(report, confusion=replace(report.confusion, pairs=(), n_false_accepts=0, n_confused=0))
    assert "No pair of different classes is accepted." in Page(render_report(none)).text


@pytest.mark.slow
def test_a_narrow_window_scrolls_and_does_not_squeeze_names(html: str) -> None:
    """On a telephone the column of image names took one letter a line and a page of 10,000 pixels."""
    assert "td.alike { min-width: 18em; }" in html
    assert '<td class="name alike">' in html


def test_labels_to_check_are_listed_with_the_class_they_resemble(report: AuditReport) -> None:
    """At most 20, and the number of all; none is a sentence."""
    n = len(report.item_ids)
    every = replace(
        report.margins,
        own=np.full(n, -0.25),
        other=np.full(n, 0.875),
        margins=np.full(n, -1.125),
        likely=np.zeros(n, dtype=np.int64),
        known=np.ones(n, dtype=np.bool_),
    )
    text = Page(render_report(replace(report, margins=every))).text
    assert f"The 20 with the largest difference of {n} are listed" in text
    assert "0class 000class 000-0.2500.875" in text
    none = replace(report, margins=replace(every, known=np.zeros(n, dtype=np.bool_)))
    assert "Every image with a partner matches its own class" in Page(render_report(none)).text


@pytest.fixture(scope="module")
def searched(report: AuditReport) -> AuditReport:
    """The same figures as if they had been counted in rounds of searches."""
    strangers = StrangerRate(
        far=0.00345,
        interval=Interval(0.002, 0.0052),
        n_classes=24,
        n_images=144,
        confidence=0.95,
        class_variance=0.05,
        pair_variance=0.01,
        far_units=20.0,
    )
    compared = tuple(
        replace(entry, stranger_far=0.0123, refused=True, score_digest=ScoreDigest("x"))
        for entry in report.point.compared
    )
    return replace(
        report,
        point=replace(report.point, n_rounds=5, strangers=replace(strangers, far=0.0071), compared=compared),
        strangers=strangers,
        strangers_promised=Interval(0.001, 0.0083),
        far_items=tuple(range(30)),
    )


def test_a_report_of_searches_explains_what_was_counted(searched: AuditReport, html: str) -> None:
    """Strangers have a figure with its promise; the page of one set of images mentions neither."""
    text = Page(render_report(searched)).text
    for shown in (
        "Counted in 5 rounds of searches",
        "A query and an item are accepted as the same",
        "FAR of strangers0.345%\n95% interval 0.2% to 0.52%, promised 0.1% to 0.83%\n",
        "How often the nearest item is of the class of the query",
        "counted over all rounds",
        "at calibration: FAR 0.71% (0.2% to 0.52%), in 5 rounds",
        "FAR of strangers 1.23%",
        ", refused",
    ):
        assert shown in text, shown
    without = Page(html).text
    for hidden in ("rounds", "stranger", "refused", "Far from"):
        assert hidden not in without


def test_images_far_from_their_class_are_listed(searched: AuditReport) -> None:
    """At most 20, and the number of all."""
    text = Page(render_report(searched)).text
    assert "The first 20 of 30 are listed" in text
    assert "no picture19class 003" in text
    assert "no picture20class 003" not in text
    few = Page(render_report(replace(searched, far_items=(7,)))).text
    assert "no picture7class 001" in few
    assert "The first" not in few


@pytest.mark.slow
def test_unreadable_images_are_listed_up_to_a_limit(report: AuditReport) -> None:
    """The first fifty are named with their reason, the others counted."""
    failures = [Failure(f"{number}.jpg", "truncated") for number in range(60)]
    text = Page(render_report(replace(report, failures=failures))).text
    assert "49.jpg" in text
    assert "50.jpg" not in text
    assert "and 10 more" in text


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (None, "-"),
        (0.0, "0%"),
        (1e-17, "0%"),
        (-1e-17, "0%"),
        (0.00123456, "0.123%"),
        (0.5, "50%"),
        (0.9999, ">99.9%"),
        (1.0, "100%"),
    ],
)
def test_percent(rate: float | None, text: str) -> None:
    """Three digits; nothing less than all is called 100%."""
    assert percent(rate) == text


def test_span() -> None:
    """Both ends in per cent."""
    assert span(Interval(0.01, 0.25)) == "1% to 25%"


@pytest.mark.slow
def test_extreme_reports_are_drawn(report: AuditReport) -> None:
    """No false accept anywhere, and no class with a pair rejected: nothing divides by zero or warns."""
    classes: list[Any] = [replace(rates, far=0.0, frr=0.0) for rates in report.classes]
    curves = replace(report.curves, negatives_accepted=np.zeros_like(report.curves.negatives_accepted))
    histograms = replace(report.histograms, d_prime=float("inf"))
    text = Page(render_report(replace(report, far=0.0, classes=classes, curves=curves, histograms=histograms))).text
    assert text.count("No class has an error of this kind.") == 2


def test_confused_images_are_shown(report: AuditReport) -> None:
    """Embedded in the page, which may load nothing; one without a picture is named all the same."""
    example = report.confusion.pairs[0].examples[0]
    page = Page(render_report(replace(report, thumbnails={example.first_row: b"a small JPEG"})))
    shown = [attributes for tag, attributes in page.elements if tag == "img"]
    assert {picture["src"] for picture in shown} == {"data:image/jpeg;base64,YSBzbWFsbCBKUEVH"}
    assert {picture["alt"] for picture in shown} == {str(report.item_ids[example.first_row])}
    (policy,) = [a["content"] for tag, a in page.elements if tag == "meta" and "http-equiv" in a]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert "no picture" in page.text


@pytest.mark.slow
def test_opis_around_the_target_has_a_row(report: AuditReport) -> None:
    """The row states its band; a report without this figure, such as an older one, has no such row."""
    found = report.opis_target
    assert found is not None
    assert report.to_json()["opis_target"]["value"] == found.value
    row = f"around the target, {percent(found.far_low)} to {percent(found.far_high)}"
    assert row in Page(render_report(report)).text
    without = replace(report, opis_target=None)
    assert "around the target" not in Page(render_report(without)).text
    assert without.to_json()["opis_target"] is None


@pytest.mark.slow
def test_families_and_what_was_passed_over_are_shown(report: AuditReport) -> None:
    """Both as text that no browser reads as markup."""
    choice = replace(report.point.choice, n_families=7)
    named = replace(
        report,
        point=replace(report.point, choice=choice, family="maker"),
        family="<line>",
        n_families=1234,
        passed_over=("2 passed over (hidden files): .<a>, .b",),
    )
    text = Page(render_report(named)).text
    for expected in (
        "1,234 families of classes (<line>)",
        "2 passed over (hidden files): .<a>, .b",
        "calibration counted 7 families of classes (column maker)",
        "On average",
    ):
        assert expected in text
    without = Page(render_report(report)).text
    assert "families" not in without
    assert "Not images of the audit" not in without


def test_wide_tables_name_their_values_on_a_telephone(html: str) -> None:
    """The head of such a table is hidden there, so each cell of numbers has a label."""
    for table in re.findall(r'<table class="[^"]*stack">.*?</table>', html, flags=re.DOTALL):
        assert not re.findall(r'<td class="n">', table)
