"""When a run has learnt what it will: the evaluations while it trains, the best one, and how long ago it was."""

import json
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from retrieval.errors import NotEnoughEvidence
from training.config import LoopConfig
from training.evaluation import Evaluation

_LOWER_IS_BETTER = frozenset({"opis"})


@dataclass(slots=True, kw_only=True)
class Stopping:
    """The best evaluation so far, the weights that gave it, and the evaluations since that were no better.

    The main process keeps the weights; the others are told only whether the run is `over`.
    """

    step: int = 0
    evaluation: Evaluation | None = None
    weights: dict[str, Tensor] | None = None
    n_since: int = 0
    over: bool = False

    def consider(self, step: int, evaluation: Evaluation, embedder: nn.Module, config: LoopConfig) -> None:
        """Keep the weights if they are the best after `step` steps; else, out of patience, end the run.

        Raises NotEnoughEvidence where the evaluation lacks the metric that decides.
        """
        if _is_better(evaluation, self.evaluation, config.stop_on):
            self.step, self.evaluation, self.n_since = step, evaluation, 0
            self.weights = {key: value.detach().cpu().clone() for key, value in embedder.state_dict().items()}
        else:
            self.n_since += 1
        self.over = 0 < config.patience <= self.n_since

    def state_dict(self) -> dict[str, Any]:
        """All of it, in types that a checkpoint may hold."""
        return {
            "step": self.step,
            "evaluation": None if self.evaluation is None else json.dumps(self.evaluation.to_json()),
            "weights": self.weights,
            "n_since": self.n_since,
            "over": self.over,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Become what `state_dict` was taken of."""
        found = state["evaluation"]
        self.step, self.n_since, self.over = state["step"], state["n_since"], state["over"]
        self.evaluation = None if found is None else Evaluation.from_json(json.loads(found))
        self.weights = state["weights"]


def _is_better(evaluation: Evaluation, best: Evaluation | None, metric: str) -> bool:
    new = _value(evaluation, metric)
    if best is None:
        return True
    old = _value(best, metric)
    return new < old if metric in _LOWER_IS_BETTER else new > old


def _value(evaluation: Evaluation, metric: str) -> float:
    value = getattr(evaluation, metric)
    if value is None:
        raise NotEnoughEvidence(f"loop.stop_on: {metric} cannot be measured on the validation images: choose another")
    return float(value)
