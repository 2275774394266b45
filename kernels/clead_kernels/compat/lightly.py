"""``NTXentLoss`` of lightly (https://github.com/lightly-ai/lightly), on ``nt_xent`` and ``info_nce``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import dispatch
from ..contrastive import FalseNegatives, info_nce, nt_xent
from ._gather import gather_rows, position


class NTXentLoss(nn.Module):
    """NT-Xent of SimCLR (Chen et al., arXiv 2002.05709, eq. 1), or with a memory bank the loss of MoCo.

    Rows are normalised. With a bank, row i of ``out0`` picks row i of ``out1`` among it and the bank as it was before
    the call; other rows of the batch are no negatives. The bank is a constant, starts with random unit rows, and takes
    in ``out1`` at every call in which ``out0`` requires grad.

    Attributes:
        temperature: float in [1e-8, 1e18], or a 0-d tensor, which may require grad.
        memory_bank_size: 0 = no bank, or (rows, dimensions).
        gather_distributed: rows of all processes are negatives (without a bank) or enter the bank.
        impl: which implementation, see ``clead_kernels.explain``.

    Example:
        >>> loss = NTXentLoss(temperature=0.1)(projector(view_0), projector(view_1))
    """

    bank: Tensor

    def __init__(
        self,
        temperature: float | Tensor = 0.5,
        memory_bank_size: int | Sequence[int] = 0,
        gather_distributed: bool = False,
        *,
        impl: dispatch.Impl = "auto",
    ) -> None:
        super().__init__()
        size = (memory_bank_size,) if isinstance(memory_bank_size, int) else tuple(memory_bank_size)
        if (len(size) != 2 and size != (0,)) or min(size) < 0:
            raise ValueError(f"memory_bank_size must be 0 or (rows, dimensions), got {memory_bank_size}")
        self.temperature = temperature
        self.gather_distributed = gather_distributed
        self.impl = impl
        bank = F.normalize(torch.randn(size), dim=-1) if size[0] else torch.empty(0)
        self.register_buffer("bank", bank, persistent=False)
        self._next_row = 0

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """The mean loss of the batch, over the rows of both views; with a bank, over those of ``out0``.

        Args:
            out0: [B, d].
            out1: [B, d], row i is another view of row i of ``out0``; same dtype and device.

        Returns:
            0-d loss; float64 for float64 inputs, else float32.
        """
        if out0.shape != out1.shape:
            raise ValueError(f"out0 and out1 must have the same shape, got {list(out0.shape)} and {list(out1.shape)}")
        if len(self.bank):
            return self._against_bank(out0, out1)
        if self.gather_distributed and position()[1] > 1:
            return self._across_processes(out0, out1)
        return nt_xent(torch.cat([out0, out1]), temperature=self.temperature, impl=self.impl)

    def _against_bank(self, out0: Tensor, out1: Tensor) -> Tensor:
        if out1.shape[1] != self.bank.shape[1]:
            raise ValueError(f"out1 must be [B, {self.bank.shape[1]}] like the bank, got {list(out1.shape)}")
        candidates = torch.cat([out1, self.bank.to(out1)])
        batch = torch.zeros(len(out0), dtype=torch.int64, device=out0.device)
        # One cluster that holds the batch and nothing of the bank: what is not the row's own positive is left out.
        clusters = torch.cat([batch, batch.new_full((len(self.bank),), -1)])
        loss = info_nce(
            out0,
            candidates,
            temperature=self.temperature,
            false_negatives=FalseNegatives(labels=(batch, clusters)),
            impl=self.impl,
        )
        if out0.requires_grad:
            self._enqueue(out1)
        return loss

    @torch.no_grad()
    def _enqueue(self, rows: Tensor) -> None:
        """Overwrite the oldest rows; a batch that does not fit is cut off at the end of the bank, as in lightly."""
        rows = F.normalize(rows, dim=1)
        if self.gather_distributed and position()[1] > 1:
            rows = gather_rows(rows, grad=False)
        rows = rows[: len(self.bank) - self._next_row]
        self.bank[self._next_row : self._next_row + len(rows)] = rows
        self._next_row = (self._next_row + len(rows)) % len(self.bank)

    def _across_processes(self, out0: Tensor, out1: Tensor) -> Tensor:
        everyone = [gather_rows(out, grad=True) for out in (out0, out1)]
        first = position()[0] * len(out0)
        own = torch.arange(first, first + len(out0), device=out0.device)
        other_view = own + len(everyone[0])
        return info_nce(
            torch.cat([out0, out1]),
            torch.cat(everyone),
            temperature=self.temperature,
            positives=torch.cat([other_view, own]),
            self_index=torch.cat([own, other_view]),
            impl=self.impl,
        )
