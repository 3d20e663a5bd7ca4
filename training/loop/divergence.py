"""What each step came to, and the end of a run whose loss or gradient is no longer a number.

Asking a GPU for a value makes it wait for the asker, so that it is asked every few steps, and always before anything is
written or evaluated; a CPU is asked before each step is taken.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from retrieval.errors import TrainingDiverged
from training.loop.processes import Processes
from training.loop.runs import write_batch

_STEPS_AT_ONCE = 10
# A gradient scaler that halves its scale so often has gone from 65,536 down to what no gradient needs.
_MOST_OVERFLOWS = 40  # 2**-24, in a row
_N_NAMED = 5  # items in the message; the file has all


@dataclass(frozen=True, slots=True, kw_only=True)
class StepValues:
    """Means over the batches of a step and over the processes.

    margin: TCM with its weights, warm-up included, so that loss is base + margin; active_positives, active_negatives:
    shares of the pairs on the wrong side of the positive_margin and negative_margin of the step; gradient_norm: over
    all parameters, before clipping.
    """

    loss: float
    base: float
    margin: float
    active_positives: float
    active_negatives: float
    positive_margin: float
    negative_margin: float
    gradient_norm: float


_FIELDS = tuple(f.name for f in fields(StepValues))
_LOSSES = [_FIELDS.index(name) for name in ("loss", "base", "margin")]
_GRADIENT = _FIELDS.index("gradient_norm")


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenStep:
    """step: from 1; learning_rates: the highest of each part; ids: of this process's items."""

    step: int
    learning_rates: Mapping[str, float]
    ids: Sequence[str]


class Guard:
    """Looks at the values of all processes at once, so that all of them stop at the same step."""

    def __init__(self, processes: Processes, run: Path, *, gradient_may_overflow: bool) -> None:
        self._processes = processes
        self._run = run
        # A gradient scaler looks for the largest scale without overflow by overflowing, and skips such a step.
        self._most_overflows = _MOST_OVERFLOWS if gradient_may_overflow else 0
        self._n_overflows = 0  # in a row
        self._at_once = 1 if processes.device.type == "cpu" else _STEPS_AT_ONCE
        self._pending: list[tuple[TakenStep, Tensor]] = []

    def check(self, taken: TakenStep, values: Tensor, *, now: bool) -> list[tuple[TakenStep, StepValues]]:
        """What is known of the steps since the last answer; nothing if it is not yet time to ask, unless `now`.

        values: [8] float32, in the order of StepValues. Raises TrainingDiverged where one is NaN or infinite.
        """
        self._pending.append((taken, values))
        if len(self._pending) < self._at_once and not now:
            return []
        pending, self._pending = self._pending, []
        own = torch.stack([values for _, values in pending])
        table = self._processes.gather(own[None]).cpu()
        known = []
        for row, (step, _) in enumerate(pending):
            found = StepValues(**dict(zip(_FIELDS, table[:, row].mean(dim=0).tolist(), strict=True)))
            is_finite = table[:, row, _LOSSES].isfinite().all(dim=1)
            overflows = table[:, row, _GRADIENT].isfinite().logical_not()
            self._n_overflows = self._n_overflows + 1 if overflows.any() else 0
            if self._n_overflows > self._most_overflows:
                is_finite &= ~overflows
            if not is_finite.all():
                self._stop(step, found, own_fault=not bool(is_finite[self._processes.rank]))
            known.append((step, found))
        return known

    def _stop(self, step: TakenStep, found: StepValues, *, own_fault: bool) -> None:
        ids = self._processes.collect(step.ids if own_fault else ())
        path = self._processes.on_main(lambda: write_batch(self._run, step.step, ids))
        parts = ", ".join(f"{name} {value:g}" for name, value in asdict(found).items())
        rates = ", ".join(f"{name} {rate:g}" for name, rate in step.learning_rates.items())
        more = f" and {len(ids) - _N_NAMED} more" if len(ids) > _N_NAMED else ""
        what = "gradient" if math.isfinite(found.loss + found.base + found.margin) else "loss"
        raise TrainingDiverged(
            f"the {what} of step {step.step} is not finite ({parts}) at the learning rates {rates}. Its items are "
            f"{', '.join(ids[:_N_NAMED])}{more}, listed in {path}: look at them; then try, in a new folder, lower "
            "learning rates, a longer schedule.warmup_steps, loop.clip_norm = 1, or loop.precision bf16 in place of "
            f"fp16. The last checkpoint in {self._run} is kept"
        )
