"""Ends a run whose loss or gradient is no longer finite.

Reading a value makes a GPU wait, so values are read every few steps, and always before anything is written or
evaluated. On a CPU they are read before each step.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from retrieval.errors import TrainingDiverged
from training.loop.processes import Processes
from training.loop.runs import write_batch
from training.loop.values import StepValues, mean_over_processes, read_values

_STEPS_AT_ONCE = 10
# A gradient scaler starts at 65,536 and halves its scale at each overflow. After 40 in a row the scale is 2**-24,
# smaller than any gradient needs.
_MOST_OVERFLOWS = 40
_N_NAMED = 5  # items in the message; the file has all


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenStep:
    """A step. step: from 1; learning_rates: the highest of each part; ids: of the items of this process."""

    step: int
    learning_rates: Mapping[str, float]
    ids: Sequence[str]


class Guard:
    """Checks the values of all processes together, so that all of them stop at the same step."""

    def __init__(self, processes: Processes, run: Path, *, gradient_may_overflow: bool) -> None:
        self._processes = processes
        self._run = run
        # A gradient scaler finds the largest scale without overflow by trying, and skips a step that overflows.
        self._most_overflows = _MOST_OVERFLOWS if gradient_may_overflow else 0
        self._n_overflows = 0  # in a row
        self._at_once = 1 if processes.device.type == "cpu" else _STEPS_AT_ONCE
        self._pending: list[tuple[TakenStep, StepValues[Tensor]]] = []

    def check(
        self, taken: TakenStep, values: StepValues[Tensor], *, now: bool
    ) -> list[tuple[TakenStep, StepValues[float]]]:
        """Return the steps whose values have become known; none if it is not yet time to read them, unless `now`.

        values: of the step, scalars on the device. Raises TrainingDiverged if one is NaN or infinite.
        """
        self._pending.append((taken, values))
        if len(self._pending) < self._at_once and not now:
            return []
        pending, self._pending = self._pending, []
        table = read_values([own for _, own in pending], self._processes)
        finite_losses = table.loss.isfinite() & table.base.isfinite() & table.margin.isfinite()
        finite_gradients = table.gradient_norm.isfinite()
        known = []
        for row, ((step, _), found) in enumerate(zip(pending, mean_over_processes(table), strict=True)):
            is_finite = finite_losses[:, row]
            self._n_overflows = 0 if finite_gradients[:, row].all() else self._n_overflows + 1
            if self._n_overflows > self._most_overflows:
                is_finite = is_finite & finite_gradients[:, row]
            if not is_finite.all():
                self._stop(step, found, own_fault=not bool(is_finite[self._processes.rank]))
            known.append((step, found))
        return known

    def _stop(self, step: TakenStep, found: StepValues[float], *, own_fault: bool) -> None:
        ids = self._processes.collect(step.ids if own_fault else ())
        path = self._processes.on_main(lambda: write_batch(self._run, step.step, ids))
        parts = ", ".join(f"{name} {value:g}" for name, value in asdict(found).items())
        rates = ", ".join(f"{name} {rate:g}" for name, rate in step.learning_rates.items())
        more = f" and {len(ids) - _N_NAMED} more" if len(ids) > _N_NAMED else ""
        what = "gradient" if math.isfinite(found.loss + found.base + found.margin) else "loss"
        raise TrainingDiverged(
            f"the {what} of step {step.step} is not finite ({parts}) at the learning rates {rates}. Its items are "
            f"{', '.join(ids[:_N_NAMED])}{more}, listed in {path}: look at them; then try, in a new folder, lower "
            "learning rates, a longer schedule.warmup_steps, loop.clip_norm = 1, or loop.precision bf16 instead of "
            f"fp16. The last checkpoint in {self._run} is kept"
        )
