"""An audit as one HTML page, without network, scripts or other files.

Chooses the figures and their order. `plots.py` makes the plots. `audit_page.html.jinja` has the text and the layout and
escapes all text of users.
"""

import base64
from collections.abc import Callable, Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from retrieval.consistency import CrossRate, GroupComparison, GroupRates, GroupTest, Interval, RateDifferential
from retrieval.flows.audit import AuditReport
from retrieval.flows.audit.report import N_LISTED
from retrieval.plotting import MAX_LINES
from retrieval.report import plots

_N_WORST = 15
_N_NAMED = 4  # by FAR, and 4 more by FRR; more numbers would hide each other in the plot
_N_CONFUSED = 15
_N_FAILURES = 50
_N_GROUPS = 40
_N_ACROSS = 3
_HEADROOM = 1.15  # length of a drawn line, relative to the highest value on it

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("retrieval.report", "."),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render_report(report: AuditReport) -> str:
    """Return the page of an audit. Equal reports give equal pages. Takes a few seconds at most."""
    ranked = [rates for rates in report.classes if not rates.small] or list(report.classes)
    worst_far, worst_frr = _worst(ranked, _far), _worst(ranked, _frr)
    named = list(dict.fromkeys([*worst_far[:_N_NAMED], *worst_frr[:_N_NAMED]]))
    return _TEMPLATES.get_template("audit_page.html.jinja").render(
        report=report,
        point=report.point,
        searches=bool(report.point.n_rounds),
        choice=report.point.choice,
        plots=_plots(report, named),
        named=named,
        banded=len(report.classes) > MAX_LINES,
        worst_far=worst_far,
        worst_frr=worst_frr,
        n_unranked=len(report.classes) - len(ranked),
        confused=[pair for pair in report.confusion.pairs if pair.n_accepted][:_N_CONFUSED],
        groups=[_group_rows(column, comparison, report) for column, comparison in report.comparisons.items()],
        far_gauge=_gauge(report.far, report.far_promised, report.point.choice.target_far),
        tar_gauge=_gauge(report.tar, report.tar_promised, None, top=1.0),
        stranger_gauge=_stranger_gauge(report),
        far_items=report.far_items[:N_LISTED],
        failures=report.failures[:_N_FAILURES],
        pictures={row: base64.b64encode(jpeg).decode() for row, jpeg in report.thumbnails.items()},
        percent=percent,
        span=span,
        digits=digits,
        p_value=p_value,
    )


def percent(rate: float | None) -> str:
    """Write a share in per cent with three significant digits: "-" for none, and never "100%" for less than all."""
    if rate is None:
        return "-"
    text = f"{100 * round(rate, 9) + 0.0:.3g}%"  # an interval's end may miss 0 by rounding; + 0.0 drops a minus sign
    return ">99.9%" if text == "100%" and rate < 1 else text


def span(interval: Interval) -> str:
    """Write an interval of shares, in per cent."""
    return f"{percent(interval.low)} to {percent(interval.high)}"


def digits(interval: Interval) -> str:
    """Write an interval of plain numbers, to three digits."""
    return f"{interval.low:.3g} to {interval.high:.3g}"


def p_value(p: float | None) -> str:
    """Write a p-value to two digits, and never as 0."""
    if p is None:
        return "not testable with so few classes"
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.2g}"


def _plots(report: AuditReport, named: Sequence[GroupRates]) -> dict[str, Markup]:
    threshold, target = report.point.threshold, report.point.choice.target_far
    name = "cosine similarity" if report.point.score_kind == "cosine" else f"{report.point.score_kind} score"
    # Markup: the plots are drawn from numbers alone and hold no text of users.
    return {
        "histograms": Markup(plots.draw_histograms(report.histograms, threshold, name)),
        "far": Markup(plots.draw_far_curves(report.curves, threshold, target, name)),
        "tar": Markup(plots.draw_tar_curves(report.curves, threshold, name)),
        "scatter": Markup(plots.draw_class_scatter(report.classes, named, target)),
    }


def _far(rates: GroupRates) -> float | None:
    return rates.far


def _frr(rates: GroupRates) -> float | None:
    return rates.frr


def _worst(classes: Sequence[GroupRates], rate_of: Callable[[GroupRates], float | None]) -> list[GroupRates]:
    """Return the classes with the highest rates, without those that have no error."""
    return sorted((rates for rates in classes if rate_of(rates)), key=lambda r: (-(rate_of(r) or 0), r.name))[:_N_WORST]


def _group_rows(column: str, comparison: GroupComparison, report: AuditReport) -> dict[str, Any]:
    """Collect the rows of one column, highest FAR first, the scale of their intervals and their differences."""
    rows = sorted(comparison.groups, key=lambda r: (r.small, -(r.far or 0), r.name))
    large = [r for r in rows if not r.small] or rows
    fars = [r.far_interval.high for r in large if r.far is not None]
    frrs = [r.frr_interval.high for r in large if r.frr is not None]
    return {
        "column": column,
        "n": len(rows),
        "rows": rows[:_N_GROUPS],
        "far_top": min(1.0, _HEADROOM * max([report.point.choice.target_far, *fars])),
        "frr_top": min(1.0, _HEADROOM * max([1 - report.tar, *frrs])),
        "touching": comparison.frr_pairs == "touching",
        "differentials": [(name, d) for name, d in (("FAR", comparison.far), ("FRR", comparison.frr)) if d is not None],
        "comparison": comparison,
        "far_tests": _tests(comparison.far),
        "frr_tests": _tests(comparison.frr),
        "across": _highest_across(comparison),
    }


def _tests(differential: RateDifferential | None) -> dict[str, GroupTest]:
    return {test.name: test for test in differential.tests} if differential is not None else {}


def _highest_across(comparison: GroupComparison) -> list[CrossRate]:
    """Return the pairs of large groups whose images are most often confused."""
    pairs = [pair for pair in comparison.across if not {pair.first, pair.second} & set(comparison.left_out)]
    return sorted((pair for pair in pairs if pair.far), key=lambda pair: (-(pair.far or 0), pair.first))[:_N_ACROSS]


def _stranger_gauge(report: AuditReport) -> dict[str, Any] | None:
    if report.strangers is None or report.strangers_promised is None:
        return None
    return _gauge(report.strangers.far, report.strangers_promised, report.point.choice.target_far)


def _gauge(value: float, promised: Interval, target: float | None, top: float | None = None) -> dict[str, Any]:
    """Describe a measured rate on a line from 0 to `top`, with the promised interval behind it."""
    highest = top or _HEADROOM * max(value, promised.high, target or 0)
    return {"value": value, "low": promised.low, "high": promised.high, "mark": target, "top": highest}
