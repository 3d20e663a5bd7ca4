"""Which values of a configuration cannot go together, each in its own bounds."""

from collections.abc import Iterable

from training.config.sections import InputConfig, LoopConfig, LossConfig, MarginConfig, ModelConfig, TrainingConfig


def contradictions(config: TrainingConfig) -> Iterable[str]:
    """What is wrong and what to do, a sentence each; nothing where all of it goes together."""
    yield from _of_input(config.input)
    yield from _of_model(config.model)
    yield from _of_loss(config.loss)
    yield from _of_loop(config.loop)


def _of_input(config: InputConfig) -> Iterable[str]:
    if config.crop > config.resize:
        yield f"input.crop is at most input.resize, found {config.crop} and {config.resize}"


def _of_model(config: ModelConfig) -> Iterable[str]:
    if not config.lora.rank:
        return
    if config.frozen:
        yield "model.frozen has no effect with model.lora, whose adapters alone learn: leave one of them out"
    if config.batch_norm == "trained":
        yield 'model.batch_norm = "trained" has no effect with model.lora, whose adapters alone learn: leave it out'


def _of_loss(config: LossConfig) -> Iterable[str]:
    tcm = config.tcm
    if not any(base.weight for base in config.base) and not tcm.positive_weight and not tcm.negative_weight:
        yield (
            "loss: nothing is left to minimise, every weight of loss.base, loss.tcm.positive_weight and "
            "loss.tcm.negative_weight is 0: raise one of them"
        )
    if _margins_meet(tcm):
        yield (
            f"loss.tcm.positive_margin lies above loss.tcm.negative_margin, found {tcm.positive_margin} and "
            f"{tcm.negative_margin}: positive pairs are to be more similar than negative ones"
        )


def _margins_meet(tcm: MarginConfig) -> bool:
    """Quantiles are where the model has its pairs, in any order at first."""
    is_used = tcm.positive_weight > 0 and tcm.negative_weight > 0 and tcm.margins != "quantiles"
    return is_used and tcm.positive_margin <= tcm.negative_margin


def _of_loop(config: LoopConfig) -> Iterable[str]:
    if config.patience and not config.evaluate_every:
        yield f"loop.patience needs loop.evaluate_every, found {config.patience} and 0"
