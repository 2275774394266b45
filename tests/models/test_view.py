"""A view against the model it shows, in float64."""

import pytest
import torch
import torch.nn.functional as F

from clead.models import BatchNormConfig, DigitsEncoder, Model, Pass, Projector, ResNet, View, initialise

BN = BatchNormConfig(branches=("clean", "adv"))
IMAGES = {"in_channels": 2, "mean": (0.3, 0.6), "std": (0.2, 0.4), "bn": BN}
ENCODERS = {
    "digits": lambda: DigitsEncoder(width=3, **IMAGES),
    "basic": lambda: ResNet(18, width=2, **IMAGES),
    "bottleneck": lambda: ResNet(50, width=1, stem="imagenet", **IMAGES),
}


def model_of(encoder):
    """With statistics, scales and shifts of their own in every layer and branch."""
    model = Model(encoder, {"projector": Projector(encoder.feature_dim, 5, 4, 3, "all", BN)})
    initialise(model, seed=1)
    generator = torch.Generator().manual_seed(0)
    for key, value in model.double().state_dict().items():
        if ".branch." in key:
            value.uniform_(0.5, 1.5, generator=generator)
    return model.train()


@pytest.fixture(params=sorted(ENCODERS))
def model(request):
    return model_of(ENCODERS[request.param]())


@pytest.fixture
def x():
    return torch.rand(6, 2, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def shown(model, encode, *, training=False):
    view = View(model, training=training)
    view.refresh(encode.branches)
    return view


BRANCHES = ["clean", "adv", (("adv", 2), ("clean", 2), ("adv", 2))]


@pytest.mark.parametrize("branch", BRANCHES)
def test_folding_is_exact_along_the_borders_too(model, x, branch):
    encode = Pass("embed", branch)
    view = shown(model, encode)
    x.requires_grad_()
    seen, expected = encode(view.module, x), encode(model.eval(), x)
    torch.testing.assert_close(seen, expected, rtol=1e-11, atol=1e-12)
    upstream = torch.randn(seen.shape, dtype=seen.dtype, generator=torch.Generator().manual_seed(3))
    grads = [torch.autograd.grad((z * upstream).sum(), x)[0] for z in (seen, expected)]
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-12)
    assert not any(tensor.requires_grad for tensor in view.module.state_dict().values())


def test_the_pixels_normalisation_cannot_be_folded_into_a_convolution_with_padding(x):
    """Why it stays a layer: the padding is a normalised zero, which is the mean of the pixels."""
    mean, std = (torch.tensor(IMAGES[name], dtype=torch.float64).view(-1, 1, 1) for name in ("mean", "std"))
    weight = torch.ones(1, 2, 3, 3, dtype=torch.float64)
    exact = F.conv2d((x - mean) / std, weight, padding=1)
    folded = F.conv2d(x, weight / std, -(weight * mean / std).sum((1, 2, 3)), padding=1)
    off = (exact - folded).abs().amax((0, 1)) > 1e-9
    assert off[0].all() and off[-1].all() and off[:, 0].all() and off[:, -1].all() and not off[1:-1, 1:-1].any()


@pytest.mark.parametrize("branch", BRANCHES)
def test_in_train_mode_it_has_the_batchs_statistics_and_moves_none(model, x, branch):
    encode = Pass("embed", branch)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    seen = encode(shown(model, encode, training=True).module, x)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    torch.testing.assert_close(seen, encode(model, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("training", [False, True])
def test_it_shows_what_refresh_found_from_the_same_memory(model, x, training):
    encode = Pass("embed", "adv")
    view = shown(model, encode, training=training)
    first = encode(view.module, x)
    addresses = [tensor.data_ptr() for tensor in tensors(view)]
    with torch.no_grad():
        for value in model.state_dict().values():
            value *= 1.1
    torch.testing.assert_close(encode(view.module, x), first, rtol=1e-12, atol=0)
    view.refresh(encode.branches)
    expected = encode(model.train(training), x)
    assert not torch.allclose(expected, first)
    torch.testing.assert_close(encode(view.module, x), expected, rtol=1e-11, atol=1e-12)
    assert [tensor.data_ptr() for tensor in tensors(view)] == addresses


def tensors(view):
    """All memory that a pass reads."""
    folded = [pair for module in view.module.modules() for pair in getattr(module, "_tensors", {}).values()]
    return [*view.module.state_dict().values(), *(tensor for pair in folded for tensor in pair)]


def test_the_models_flags_and_gradients_are_its_own(x):
    model = model_of(ENCODERS["digits"]())
    model.encoder.bn2.eval()
    modes = [module.training for module in model.modules()]
    encode = Pass("embed", "clean")
    view = shown(model, encode)
    encode(view.module, x.requires_grad_()).sum().backward()
    assert [module.training for module in model.modules()] == modes
    assert all(p.requires_grad and p.grad is None for p in model.parameters()) and x.grad is not None


def test_bfloat16_models_are_folded_in_bfloat16(x):
    model = model_of(ENCODERS["digits"]()).float()
    x, encode = x.float(), Pass("embed", (("clean", 3), ("adv", 3)))
    half = model.computing_in(torch.bfloat16)
    view = shown(half, encode)
    assert {tensor.dtype for tensor in tensors(view)} == {torch.float32, torch.bfloat16}
    exact, seen, expected = encode(model.eval(), x), encode(view.module, x), encode(half.eval(), x)
    assert seen.dtype == expected.dtype == torch.float32
    for z in (seen, expected):
        assert 0 < ((z - exact).norm() / exact.norm()).item() < 0.02


def test_batch_statistics_stay_float32_under_bfloat16(x):
    model = model_of(ENCODERS["digits"]()).float()
    twin = model_of(ENCODERS["digits"]()).float()
    model.computing_in(torch.bfloat16).features(x.float(), branch="adv")
    twin.features(x.float(), branch="adv")
    for (key, value), other in zip(model.state_dict().items(), twin.state_dict().values(), strict=True):
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, other, rtol=0.02, atol=0.01, msg=key)
