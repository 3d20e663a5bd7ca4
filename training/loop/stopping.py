"""Early stopping: the best evaluation of a run so far, and how many evaluations ago it was."""

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
    """The best evaluation so far, its weights, and the number of evaluations since then.

    The main process keeps the weights; the others know only whether the run is `over`.
    """

    step: int = 0
    evaluation: Evaluation | None = None
    weights: dict[str, Tensor] | None = None
    n_since: int = 0
    over: bool = False

    def consider(self, step: int, evaluation: Evaluation, embedder: nn.Module, config: LoopConfig) -> None:
        """Keep the weights after `step` steps if they are the best; otherwise end the run if patience is exhausted.

        Raises NotEnoughEvidence if the evaluation lacks the metric `config.stop_on`.
        """
        if _is_better(evaluation, self.evaluation, config.stop_on):
            self.step, self.evaluation, self.n_since = step, evaluation, 0
            self.weights = {key: value.detach().cpu().clone() for key, value in embedder.state_dict().items()}
        else:
            self.n_since += 1
        self.over = 0 < config.patience <= self.n_since

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state, in types that a checkpoint may hold."""
        return {
            "step": self.step,
            "evaluation": None if self.evaluation is None else json.dumps(self.evaluation.to_json()),
            "weights": self.weights,
            "n_since": self.n_since,
            "over": self.over,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved state."""
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
