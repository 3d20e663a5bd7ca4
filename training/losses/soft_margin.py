"""A loss of pytorch-metric-learning that remembers earlier steps, made fit for more than one step and for resuming."""

from __future__ import annotations

from pytorch_metric_learning import losses as library_losses
from torch import Tensor


class DynamicSoftMarginLoss(library_losses.DynamicSoftMarginLoss):  # type: ignore[misc]  # the library is untyped
    """Triplets weighted by how many so far were easier: the library's loss with a histogram that lasts.

    The library (2.9) lets gradients through the histogram of earlier steps, so that the second step fails, and leaves
    it out of `state_dict`. The weights are constants of a step here, as in the source.

    Source: Zhang and Rusinkiewicz, "Learning Local Descriptors With a CDF-Based Dynamic Soft Margin", ICCV 2019,
    section 3.3.
    """

    def __init__(self, min_val: float = -2.0, num_bins: int = 10, momentum: float = 0.01) -> None:
        super().__init__(min_val=min_val, num_bins=num_bins, momentum=momentum)
        histogram = self.hist_
        del self.hist_
        self.register_buffer("hist_", histogram)

    def update_histogram(self, data: Tensor) -> None:
        """Move the histogram on by the values of a step, [triplets]."""
        super().update_histogram(data.detach())
