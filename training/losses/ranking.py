"""Base losses that approximate a ranking metric: every row of the batch is a query against all others.

Sigmoids instead of step functions make ranks differentiable. Both losses accept classes of any size in any order.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from retrieval.errors import InvalidSettings

# Comparisons of two similarities in memory; more are computed in parts, and again in the backward pass.
_COMPARISONS = 2**24


class SmoothAPLoss(nn.Module):
    """1 - the mean over all rows of a smooth average precision, in which a row is its own first match.

    The class of this name in pytorch-metric-learning (2.9) confuses the number of images per class with the number of
    classes. It gives the same value only if these are equal and the rows of a class are adjacent; otherwise it uses
    wrong rows as positives, or rejects the batch. Its memory grows with the cube of the batch; here memory grows with
    rows times positive pairs, up to a limit.

    temperature: of the sigmoid that stands for "is ranked before".

    Source: Brown et al., "Smooth-AP: Smoothing the Path Towards Large-Scale Image Retrieval", ECCV 2020.
    """

    def __init__(self, temperature: float = 0.01) -> None:
        super().__init__()
        _check_positive("SmoothAPLoss", temperature=temperature)
        self.temperature = temperature

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss, [], of embeddings [n, d] floating, normalised here, and labels [n]; 0 without rows."""
        similarities = _similarities(embeddings)
        same = labels[:, None] == labels
        query, item = same.nonzero(as_tuple=True)

        def precision(rows: Tensor, query: Tensor, item: Tensor) -> Tensor:
            before = _comes_before(rows, query, item, self.temperature)
            return (1 + (before * same[query]).sum(1)) / (1 + before.sum(1))

        precisions = _in_parts(precision, similarities, query, item)
        return (1 - _sums(precisions, query, len(labels)) / same.sum(1)).sum() / max(len(labels), 1)


class RecallAtKSurrogateLoss(nn.Module):
    """1 - recall at k, made smooth, averaged over queries and over several k.

    Recall at k of a query is the number of its positives among the first k, over min(k, its positives), as in the
    published code of the source. A row is not part of its own ranking. Rows without a positive are not queries.

    k: values separated by commas or spaces. rank_temperature: of the sigmoid that stands for "is ranked before";
    cut_temperature: of the one that stands for "has a rank of at most k".

    Source: Patel et al., "Recall@k Surrogate Loss with Large Batches and Similarity Mixup", CVPR 2022, without
    the mixup.
    """

    def __init__(self, k: str = "1,2,4,8,16", rank_temperature: float = 0.01, cut_temperature: float = 1.0) -> None:
        super().__init__()
        _check_positive("RecallAtKSurrogateLoss", rank_temperature=rank_temperature, cut_temperature=cut_temperature)
        self.k = _parse_ks(k)
        self.rank_temperature = rank_temperature
        self.cut_temperature = cut_temperature

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss, [], of embeddings [n, d] floating, normalised here, and labels [n]; 0 without positives."""
        similarities = _similarities(embeddings)
        same = labels[:, None] == labels
        same.fill_diagonal_(False)
        query, item = same.nonzero(as_tuple=True)

        def rank(rows: Tensor, query: Tensor, item: Tensor) -> Tensor:
            before = _comes_before(rows, query, item, self.rank_temperature)
            return 1 + before.sum(1) - before.gather(1, query[:, None])[:, 0]

        ranks = _in_parts(rank, similarities, query, item)
        n_positives = same.sum(1)
        k = similarities.new_tensor(self.k)
        inside = torch.sigmoid((k - ranks[:, None]) / self.cut_temperature)
        found = torch.minimum(_sums(inside, query, len(labels)), k)
        recalls = found / torch.minimum(n_positives[:, None], k).clamp(min=1)
        queries = n_positives > 0
        return ((1 - recalls.mean(1)) * queries).sum() / queries.sum().clamp(min=1)


def _similarities(embeddings: Tensor) -> Tensor:
    rows = functional.normalize(embeddings, dim=1)
    return rows @ rows.T


def _comes_before(similarities: Tensor, query: Tensor, item: Tensor, temperature: float) -> Tensor:
    """Return [pairs, n]: how much each row is ranked before `item` for `query`; 0 for the item itself."""
    rows = similarities[query]
    before = torch.sigmoid((rows - rows.gather(1, item[:, None])) / temperature)
    return before.scatter(1, item[:, None], 0)


def _in_parts(
    function: Callable[[Tensor, Tensor, Tensor], Tensor], similarities: Tensor, query: Tensor, item: Tensor
) -> Tensor:
    """Apply `function` to the pairs, [pairs], with at most about _COMPARISONS comparisons in memory."""
    size = max(_COMPARISONS // max(len(similarities), 1), 1)
    if len(query) <= size:
        return function(similarities, query, item)
    parts = [slice(start, start + size) for start in range(0, len(query), size)]
    return torch.cat(
        [checkpoint(function, similarities, query[part], item[part], use_reentrant=False) for part in parts]
    )


def _sums(values: Tensor, query: Tensor, n_queries: int) -> Tensor:
    """Sum over the pairs of each query: [n_queries, ...]."""
    return values.new_zeros((n_queries, *values.shape[1:])).index_add(0, query, values)


def _check_positive(loss: str, **temperatures: float) -> None:
    for name, value in temperatures.items():
        if not value > 0:
            raise InvalidSettings(f"{loss}: expected {name} above 0, found {value}")


def _parse_ks(text: str) -> list[int]:
    words = text.replace(",", " ").split()
    if not words or not all(word.isdigit() and int(word) > 0 for word in words):
        raise InvalidSettings(
            f'RecallAtKSurrogateLoss: expected k as positive integers such as "1,2,4", found {text!r}'
        )
    return [int(word) for word in words]
