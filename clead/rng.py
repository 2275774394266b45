"""Randomness as values: a stream is named by (seed, purpose, step, view), never drawn from a global generator.

See ``clead_kernels.philox``. The key is a hash of (seed, purpose); the counter holds the step or epoch, the global
sample index, the view and the draw. The same sample therefore gets the same numbers for any batch size, worker count,
rank or point of resumption.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from clead_kernels import philox, random_start_

Purpose = Literal["init", "order", "augment", "attack", "eval_attack", "kmeans"]


def stream_key(seed: int, purpose: str) -> int:
    """The 64-bit Philox key of (seed, purpose)."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest(), "little")


@dataclass(frozen=True)
class Rng:
    """One random stream for a batch of samples.

    Attributes:
        key: 64-bit Philox key.
        sample_ids: int64 [B]; low 32 bits the global sample index, high 32 bits the view.
        step: training step, epoch or restart.
    """

    key: int
    sample_ids: Tensor
    step: int = 0

    @classmethod
    def create(cls, seed: int, purpose: Purpose, sample_ids: Tensor, step: int = 0) -> Rng:
        """The stream of (seed, purpose) for the samples with global indices ``sample_ids`` (int64 [B])."""
        return cls(stream_key(seed, purpose), sample_ids, step)

    def view(self, view: int) -> Rng:
        """The same samples seen as view ``view``: an independent stream."""
        return replace(self, sample_ids=(self.sample_ids & 0xFFFFFFFF) | (view << 32))

    def at(self, step: int) -> Rng:
        """The same samples at another step (or restart)."""
        return replace(self, step=step)

    def cat(self, *others: Rng) -> Rng:
        """Streams concatenated in dim 0, for joint perturbations; all must share key and step."""
        for other in others:
            if (other.key, other.step) != (self.key, self.step):
                raise ValueError("only streams with the same key and step can be concatenated")
        return replace(self, sample_ids=torch.cat([self.sample_ids, *(other.sample_ids for other in others)]))

    def __getitem__(self, index: slice | Tensor) -> Rng:
        return replace(self, sample_ids=self.sample_ids[index])

    def words(self, draws: int) -> Tensor:
        """int64 [B, draws] in [0, 2**32)."""
        return philox.random_words(self.key, self.sample_ids, draws, step=self.step)

    def uniform(self, draws: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """float32 [B, draws] in [low, high)."""
        # A random start of radius 1 around 0 is 2 u - 1, exactly, and there are fast ones.
        zeros = torch.zeros((len(self.sample_ids), draws), device=self.sample_ids.device)
        start, step = torch.empty_like(zeros), self.step & 0xFFFFFFFF
        random_start_(start, zeros, eps=1.0, seed=self.key, sample_ids=self.sample_ids, bounds=None, step=step)
        return (start + 1) / 2 * (high - low) + low

    def normal(self, draws: int) -> Tensor:
        """float32 [B, draws], standard normal by Box-Muller from two words each."""
        u = philox.uniform(self.key, self.sample_ids, 2 * draws, step=self.step).view(len(self.sample_ids), draws, 2)
        # 1 - u lies in (0, 1], so the logarithm is finite.
        return torch.sqrt(-2.0 * torch.log(1.0 - u[..., 0])) * torch.cos(2.0 * torch.pi * u[..., 1])


def permutation(seed: int, size: int, epoch: int, device: torch.device | str = "cpu") -> Tensor:
    """The order in which epoch ``epoch`` visits ``size`` samples: int64 [size]."""
    rng = Rng.create(seed, "order", torch.arange(size, device=device), step=epoch)
    high, low = rng.words(2).unbind(1)
    return torch.argsort((high >> 1 << 32) | low, stable=True)
