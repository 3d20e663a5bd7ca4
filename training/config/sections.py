"""What a training run can be told: the sections of its configuration, as frozen values with bounds and defaults.

Decides names, types, bounds and defaults; leaves reading to `reading.py`, what they do to the modules that take them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Similarity = Annotated[float, Field(ge=-1, le=1)]
Options = Mapping[str, float | int | str | bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class InputConfig:
    """Pixels. resize: their shorter side; crop: side of the centre square; interpolation: Pillow's filter.

    They go into the bundle.
    """

    resize: Count = 256
    crop: Count = 224
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """How images are read and drawn.

    max_unreadable: share of the images, to train or to validate on, that may be unreadable before the run is refused.
    cache: "decoded" decodes every image once, into a file of resize x resize x 3 bytes each for all processes of a
    machine; "none" decodes each time it is drawn. workers: processes that decode and augment, 0 for threads of this
    one. sampler: "classes" draws `schedule.images` of each of `schedule.classes` classes; "balanced" draws as many
    images one by one, with repetition, every class as often as any other.
    """

    max_unreadable: Share = 0.01
    cache: Literal["decoded", "none"] = "decoded"
    workers: CountOrZero = 0
    sampler: Literal["classes", "balanced"] = "classes"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters in place of full fine-tuning of the backbone.

    rank: 0 for none; alpha: their scale times rank; dropout: share of an adapter's inputs dropped in training;
    targets: names, or endings of names, of the linear layers and convolutions that get one.

    Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022.
    """

    rank: CountOrZero = 0
    alpha: Amount = 16.0
    dropout: Share = 0.0
    targets: tuple[str, ...] = ("qkv", "proj", "fc1", "fc2")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """backbone: efficientnet-lite0 to 2, torchvision/NAME or timm/NAME; dimension: of the embedding.

    weights: "pretrained", "random", or the path of a file with a state dictionary (.pt, .pth, .safetensors).
    pooling: "native" keeps the backbone's own; "average" and "gem" pool its last map of features.
    head: "linear"; "mlp", with one hidden layer of `hidden`; "bnneck", linear behind a batch norm without shift.
    frozen: names of parameters, or of modules that hold them ("stem", "blocks.0"), that keep their pretrained values;
    leading ones also save the time of their backward pass. batch_norm: "frozen" keeps the pretrained statistics.
    channels_last: layout of pixels and convolutions; on CPUs depthwise convolutions are about three times faster in it.
    gradient_checkpointing: compute activations twice rather than keep them. lora: train adapters, not the backbone.
    """

    backbone: str = "efficientnet-lite0"
    weights: str = "pretrained"
    pooling: Literal["native", "average", "gem"] = "native"
    head: Literal["linear", "mlp", "bnneck"] = "linear"
    hidden: Count = 1024
    dimension: Count = 128
    frozen: tuple[str, ...] = ()
    lora: LoraConfig = LoraConfig()
    batch_norm: Literal["frozen", "trained"] = "frozen"
    channels_last: bool = True
    gradient_checkpointing: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentationConfig:
    """How far a training image may be changed; every amount is drawn anew per image, 0 switches it off.

    zoom, stretch: largest log-ratio of size and of aspect; rotate_degrees; shift: share of the side; flip, grey: shares
    of the images mirrored and made grey; mix_colours: standard deviation by which the colour matrix leaves identity;
    brightness: largest relative change.
    """

    zoom: Amount = 0.2
    stretch: Amount = 0.1
    rotate_degrees: Amount = 10.0
    shift: Share = 0.06
    flip: Share = 0.5
    grey: Share = 0.1
    mix_colours: Amount = 0.05
    brightness: Share = 0.15


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseLossConfig:
    """name: a class of pytorch_metric_learning.losses or of training.losses; options: its arguments.

    weight: of its value in the sum. miner: a class of pytorch_metric_learning.miners that chooses pairs for it;
    miner_options: its arguments.
    """

    name: str = "NormalizedSoftmaxLoss"
    weight: Amount = 1.0
    options: Options = field(default_factory=dict)
    miner: str | None = None
    miner_options: Options = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class MarginConfig:
    """The threshold-consistent margin (TCM). positive_weight, negative_weight: 0 and 0 switch it off.

    margins: "fixed"; "quantiles", which follow the running `positive_quantile` of positive and `negative_quantile` of
    negative similarities (those above it are the hard ones), with `momentum` per batch; or "schedule", which lead from
    the model's own quantiles at the first step to positive_margin and negative_margin at the last.
    average: over "active" pairs, as in the paper, or over "all" pairs of a side. balance: every pair, or every class,
    counts alike. warmup_steps: in which the weights rise linearly from 0. memory: embeddings of earlier steps, those of
    the head included, that are paired with the batch's: a batch or more, 0 for none. chunk: of more rows than this,
    compared so many at a time, no pair is kept for the gradient; where many are active, they are compared again.
    """

    positive_weight: Amount = 1.0
    negative_weight: Amount = 1.0
    positive_margin: Similarity = 0.9
    negative_margin: Similarity = 0.5
    margins: Literal["fixed", "quantiles", "schedule"] = "fixed"
    positive_quantile: Share = 0.5
    negative_quantile: Share = 0.99
    momentum: Share = 0.99
    average: Literal["active", "all"] = "active"
    balance: Literal["pairs", "classes"] = "pairs"
    warmup_steps: CountOrZero = 0
    memory: CountOrZero = 0
    chunk: Count = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class LossConfig:
    """The sum of the losses in `base` and of `tcm`."""

    base: tuple[BaseLossConfig, ...] = (BaseLossConfig(options={"temperature": 0.07}),)
    tcm: MarginConfig = MarginConfig()


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleConfig:
    """How long and how fast. Steps, not seconds, end a run, so that it can be repeated.

    classes, images: of one batch, over all processes, and images per class. head_steps: taken first, by the head alone,
    on the features of the unchanged backbone, at full learning rates and with TCM as it is at the first step.
    warmup_steps: in which the learning rates rise linearly, before they follow `decay`: down a "cosine" to 0, or times
    `step_factor` at each of the shares of the run in `step_at`, in any order. learning_rate: at its peak, of the
    backbone; head_learning_rate: of the head; loss_learning_rate: of the parameters that some base losses own (class
    proxies). layer_decay: factor of the learning rate from each block of the backbone to the one before it.
    weight_decay: of matrices and kernels, decoupled from the gradient (AdamW); vectors (biases, norms), positions,
    class tokens and what losses own are not decayed.
    """

    steps: Count = 2000
    head_steps: CountOrZero = 300
    classes: Annotated[int, Field(ge=2)] = 32
    images: Annotated[int, Field(ge=2)] = 4
    warmup_steps: CountOrZero = 100
    decay: Literal["cosine", "step", "constant"] = "cosine"
    step_at: tuple[Share, ...] = (0.5, 0.75)
    step_factor: Share = 0.1
    learning_rate: Amount = 1e-3
    head_learning_rate: Amount = 5e-3
    loss_learning_rate: Amount = 2e-2
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    weight_decay: Amount = 1e-2


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopConfig:
    """How steps are computed, watched and kept.

    precision: of the forward pass; losses are float32. chunk_images: a batch is embedded so many images at a time and
    process, twice, for the exact gradient of the whole batch in the memory of a part; 0 for all at once. accumulate:
    batches whose gradients are averaged before a step. clip_norm: largest norm of the gradient, 0 for any.
    ema_decay: of the running mean of the weights that is evaluated and exported, 0 for the weights themselves.
    evaluate_every: steps between evaluations on the validation classes, 0 for one at the end; patience: of them without
    a better `stop_on` that end the run, 0 for none; the best weights are kept. checkpoint_every: steps.
    """

    precision: Literal["no", "bf16", "fp16"] = "no"
    chunk_images: CountOrZero = 0
    accumulate: Count = 1
    clip_norm: Amount = 0.0
    ema_decay: Share = 0.0
    evaluate_every: CountOrZero = 0
    stop_on: Literal["r_at_1", "map_at_r", "tar", "opis"] = "r_at_1"
    patience: CountOrZero = 0
    checkpoint_every: Count = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """One training run."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    seed: Annotated[int, Field(ge=0)] = 0
    input: InputConfig = InputConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    loss: LossConfig = LossConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    loop: LoopConfig = LoopConfig()
