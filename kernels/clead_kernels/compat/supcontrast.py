"""``SupConLoss`` of the SupContrast repository (https://github.com/HobbitLong/SupContrast), on ``sup_con``."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from .. import _arguments as arguments
from .. import dispatch
from .._rows import full_precision, working_dtype
from ..contrastive import info_nce, sup_con


class SupConLoss(nn.Module):
    """Supervised contrastive loss L_out (Khosla et al., arXiv 2004.11362, eq. 2) of several views per image.

    The rows are not normalised, as in the repository: pass unit rows. An anchor without a positive contributes 0 and is
    counted in the mean.

    Attributes:
        temperature: float in [1e-8, 1e18], or a 0-d tensor, which may require grad.
        contrast_mode: ``"all"`` views are anchors, or the first ``"one"``; candidates are always all views.
        base_temperature: the loss is multiplied by ``temperature / base_temperature``.
        impl: which implementation, see ``clead_kernels.explain``.

    Example:
        >>> loss = SupConLoss(temperature=0.1)(F.normalize(features, dim=-1), labels)  # [B, V, D], [B]
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.07,
        contrast_mode: Literal["all", "one"] = "all",
        base_temperature: float = 0.07,
        *,
        impl: dispatch.Impl = "auto",
    ) -> None:
        super().__init__()
        arguments.check_choice("contrast_mode", contrast_mode, ("all", "one"))
        self.temperature = temperature
        self.contrast_mode = contrast_mode
        self.base_temperature = base_temperature
        self.impl = impl

    def forward(self, features: Tensor, labels: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """The mean loss of all anchors.

        Args:
            features: [B, V, ...], V views of each image; flattened from the third dimension on.
            labels: integers [B]; without labels and mask the positives are the other views of the same image.
            mask: [B, B], ``mask[i, j]`` the weight with which the views of image j are positives of image i; any
                values of at least 0, also asymmetric ones.

        Returns:
            0-d loss; float64 for float64 features, else float32.

        Raises:
            ValueError: wrong shapes, or both ``labels`` and ``mask``.
        """
        if not isinstance(features, Tensor) or features.ndim < 3:
            found = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(f"features must be a tensor [images, views, ...], got {found}")
        if labels is not None and mask is not None:
            raise ValueError("labels and mask say the same: expected one of them, got both")
        images, views = features.shape[:2]
        candidates = features.flatten(2).transpose(0, 1).flatten(0, 1)
        anchors = candidates if self.contrast_mode == "all" else candidates[:images]
        if mask is not None:
            loss = self._of_mask(anchors, candidates, mask, images).mean()
        else:
            groups = torch.arange(images, device=features.device)
            if labels is not None:
                groups = labels.to(features.device).flatten()
                groups = arguments.check_integers("labels", groups, [images], features.device)
            loss = self._of_labels(anchors, candidates, groups.repeat(views))
        return loss * (self.temperature / self.base_temperature)

    def _of_labels(self, anchors: Tensor, candidates: Tensor, groups: Tensor) -> Tensor:
        if self.contrast_mode == "all":
            return sup_con(candidates, groups, temperature=self.temperature, normalize=False, impl=self.impl)
        return sup_con(
            anchors,
            groups[: len(anchors)],
            temperature=self.temperature,
            candidates=candidates,
            candidate_labels=groups,
            self_index=torch.arange(len(anchors), device=anchors.device),
            normalize=False,
            impl=self.impl,
        )

    def _of_mask(self, anchors: Tensor, candidates: Tensor, mask: Tensor, images: int) -> Tensor:
        """``sum_j w_ij (log Z_i - s_ij) / sum_j w_ij`` of every anchor, w the mask without the anchor itself.

        Z_i knows nothing of the mask, and ``sum_j w_ij s_ij`` is the product of the anchor with one sum of candidates:
        the mask itself is the only matrix of pairs.
        """
        if not isinstance(mask, Tensor) or mask.shape != (images, images):
            found = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(f"mask must have shape [{images}, {images}], got {found}")
        dtype = working_dtype(anchors.dtype)
        mask = mask.detach().to(anchors.device, dtype)
        repeats, views = len(anchors) // max(images, 1), len(candidates) // max(images, 1)
        own = mask.diagonal().repeat(repeats)
        weight = (views * mask.sum(1)).repeat(repeats) - own
        with full_precision(anchors.device):
            sums = mask @ candidates.to(dtype).unflatten(0, (views, images)).sum(0)
        sums = sums.repeat(repeats, 1) - own[:, None] * anchors
        itself = torch.arange(len(anchors), device=anchors.device)
        other = (itself + 1) % len(candidates)
        # log Z_i less the logit of some other candidate, which is put back below.
        relative = info_nce(
            anchors,
            candidates,
            temperature=self.temperature,
            positives=other,
            self_index=itself,
            normalize=False,
            reduction="none",
            impl=self.impl,
        )
        rest = (anchors.to(dtype) * (weight[:, None] * candidates[other] - sums)).sum(1) / self.temperature
        loss: Tensor = (weight * relative + rest) / torch.where(weight < 1e-6, 1.0, weight)
        return loss
