"""Cases measured in turns, shown beside a baseline of the same rounds.

What is measured is up to each script. Other work on the machine slows neighbours in time alike, so ratios are taken
within a round, and the median over the rounds is shown with its extremes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

Values = Mapping[str, float]
Case = Callable[[], Values]
MIN_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Row:
    """Medians of what one case measured; ratio: of its first value to the baseline's, as median, lowest, highest."""

    case: str
    values: dict[str, float]
    ratio: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Group:
    """Cases that took turns, and which of them the others are divided by."""

    title: str
    baseline: str
    rows: tuple[Row, ...]

    def value(self, case: str, name: str) -> float:
        """The median of one value of one case."""
        return next(row.values[name] for row in self.rows if row.case == case)


def in_turns(title: str, cases: Mapping[str, Case], *, n_rounds: int) -> Group:
    """Measure the cases A B A B, `n_rounds` times after one that does not count; the first is the baseline."""
    for case in cases.values():
        case()
    measured: dict[str, list[Values]] = {name: [] for name in cases}
    for _ in range(n_rounds):
        for name, case in cases.items():
            measured[name].append(case())
    baseline = next(iter(cases))
    rows = tuple(_row(name, runs, measured[baseline]) for name, runs in measured.items())
    return Group(title, baseline, rows)


def cpu_of(function: Callable[[], object], *, n_parts: int = 1) -> Case:
    """A case: the CPU time in ms of each of the `n_parts` equal parts of a call.

    Other work on the machine disturbs it less than the clock.
    """

    def measure() -> Values:
        started = time.process_time()
        function()
        return {"cpu_ms": 1000 * (time.process_time() - started) / n_parts}

    return measure


def clock_of(function: Callable[[], object]) -> Case:
    """A case: the milliseconds that a call takes, for what runs on several threads; needs idle cores."""

    def measure() -> Values:
        started = time.perf_counter()
        function()
        return {"clock_ms": 1000 * (time.perf_counter() - started)}

    return measure


def option_parser(question: str) -> argparse.ArgumentParser:
    """The options that every script has; `question` is its docstring."""
    parser = argparse.ArgumentParser(description=question, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=_rounds, default=MIN_ROUNDS, help=f"at least {MIN_ROUNDS} (default)")
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it runs, measures little")
    parser.add_argument("--json", action="store_true", help="one JSON object in place of the table")
    return parser


def show(question: str, options: argparse.Namespace, groups: Sequence[Group], facts: Mapping[str, object]) -> None:
    """Print the groups and some facts about them, as tables or, with --json, as one object."""
    title = question.splitlines()[0]
    if options.json:
        settings = {name: str(value) for name, value in vars(options).items()}
        print(json.dumps({"question": title, "options": settings, "facts": facts, "groups": [*map(asdict, groups)]}))
        return
    print(title)
    print(*(f"  {name}: {value}" for name, value in facts.items()), sep="\n")
    for group in groups:
        names = list(group.rows[0].values)
        print(f"\n{group.title}\n{'':32}" + "".join(f"{name:>12}" for name in names) + f"  {names[0]} / baseline")
        for row in group.rows:
            middle, low, high = row.ratio
            cells = "".join(f"{row.values[name]:12.4g}" for name in names)
            ratio = "baseline" if row.case == group.baseline else f"{middle:.2f} ({low:.2f} to {high:.2f})"
            print(f"{row.case:32}{cells}  {ratio}")


def _row(name: str, runs: Sequence[Values], baseline: Sequence[Values]) -> Row:
    first = next(iter(runs[0]))
    ratios = [run[first] / beside[first] for run, beside in zip(runs, baseline, strict=True)]
    values = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    return Row(name, values, (statistics.median(ratios), min(ratios), max(ratios)))


def _rounds(text: str) -> int:
    if int(text) < MIN_ROUNDS:
        raise argparse.ArgumentTypeError(f"expected at least {MIN_ROUNDS}, found {text}")
    return int(text)
