"""Batch normalisation with several branches: one set of statistics per kind of input, chosen by an argument.

Clean and adversarial images follow different distributions; Xie et al., "Adversarial examples improve image
recognition", CVPR 2020, arXiv:1911.09665, give each its own batch norm while all convolutions are shared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clead.errors import UserError

Branch = str | tuple[tuple[str, int], ...]
"""A branch's name for the whole batch, or (name, rows) segments in the order of the rows."""

TINY = 1e-5  # torch's and torchvision's floor of the variance


@dataclass(frozen=True)
class BatchNormConfig:
    """Branches of batch normalisation."""

    branches: tuple[str, ...] = ("clean",)
    """Names of the branches."""
    evaluation_branch: str = "clean"
    """The branch evaluation uses."""
    affine: Literal["separate", "shared"] = "separate"
    """Scale and shift: one pair per branch, or one pair for all."""
    momentum: tuple[float, ...] = (0.1,)
    """Weight of the new batch in the running statistics; one value for all branches or one per branch."""

    def __post_init__(self) -> None:
        for name in self.branches:
            # ModuleDict, which makes the names part of the state keys, cannot hold the names of its own methods.
            if not name.isidentifier() or hasattr(nn.ModuleDict(), name):
                raise UserError(f"bn.branches must be identifiers such as clean or adv, got {name!r}")
        if not self.branches or len(set(self.branches)) < len(self.branches):
            raise UserError(f"bn.branches must be one or more different names, got {self.branches}")
        if self.evaluation_branch not in self.branches:
            raise UserError(f"bn.evaluation_branch must be one of {self.branches}, got {self.evaluation_branch!r}")
        if self.affine not in ("separate", "shared"):
            raise UserError(f"bn.affine must be 'separate' or 'shared', got {self.affine!r}")
        if len(self.momentum) not in (1, len(self.branches)):
            raise UserError(f"bn.momentum must hold 1 or {len(self.branches)} values, got {len(self.momentum)}")
        if not all(0 <= value <= 1 for value in self.momentum):
            raise UserError(f"bn.momentum must lie in [0, 1], got {self.momentum}")

    def momentum_of(self, branch: str) -> float:
        """The momentum of one branch."""
        return self.momentum[self.branches.index(branch) if len(self.momentum) > 1 else 0]


class BranchState(nn.Module):
    """One branch: its statistics, and a scale and shift that it may share with the other branches."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    @torch.no_grad()
    def reset(self) -> None:
        """Scale 1, shift 0, and the statistics of a standard normal."""
        for one, zero in ((self.weight, self.bias), (self.running_var, self.running_mean)):
            one.fill_(1.0)
            zero.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [B, C, ...] as torch.nn.BatchNorm does."""
        if self.training and x.numel() == x.shape[1]:
            raise ValueError(
                f"batch norm in training mode needs more than one value per channel, got an input of shape "
                f"{tuple(x.shape)}: use more images per batch (or per segment), larger ones, or eval mode"
            )
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, TINY
        )


class BranchBatchNorm(nn.Module):
    """What batch norms over rows and over images share."""

    dims: tuple[int, ...]

    def __init__(self, num_features: int, config: BatchNormConfig) -> None:
        super().__init__()
        self.config = config
        self.branch = nn.ModuleDict(
            {name: BranchState(num_features, config.momentum_of(name)) for name in config.branches}
        )
        if config.affine == "shared":
            _tie(self)
            norm: Any = self  # torch leaves the next two untyped
            norm.register_load_state_dict_pre_hook(_check_tied)
            # load_state_dict(assign=True) replaces the parameters one by one, and so unties them.
            norm.register_load_state_dict_post_hook(_tie)

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        """Normalise x through one branch, or every segment of its rows through its own."""
        if x.dim() not in self.dims:
            expected = " or ".join(str(dim) for dim in self.dims)
            raise ValueError(f"{type(self).__name__} expects {expected} dimensions, got {tuple(x.shape)}")
        if isinstance(branch, str):
            return self._normalize(x, branch)
        sizes = [size for _, size in branch]
        if sum(sizes) != x.shape[0] or min(sizes, default=0) < 1:
            raise ValueError(f"branch segments must be positive and sum to the {x.shape[0]} rows of x, got {branch}")
        parts = zip(torch.split(x, sizes), branch, strict=True)
        return torch.cat([self._normalize(part, name) for part, (name, _) in parts])

    def extra_repr(self) -> str:
        """The branches, for ``print``."""
        config = self.config
        return f"branches={config.branches}, affine={config.affine!r}, momentum={config.momentum}"

    def state(self, name: str) -> BranchState:
        """The branch called ``name``."""
        if name not in self.branch:
            raise ValueError(f"branch must be one of {self.config.branches}, got {name!r}")
        state = self.branch[name]
        assert isinstance(state, BranchState)
        return state

    def _normalize(self, x: Tensor, name: str) -> Tensor:
        out: Tensor = self.state(name)(x)
        return out


class BranchBatchNorm2d(BranchBatchNorm):
    """Batch norm over [B, C, H, W] with one set of statistics per branch.

    In training mode a segment is normalised with its own rows only and updates its own branch only, so a segmented
    call equals one call per segment.

    Args:
        num_features: channels C.
        config: the branches.

    Raises:
        ValueError: on an unknown branch, segments that do not sum to B, or a training batch (segment) with one value
            per channel.
    """

    dims = (4,)


class BranchBatchNorm1d(BranchBatchNorm):
    """Batch norm over [B, C] or [B, C, L] with one set of statistics per branch; see BranchBatchNorm2d."""

    dims = (2, 3)


def _tie(norm: nn.Module, *_: object) -> None:
    """Make the scale and shift of all branches one tensor; the state dict still names them per branch."""
    states = [state for state in norm.modules() if isinstance(state, BranchState)]
    for state in states[1:]:
        state.weight, state.bias = states[0].weight, states[0].bias


def _check_tied(
    norm: BranchBatchNorm,
    state_dict: dict[str, Any],
    prefix: str,
    _metadata: object,
    _strict: bool,
    *messages: list[str],
) -> None:
    """Refuse a state dict in which the branches disagree on what this module shares."""
    for name in ("weight", "bias"):
        keys = [f"{prefix}branch.{branch}.{name}" for branch in norm.config.branches]
        found = [state_dict[key] for key in keys if key in state_dict]
        if any(not torch.equal(value, found[0]) for value in found[1:]):
            # messages: missing keys, unexpected keys, errors.
            messages[-1].append(f"{prefix}branch.*.{name} differ, but this model shares them (affine='shared').")
