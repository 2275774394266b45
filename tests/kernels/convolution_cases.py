"""Convolutions as loops in float64, and the operands that tests give to ours."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clead_kernels import conv3x3

# B, C, K, H, W: images of less than a tile, ragged ones, channels that fill no block, more tiles than one chunk has.
SHAPES = (
    *((2, 16, 16, *size) for size in ((1, 1), (1, 13), (2, 3), (4, 4), (5, 8), (6, 6), (13, 7), (9, 12))),
    *((3, 48, 80, 5, 6), (1, 80, 48, 4, 9), (2, 112, 16, 3, 3), (1, 16, 144, 7, 4), (5, 64, 64, 10, 11)),
    *((70, 16, 32, 8, 8), (13, 160, 128, 4, 4), (150, 16, 16, 7, 8)),
)  # fmt: skip


def operands(shape: tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, ...]:
    """x, weight, bias and the gradient by the output, normal numbers."""
    batch, inputs, outputs, height, width = shape
    generator = torch.Generator().manual_seed(seed)
    shapes = ((batch, inputs, height, width), (outputs, inputs, 3, 3), (outputs,), (batch, outputs, height, width))
    x, weight, bias, grad = (torch.randn(s, dtype=torch.float64, generator=generator) for s in shapes)
    return x.to(dtype), (weight / (9 * inputs) ** 0.5).to(dtype), bias.to(dtype), grad.to(dtype)


def loop(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The definition: one pixel of one image at a time, tap by tap."""
    batch, _, height, width = x.shape
    images = []
    for b in range(batch):
        pixels = []
        for i in range(height):
            for j in range(width):
                pixel = bias
                for p in range(max(0, 1 - i), min(3, height + 1 - i)):
                    for q in range(max(0, 1 - j), min(3, width + 1 - j)):
                        pixel = pixel + weight[:, :, p, q] @ x[b, :, i + p - 1, j + q - 1]
                pixels.append(pixel)
        images.append(torch.stack(pixels, 1).view(-1, height, width))
    return torch.stack(images)


def direct(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """PyTorch's own."""
    return F.conv2d(x, weight, bias, padding=1)


def with_gradients(function, x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor) -> list[Tensor]:
    """The result, and the gradients by x, weight and bias."""
    leaves = [t.detach().requires_grad_() for t in (x, weight, bias)]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def assert_close(found: list[Tensor], expected: list[Tensor], bound: float = 1e-12) -> None:
    """Alike, and off by at most ``bound`` of the norm."""
    for mine, true in zip(found, expected, strict=True):
        assert mine.shape == true.shape and mine.dtype == true.dtype
        assert (mine - true).norm() <= bound * true.norm()


def ours(impl: str = "native"):
    """``conv3x3`` by an implementation."""
    return lambda x, weight, bias: conv3x3(x, weight, bias, impl=impl)


def worst_errors(dtype: torch.dtype, shapes: tuple[tuple[int, ...], ...] = SHAPES) -> list[float]:
    """Relative errors against float64 of result and gradients, each the worst over shapes."""
    worst = [0.0] * 4
    for shape in shapes:
        given = operands(shape, dtype)
        truth = with_gradients(direct, *(t.double() for t in given))
        for at, (mine, true) in enumerate(zip(with_gradients(ours(), *given), truth, strict=True)):
            worst[at] = max(worst[at], float((mine.double() - true).norm() / true.norm()))
    return worst
