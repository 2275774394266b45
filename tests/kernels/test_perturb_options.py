"""Options of the steps for all norms: momentum, clean images in bytes."""

from __future__ import annotations

import math

import pytest
import torch

from clead_kernels import pgd_step_, project_, random_start_

pytestmark = pytest.mark.kernels

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
IMPLS = ("auto", "reference")
NORMS = ("linf", "l2", "l1")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("impl", IMPLS)
def test_momentum_matches_the_loop(randn, dtype, impl):
    buffer, truth = torch.zeros(4, 3, 5, 7, dtype=dtype), torch.zeros(4, 105, dtype=torch.float64)
    x = torch.full_like(buffer, 0.5)
    for number in range(4):
        grad = randn(4, 3, 5, 7, seed=number).to(dtype)
        grad[1] = 0
        grad[2, 0, 0, 0] = (0.0, math.nan, math.inf, 0.0)[number]
        for row, samples in enumerate(grad.double().flatten(1).tolist()):
            length = math.fsum(map(abs, samples))
            scale = 1 / length if length and math.isfinite(length) else 0.0
            added = torch.tensor([v * scale if scale else 0.0 for v in samples], dtype=torch.float64)
            truth[row] = 0.9 * truth[row] + added
        x_adv = x.clone()
        pgd_step_(x_adv, grad, x, eps=0.25, step_size=0.125, momentum_buffer=buffer, momentum=0.9, impl=impl)
        # The step follows the buffer, not the gradient.
        assert torch.equal(x_adv, x + 0.125 * buffer.sign())
        error = (buffer.double() - truth.reshape(buffer.shape)).abs()
        bound = 4 * torch.finfo(dtype).eps * truth.abs().amax(1).reshape(4, 1, 1, 1)
        smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
        assert (error <= bound + 4 * smallest).all()
    assert (buffer[1] == 0).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("impl", IMPLS)
def test_a_step_with_momentum_is_a_step_along_the_buffer(randn, norm, impl):
    x, grad = torch.rand(3, 40, generator=torch.Generator().manual_seed(0)), randn(3, 40, dtype=torch.float32)
    buffer = randn(3, 40, seed=1, dtype=torch.float32)
    options = {"eps": 0.3, "step_size": 0.1, "norm": norm, "l1_sparsity": 0.2, "targeted": True, "impl": impl}
    ours, version = x.clone(), buffer._version
    pgd_step_(ours, grad, x, momentum_buffer=buffer, momentum=0.5, **options)
    assert buffer._version > version
    assert torch.equal(ours, pgd_step_(x.clone(), buffer, x, **options))


def test_momentum_in_any_memory_order(randn):
    grad, x = randn(3, 4, 5, 6, dtype=torch.float32), torch.full((3, 4, 5, 6), 0.5)
    wanted, ours = torch.ones(3, 4, 5, 6), torch.ones(3, 4, 5, 6).to(memory_format=torch.channels_last)
    pgd_step_(x.clone(), grad, x, eps=0.1, step_size=0.1, momentum_buffer=wanted)
    pgd_step_(x.clone(), grad, x, eps=0.1, step_size=0.1, momentum_buffer=ours)
    assert torch.equal(ours, wanted) and ours.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("impl", IMPLS)
def test_bytes_stand_for_their_255ths(randn, norm, dtype, impl):
    clean = torch.arange(256, dtype=torch.uint8).repeat(6)[: 2 * 3 * 16 * 16].reshape(2, 3, 16, 16)
    x = torch.tensor([v / 255 for v in range(256)], dtype=torch.float64)
    x = (x if dtype == torch.float64 else x.float()).to(dtype)[clean.long()]
    grad, options = randn(2, 3, 16, 16).to(dtype), {"eps": 0.1, "norm": norm, "impl": impl}
    for bytes_, pixels in (
        (clean, x),
        (clean.to(memory_format=torch.channels_last), x),
        (clean[..., ::2], x[..., ::2]),
    ):
        adv, g = (pixels + 0.05).clamp(0, 1), grad[..., : pixels.shape[-1]]
        for call in (
            lambda y, c, g=g: pgd_step_(y, g, c, step_size=0.05, **options),
            lambda y, c: project_(y, c, **options),
            lambda y, c: random_start_(y, c, seed=3, **options),
        ):
            assert torch.equal(call(adv.clone(), bytes_), call(adv.clone(), pixels))
