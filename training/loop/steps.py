"""One optimisation step: the gradient of one or several batches, then the update of the weights.

A batch that does not fit into memory is embedded in chunks, twice: first without a graph, to compute the loss of the
whole batch and its gradient at each embedding; then chunk by chunk with a graph, through which that gradient is
propagated. The sum over the chunks is exactly the gradient of the whole batch.

Source: Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", RepL4NLP 2021, section
3.2; Brown et al., "Smooth-AP: Smoothing the Path Towards Large-Scale Image Retrieval", ECCV 2020.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from retrieval.errors import InvalidSettings
from training.config import TrainingConfig
from training.data import Batch
from training.loop.processes import Processes
from training.loop.schedule import set_learning_rates
from training.loop.state import TrainingState
from training.loop.values import StepValues, mean_by_name
from training.losses import StepLoss


class Stepper:
    """Takes optimisation steps on a state: embedder, loss and optimiser."""

    def __init__(self, state: TrainingState, processes: Processes, config: TrainingConfig) -> None:
        self._state = state
        self._processes = processes
        self._config = config
        state.embedder.train()
        self._model = processes.wrap(state.embedder)
        self._optimizer = processes.accelerator.prepare_optimizer(state.optimizer)
        self._parameters = [p for group in state.optimizer.param_groups for p in group["params"]]

    def measure(self, batches: Sequence[Batch]) -> StepValues[Tensor]:
        """Set the gradients to those of the mean loss over the batches; return the values, [] float32 on the device."""
        self._optimizer.zero_grad()
        parts = [self._differentiate(batch, batches) for batch in batches]
        self._processes.average_gradients(self._state.loss)
        self._processes.accelerator.unscale_gradients(self._optimizer)
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        return StepValues(**mean_by_name(parts), gradient_norm=nn.utils.get_total_norm(gradients))

    def descend(self, gradient_norm: Tensor) -> None:
        """Clip the gradients and update the weights, at the learning rates of the state's step."""
        if limit := self._config.loop.clip_norm:
            nn.utils.clip_grads_with_norm_(self._parameters, limit, gradient_norm)
        self._optimizer.step()
        if self._state.average is not None:
            self._state.average.update_parameters(self._state.embedder)

    def set_learning_rates(self) -> dict[str, float]:
        """Set the learning rates for the state's step; return the highest of each part."""
        return set_learning_rates(self._state.optimizer, self._state.step, self._config.schedule)

    def _differentiate(self, batch: Batch, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """Add the gradients of the batch's part of the loss; return its values."""
        device, chunk = self._processes.device, self._config.loop.chunk_images or len(batch.labels)
        pixels, labels = batch.pixels.to(device, non_blocking=True), batch.labels.to(device, non_blocking=True)
        chunks = list(torch.split(pixels, chunk))
        is_last_batch = batch is batches[-1]
        if len(chunks) == 1:
            with self._processes.without_sync(self._model, when=not is_last_batch):
                embeddings = self._embed(chunks[0], batch.step, 0)
                step_loss = self._backward(embeddings, labels, len(batches))
            return _values(step_loss)
        with torch.no_grad():
            whole = torch.cat([self._embed(part, batch.step, row) for row, part in enumerate(chunks)])
        step_loss = self._backward(whole.requires_grad_(), labels, len(batches))
        assert whole.grad is not None
        for row, (part, gradient) in enumerate(zip(chunks, torch.split(whole.grad, chunk), strict=True)):
            is_last = is_last_batch and row + 1 == len(chunks)
            with self._processes.without_sync(self._model, when=not is_last):
                self._embed(part, batch.step, row).backward(gradient)  # type: ignore[no-untyped-call]
        return _values(step_loss)

    def _embed(self, pixels: Tensor, number: int, chunk: int) -> Tensor:
        """Embed pixels, to float32. The seed depends on the chunk, so that dropout is the same in both passes."""
        seed = np.random.default_rng((self._config.seed, number, self._processes.rank, chunk)).integers(2**63)
        torch.manual_seed(int(seed))
        with self._processes.accelerator.autocast():
            embeddings: Tensor = self._model(pixels)
        return embeddings.float()

    def _backward(self, embeddings: Tensor, labels: Tensor, n_batches: int) -> StepLoss:
        step_loss: StepLoss = self._state.loss(embeddings, labels, step=self._state.step)
        self._processes.accelerator.backward(step_loss.total / n_batches)
        return step_loss


def prepare_batch_norms(embedder: nn.Module, processes: Processes, *, chunk_images: int) -> None:
    """Let trained batch norms see the whole batch. Raises InvalidSettings if they cannot."""
    norms = [m for m in embedder.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    if not norms:
        return
    if chunk_images:
        raise InvalidSettings(
            f"loop.chunk_images: {len(norms)} batch norms are trained and would see chunks, not the batch: set it "
            "to 0, or freeze them (model.batch_norm, model.head)"
        )
    if processes.world > 1 and processes.device.type == "cpu":
        raise InvalidSettings(
            f"{len(norms)} batch norms are trained, which several processes on CPUs cannot do together: use one "
            "process, or freeze them (model.batch_norm, model.head)"
        )
    if processes.world > 1:
        nn.SyncBatchNorm.convert_sync_batchnorm(embedder)  # type: ignore[no-untyped-call]


def _values(step_loss: StepLoss) -> dict[str, Tensor]:
    """Name the values of a batch as StepValues does, without their graph."""
    margin = step_loss.margin
    return {
        "loss": step_loss.total.detach(),
        "base": step_loss.base,
        "margin": margin.value.detach(),
        "active_positives": margin.active_positives,
        "active_negatives": margin.active_negatives,
        "positive_margin": step_loss.positive_margin,
        "negative_margin": step_loss.negative_margin,
    }
