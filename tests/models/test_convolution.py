"""Encoders by Winograd's algorithm: the same functions, a rounding apart, for everyone who differentiates them."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from clead.models import BatchNormConfig, ResNet, View, initialise
from clead.models.convolution import Conv3x3
from clead_kernels import _native

native_only = pytest.mark.skipif(not _native.available(), reason=f"no native kernels: {_native.why_absent()}")


class Seen(TorchDispatchMode):
    """Names of the convolutions that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "conv" in str(function):
            self.names.append(str(function).split(".")[1])
        return function(*args, **(kwargs or {}))


def encoder_of(depth, dtype=torch.float32):
    encoder = ResNet(depth, width=16, in_channels=3, mean=(0.4,) * 3, std=(0.3,) * 3, bn=BatchNormConfig())
    initialise(encoder, seed=2)
    return encoder.to(dtype).eval()


def images(count=16, size=16, dtype=torch.float32):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1)).to(dtype)


def conv(winograd=True, channels=(32, 48)):
    layer = Conv3x3(*channels)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(3)) / 17)
    layer.winograd = winograd
    return layer


X = torch.randn(8, 32, 9, 8, generator=torch.Generator().manual_seed(4))


@native_only
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("depth", [18, 34])
def test_features_and_gradients_are_those_of_float64_in_either_way(depth, training, monkeypatch):
    # Smooth, as the derivative of a ReLU near 0 hangs on the last bit, whatever computes it.
    monkeypatch.setattr(torch.nn.functional, "relu", lambda x, inplace: torch.nn.functional.softplus(x))
    found = {}
    for name, dtype in ((True, torch.float32), (False, torch.float32), ("exact", torch.float64)):
        encoder = encoder_of(depth, dtype).train(training)
        encoder.use_winograd(name is True)
        point = images(dtype=dtype).requires_grad_()
        with Seen() as seen:
            features = encoder(point, "clean")
            features.square().sum().backward()
        assert any("conv3x3" in convolution for convolution in seen.names) == (name is True)
        weights = torch.cat([weight.grad.flatten() for weight in encoder.parameters()])
        found[name] = [tensor.double() for tensor in (features.detach(), point.grad, weights)]
    for ours, direct, exact in zip(found[True], found[False], found["exact"], strict=True):
        assert (ours - exact).norm() <= 5e-6 * exact.norm() + 4 * (direct - exact).norm()
    assert not torch.equal(found[True][0], found[False][0])


@native_only
def test_a_view_convolves_packed_weights_and_takes_over_new_ones():
    encoder = encoder_of(18)
    view, x = View(encoder, training=False), images()
    for _ in range(2):
        view.refresh(("clean",))
        point = x.clone().requires_grad_()
        with Seen() as seen:
            features = view.module(point, "clean")
            (grad,) = torch.autograd.grad(features.square().sum(), point)
        assert "conv3x3_of_packed" in seen.names
        whole = copy.deepcopy(encoder).double()
        whole.use_winograd(False)
        exact_point = x.double().requires_grad_()
        exact = whole(exact_point, "clean")
        (exact_grad,) = torch.autograd.grad(exact.square().sum(), exact_point)
        assert (features - exact).norm() <= 1e-5 * exact.norm()
        assert (grad - exact_grad).norm() <= 1e-5 * exact_grad.norm()
        with torch.no_grad():
            for weight in encoder.parameters():
                weight *= 1.25


@pytest.mark.parametrize(
    ("x", "channels"),
    [
        (X[:, :24], (24, 48)),  # channels that are no multiple of 16
        (X[:1, :, :4, :4], (32, 48)),  # too few tiles
        (X.bfloat16(), (32, 48)),
        (X.to("meta"), (32, 48)),
    ],
    ids=["channels", "small", "bfloat16", "meta"],
)
def test_what_it_does_not_serve_is_convolved_by_torch(x, channels):
    layer, plain = conv(channels=channels).to(x), nn.Conv2d(*channels, 3, padding=1, bias=False).to(x)
    plain.load_state_dict(layer.state_dict())
    with Seen() as seen:
        out = layer(x)
    assert seen.names == ["convolution"] and out.shape == plain(x).shape
    assert x.is_meta or torch.equal(out, plain(x))


def test_autocast_and_forward_mode_meet_torchs_operators():
    layer = conv()
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(X).dtype == torch.bfloat16
    tangent = torch.randn_like(X)
    _, found = torch.func.jvp(layer, (X,), (tangent,))
    torch.testing.assert_close(found, layer(tangent))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(X, tangent)
        found = torch.autograd.forward_ad.unpack_dual(layer(dual)).tangent
    torch.testing.assert_close(found, layer(tangent))


def test_torch_func_compilers_traces_and_exports_go_through():
    layer, plain = conv(), conv(winograd=False)
    assert layer.serves(X) == _native.available()
    torch.testing.assert_close(torch.func.vmap(layer)(X[None])[0], plain(X))
    grad = torch.func.grad(lambda x: layer(x).pow(2).sum())(X)
    torch.testing.assert_close(grad, torch.func.grad(lambda x: plain(x).pow(2).sum())(X))
    torch.testing.assert_close(torch.compile(layer, backend="aot_eager", fullgraph=True)(X), plain(X))
    traced = torch.jit.trace(layer, X)
    saved = io.BytesIO()
    torch.jit.save(traced, saved)
    saved.seek(0)
    torch.testing.assert_close(torch.jit.load(saved)(X), plain(X))
    exported = torch.export.export(layer, (X,))
    assert "clead" not in str(exported.graph)
    torch.testing.assert_close(exported.module()(X), plain(X))


def test_a_second_derivative_goes_through():
    layer, plain, x = conv().double(), conv(winograd=False).double(), X.double().requires_grad_()
    assert layer.serves(x) == _native.available()

    def second(layer):
        (grad,) = torch.autograd.grad(layer(x).pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), (x, layer.weight))

    for ours, exact in zip(second(layer), second(plain), strict=True):
        torch.testing.assert_close(ours, exact)


def test_it_is_a_convolution_to_everyone_else():
    layer = conv()
    assert isinstance(layer, nn.Conv2d) and list(layer.state_dict()) == ["weight"]
    assert not copy.deepcopy(conv(winograd=False)).winograd


@native_only
def test_a_view_that_was_first_used_in_inference_mode_serves_others_too():
    encoder, x = encoder_of(18), images()
    view = View(encoder, training=False)
    view.refresh(("clean",))
    with torch.inference_mode():
        first = view.module(x, "clean")
    view.refresh(("clean",))
    point = x.clone().requires_grad_()
    again = view.module(point, "clean")
    again.sum().backward()
    assert torch.equal(first, again) and point.grad.isfinite().all()


@native_only
def test_training_steps_with_relus_in_place_are_those_of_float64():
    found = []
    for dtype in (torch.float32, torch.float64):
        encoder = encoder_of(18, dtype).train()
        encoder.use_winograd(dtype == torch.float32)
        encoder(images(dtype=dtype), "clean").square().sum().backward()
        found.append(torch.cat([weight.grad.flatten() for weight in encoder.parameters()]).double())
    assert (found[0] - found[1]).norm() <= 1e-3 * found[1].norm()  # a few ReLUs fall on the other side
