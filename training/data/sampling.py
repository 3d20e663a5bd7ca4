"""Draws the images of each batch: a number of images of a number of classes, or all classes with equal probability.

A batch is a function of seed and step alone, so that a resumed run draws the same batches as an uninterrupted one.
"""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_metric_learning.samplers import MPerClassSampler
from pytorch_metric_learning.utils import common_functions
from torch.utils.data import WeightedRandomSampler

from training.config import ScheduleConfig


def batch_size(schedule: ScheduleConfig, n_classes: int) -> int:
    """Return the number of images in a batch, over all processes, if there are `n_classes` classes to draw from."""
    return schedule.images * min(schedule.classes, n_classes)


class StepSampler:
    """Draws the rows of any step with the samplers of pytorch-metric-learning ("classes") and torch ("balanced").

    labels: [n] int64, every class from 0 on at least once. `stream` separates the draws for different purposes. Use in
    one thread at a time: pytorch-metric-learning has one global source of random numbers.
    """

    def __init__(
        self,
        labels: NDArray[np.int64],
        schedule: ScheduleConfig,
        kind: Literal["classes", "balanced"],
        *,
        seed: int,
        stream: int = 0,
    ) -> None:
        counts = np.bincount(labels)
        self._seed = seed
        self._stream = stream
        self.batch_size = batch_size(schedule, len(counts))
        self._sampler: MPerClassSampler | WeightedRandomSampler
        if kind == "classes":
            self._sampler = MPerClassSampler(
                labels, schedule.images, batch_size=self.batch_size, length_before_new_iter=self.batch_size
            )
        else:
            self._sampler = WeightedRandomSampler(
                (1 / counts[labels]).tolist(), self.batch_size, generator=torch.Generator()
            )
        self._classes = list(range(len(counts)))

    def rows(self, step: int) -> NDArray[np.int64]:
        """Draw the rows of the batch of `step`, [batch_size] int64.

        "classes": `schedule.images` images of each of `schedule.classes` classes (of all classes, if there are fewer),
        class after class; images of a class with too few images are repeated.
        """
        seeds = np.random.SeedSequence((self._seed, step, self._stream))
        if isinstance(self._sampler, WeightedRandomSampler):
            self._sampler.generator.manual_seed(int(seeds.generate_state(1, np.uint64)[0] >> np.uint64(1)))
            return np.fromiter(self._sampler, dtype=np.int64, count=self.batch_size)
        # The sampler shuffles its list of classes in place and draws from the library's global NUMPY_RANDOM. Both are
        # reset, so that the batch depends on the step alone.
        self._sampler.labels = self._classes.copy()
        others = common_functions.NUMPY_RANDOM
        common_functions.NUMPY_RANDOM = np.random.default_rng(seeds)
        try:
            return np.fromiter(self._sampler, dtype=np.int64, count=self.batch_size)
        finally:
            common_functions.NUMPY_RANDOM = others
