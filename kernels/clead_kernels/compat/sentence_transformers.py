"""``MultipleNegativesRankingLoss`` of sentence-transformers (https://github.com/huggingface/sentence-transformers).

A loss of embeddings, on ``info_nce``: the model is called by whoever has it.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from .. import _arguments as arguments
from .. import dispatch
from ..contrastive import FalseNegatives, info_nce
from ._gather import gather_rows, position
from ._scale import temperature_of

Direction = Literal["query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"]
_DIRECTIONS = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")


class MultipleNegativesRankingLoss(nn.Module):
    """Every anchor picks its positive among all positives and negatives (Henderson et al., arXiv 1705.00652).

    Attributes:
        scale: multiplies the similarities: positive float, or a 0-d tensor, which may require grad.
        similarity: ``"cos"`` or ``"dot"``.
        gather_across_devices: documents and anchors of all processes are candidates, with gradients.
        directions: what else competes with the positive pair (i, i): ``"query_to_query"`` = other anchors with anchor
            i, ``"doc_to_query"`` = other anchors with positive i, ``"doc_to_doc"`` = documents of others with positive
            i (only together with ``"doc_to_query"``).
        partition_mode: one softmax over all directions (``"joint"``), or the mean of one for each
            (``"per_direction"``, for ``"query_to_doc"`` and ``"doc_to_query"``).
        impl: which implementation, see ``clead_kernels.explain``.

    Example:
        >>> loss = MultipleNegativesRankingLoss(scale=20.0)(anchors, positives, negatives)
    """

    def __init__(
        self,
        scale: float | Tensor = 20.0,
        similarity: Literal["cos", "dot"] = "cos",
        gather_across_devices: bool = False,
        directions: tuple[Direction, ...] = ("query_to_doc",),
        partition_mode: Literal["joint", "per_direction"] = "joint",
        hardness_mode: None = None,
        hardness_strength: float = 0.0,
        *,
        impl: dispatch.Impl = "auto",
    ) -> None:
        super().__init__()
        arguments.check_choice("similarity", similarity, ("cos", "dot"))
        arguments.check_choice("partition_mode", partition_mode, ("joint", "per_direction"))
        for direction in directions:
            arguments.check_choice("directions", direction, _DIRECTIONS)
        if "query_to_doc" not in directions:
            raise ValueError(f"directions must have 'query_to_doc', the pair itself, got {directions}")
        if partition_mode == "per_direction" and {"query_to_query", "doc_to_doc"} & set(directions):
            raise ValueError(f"partition_mode='per_direction' is for pairs across, got directions={tuple(directions)}")
        if "doc_to_doc" in directions and "doc_to_query" not in directions:
            raise NotImplementedError("directions with 'doc_to_doc' but without 'doc_to_query' are not supported")
        if hardness_mode is not None:
            raise NotImplementedError(f"hardness_mode must be None, weights of hard negatives, got {hardness_mode!r}")
        temperature_of("scale", scale)
        self.scale = scale
        self.similarity = similarity
        self.gather_across_devices = gather_across_devices
        self.directions = frozenset(directions)
        self.partition_mode = partition_mode
        self.hardness_strength = hardness_strength
        self.impl = impl

    def forward(self, anchors: Tensor, positives: Tensor, *negatives: Tensor) -> Tensor:
        """The mean loss of the anchors.

        Args:
            anchors: [B, d].
            positives: [B, d], row i belongs to anchor i; same dtype and device.
            negatives: [B, d] each, further documents of each anchor.

        Returns:
            0-d loss; float64 for float64 embeddings, else float32.
        """
        shape = list(anchors.shape)
        for name, rows in (("positives", positives), *(("negatives", rows) for rows in negatives)):
            if list(rows.shape) != shape:
                raise ValueError(f"{name} must have the shape of anchors, {shape}, got {list(rows.shape)}")
        first, queries, documents = 0, anchors, [positives, *negatives]
        rank, processes = position()
        if self.gather_across_devices and processes > 1:
            first, queries = rank * len(anchors), gather_rows(anchors, grad=True)
            documents = [gather_rows(rows, grad=True) for rows in documents]
        own = torch.arange(first, first + len(anchors), device=anchors.device)
        losses = [self._of_queries(anchors, queries, torch.cat(documents), own)]
        if "doc_to_query" in self.directions:
            losses.append(self._of_documents(positives, queries, documents, own))
        # Each is log Z less the same logit of the positive pair, so joining the sums joins the losses.
        if self.partition_mode == "joint":
            return torch.stack(losses).logsumexp(0).mean()
        return torch.stack(losses).mean()

    def _of_queries(self, anchors: Tensor, queries: Tensor, documents: Tensor, own: Tensor) -> Tensor:
        if "query_to_query" not in self.directions:
            return self._rows(anchors, documents, own)
        return self._rows(anchors, torch.cat([documents, queries]), own, self_index=own + len(documents))

    def _of_documents(self, positives: Tensor, queries: Tensor, documents: list[Tensor], own: Tensor) -> Tensor:
        if "doc_to_doc" not in self.directions:
            return self._rows(positives, queries, own)
        # A cluster per query: its own documents, the positive itself among them, are left out.
        everyone = torch.arange(len(queries), device=own.device)
        clusters = torch.cat([torch.full_like(everyone, -1), everyone.repeat(len(documents))])
        siblings = FalseNegatives(labels=(own, clusters))
        return self._rows(positives, torch.cat([queries, *documents]), own, false_negatives=siblings)

    def _rows(
        self,
        anchors: Tensor,
        candidates: Tensor,
        positives: Tensor,
        self_index: Tensor | None = None,
        false_negatives: FalseNegatives | None = None,
    ) -> Tensor:
        return info_nce(
            anchors,
            candidates,
            temperature=temperature_of("scale", self.scale),
            positives=positives,
            self_index=self_index,
            false_negatives=false_negatives,
            normalize=self.similarity == "cos",
            reduction="none",
            impl=self.impl,
        )
