"""``ClipLoss`` of open_clip (https://github.com/mlfoundations/open_clip), on ``clip_loss`` and ``info_nce``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import dispatch
from ..contrastive import clip_loss, info_nce
from ._gather import gather_rows
from ._scale import temperature_of


class ClipLoss(nn.Module):
    """The symmetric loss of CLIP (Radford et al., arXiv 2103.00020, fig. 3); features are not normalised, as there.

    Attributes:
        local_loss: every process computes the rows of its own features only.
        gather_with_grad: gradients flow to the features of other processes.
        cache_labels: accepted and without effect: there are no labels to keep.
        rank: of this process.
        world_size: number of processes; features are gathered where it exceeds 1.
        impl: which implementation, see ``clead_kernels.explain``.

    Example:
        >>> loss = ClipLoss()(image_features, text_features, logit_scale)  # unit rows, logit_scale.exp() of the model
    """

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
        *,
        impl: dispatch.Impl = "auto",
    ) -> None:
        super().__init__()
        if use_horovod:
            raise NotImplementedError("use_horovod=True is not supported, features are gathered by torch.distributed")
        self.local_loss = local_loss
        self.gather_with_grad = gather_with_grad
        self.cache_labels = cache_labels
        self.rank = rank
        self.world_size = world_size
        self.impl = impl

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """The mean of the losses image -> text and text -> image.

        Args:
            image_features: [B, d].
            text_features: [B, d], row i belongs to row i of the images; same dtype and device.
            logit_scale: multiplies the inner products: positive float, or a tensor of one element, which may require
                grad.
            logit_bias: is added to all logits, which leaves the loss as it is; float or a tensor of one element, whose
                gradient is 0.
            output_dict: return ``{"contrastive_loss": loss}``.

        Returns:
            0-d loss; float64 for float64 features, else float32.
        """
        temperature = temperature_of("logit_scale", logit_scale)
        loss = self._loss(image_features, text_features, temperature)
        if isinstance(logit_bias, Tensor):
            if logit_bias.numel() != 1:
                raise NotImplementedError(f"logit_bias must have one element, got {list(logit_bias.shape)}")
            # Kept in the graph: a parameter without a gradient would stop DistributedDataParallel.
            loss = loss + 0.0 * logit_bias.reshape(())
        return {"contrastive_loss": loss} if output_dict else loss

    def _loss(self, images: Tensor, texts: Tensor, temperature: float | Tensor) -> Tensor:
        if self.world_size == 1:
            return clip_loss(images, texts, temperature=temperature, normalize=False, impl=self.impl)
        all_images, all_texts = (self._everyone(rows) for rows in (images, texts))
        if not self.local_loss:
            return clip_loss(all_images, all_texts, temperature=temperature, normalize=False, impl=self.impl)
        first = self.rank * len(images)
        positives = torch.arange(first, first + len(images), device=images.device)
        there, back = (
            info_nce(x, y, temperature=temperature, positives=positives, normalize=False, impl=self.impl)
            for x, y in ((images, all_texts), (texts, all_images))
        )
        return (there + back) / 2

    def _everyone(self, rows: Tensor) -> Tensor:
        """The features of all processes; without ``gather_with_grad`` constants, but for one's own in the full loss."""
        everyone = gather_rows(rows, grad=self.gather_with_grad)
        if self.gather_with_grad or self.local_loss:
            return everyone
        first = self.rank * len(rows)
        return torch.cat([everyone[:first], rows, everyone[first + len(rows) :]])
