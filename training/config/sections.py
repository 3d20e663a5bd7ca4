"""The sections of a training configuration, as frozen values with bounds and defaults.

Decides names, types, bounds and defaults. `reading.py` reads them from files; the modules that use them decide their
effect.
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
    """Size of the images. All values become part of the bundle.

    resize: shorter side in pixels; crop: side of the centre square; interpolation: Pillow's filter.
    """

    resize: Count = 256
    crop: Count = 224
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Reading and drawing of images.

    max_unreadable: share of the training or validation images that may be unreadable before the run is rejected.
    cache: "decoded" decodes every image once, into one file per machine with resize x resize x 3 bytes per image;
    "none" decodes an image each time it is drawn. workers: processes that decode and augment; 0 uses threads of the
    training process. sampler: "classes" draws `schedule.images` images of each of `schedule.classes` classes;
    "balanced" draws the same number of images one by one, with replacement, every class with equal probability.
    """

    max_unreadable: Share = 0.01
    cache: Literal["decoded", "none"] = "decoded"
    workers: CountOrZero = 0
    sampler: Literal["classes", "balanced"] = "classes"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters instead of full fine-tuning of the backbone.

    rank: 0 for no adapters; alpha: their scale times the rank; dropout: share of an adapter's inputs that is dropped in
    training; targets: names, or ends of names, of the linear layers and convolutions that get an adapter.

    Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022.
    """

    rank: CountOrZero = 0
    alpha: Amount = 16.0
    dropout: Share = 0.0
    targets: tuple[str, ...] = ("qkv", "proj", "fc1", "fc2")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The network that turns pixels into an embedding.

    backbone: efficientnet-lite0 to 2, torchvision/NAME or timm/NAME; dimension: of the embedding.
    weights: "pretrained", "random", or the path of a file with a state dictionary (.pt, .pth, .safetensors).
    pooling: "native" is the backbone's own; "average" and "gem" pool its last feature map.
    head: "linear"; "mlp", with one hidden layer of size `hidden`; "bnneck", a batch norm without shift, then linear.
    frozen: parameters, or modules ("stem", "blocks.0"), that keep their pretrained values; if these are the first
    layers, their backward pass is skipped. batch_norm: "frozen" keeps the pretrained statistics.
    channels_last: memory layout; on CPUs it makes depthwise convolutions about three times faster.
    gradient_checkpointing: compute activations twice instead of storing them. lora: train adapters, not the backbone.
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
    """Limits on the random changes of training images. Amounts are drawn for each image; 0 switches a change off.

    zoom, stretch: largest log-ratio of size and of aspect; rotate_degrees: largest angle; shift: largest share of the
    side; flip, grey: shares of the images that are mirrored and made grey; mix_colours: standard deviation of the
    colour matrix around the identity; brightness: largest relative change.
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
    """One base loss.

    name: a class of pytorch_metric_learning.losses or of training.losses; options: its arguments; weight: factor of
    its value in the sum. miner: a class of pytorch_metric_learning.miners that selects pairs for the loss;
    miner_options: its arguments.
    """

    name: str = "NormalizedSoftmaxLoss"
    weight: Amount = 1.0
    options: Options = field(default_factory=dict)
    miner: str | None = None
    miner_options: Options = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class MarginConfig:
    """The threshold-consistent margin (TCM).

    score: of a pair: the "cosine", or the "cohort" score that calibration offers, which is lower for images with many
    look-alikes; it needs margins = "quantiles", which are then quantiles of this score. cohort: number of embeddings of
    earlier steps (those that train the head alone included) that serve as its cohort; TCM is off until a quarter of
    them is there. cohort_k: number of the largest similarities to embeddings of other classes whose mean is the density
    of an image; at most a quarter of `cohort`. The gradient does not pass through the density.
    positive_weight, negative_weight: factors of the two parts of the loss; 0 and 0 switch TCM off.
    positive_margin, negative_margin: similarities that positive pairs should exceed and negative pairs stay below.
    margins: "fixed"; "quantiles", which follow running quantiles of the similarities, `positive_quantile` of positive
    and `negative_quantile` of negative pairs, with `momentum` per batch; or "schedule", which move from the model's own
    quantiles at the first step to positive_margin and negative_margin at the last.
    average: over the "active" pairs, as in the paper, or over "all" positive and all negative pairs. balance: every
    pair, or every class, has the same weight. warmup_steps: steps in which the weights rise linearly from 0.
    memory: number of embeddings of earlier steps (those that train the head alone included) that are paired with the
    batch: at least one batch, or 0 for none. chunk: rows compared at a time; if a process has more rows, it does not
    store the active pairs for the gradient, and compares rows with many active pairs twice.
    """

    score: Literal["cosine", "cohort"] = "cosine"
    cohort: Count = 2048
    cohort_k: Count = 10
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
    """Length and learning rates of training. A run ends after a number of steps, not seconds, so it can be repeated.

    classes: classes of one batch, over all processes; images: images per class. head_steps: steps that come first and
    train the head alone, on features of the unchanged backbone, at full learning rates and with TCM as in the first
    step. warmup_steps: steps in which the learning rates rise linearly. Then they follow `decay`: a "cosine" to 0, or
    "step", a multiplication by `step_factor` at each share of the run in `step_at`, in any order. learning_rate: peak
    for the backbone; head_learning_rate: for the head; loss_learning_rate: for the parameters of base losses that have
    some (class proxies). layer_decay: factor of the learning rate from each block of the backbone to the previous one.
    weight_decay: of matrices and kernels, decoupled from the gradient (AdamW); vectors (biases, norms), positions,
    class tokens and parameters of losses are not decayed.
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
    """Computing, evaluating and saving of steps.

    precision: of the forward pass; losses are float32. chunk_images: images per process that are embedded at a time;
    a batch is then embedded twice, which gives its exact gradient in less memory; 0 embeds all at once. accumulate:
    batches whose gradients are averaged for one step. clip_norm: largest norm of the gradient, 0 for no limit.
    ema_decay: decay of the running mean of the weights, which is then evaluated and exported; 0 for no mean.
    evaluate_every: steps between evaluations on the validation classes, 0 for one evaluation at the end; the best
    weights by `stop_on` are kept. patience: evaluations without improvement after which the run ends, 0 for no limit.
    checkpoint_every: steps between checkpoints.
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
