import copy

import pytest
import torch
import torch.nn.functional as F

from clead.errors import UserError
from clead.models import (
    ENCODERS,
    BatchNormConfig,
    LinearHead,
    Model,
    Projector,
    ResNet,
    build_encoder,
    initialise,
    torchvision_state_dict,
)

RGB = {"in_channels": 3, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3)}
GRAY = {"in_channels": 1, "mean": (0.3,), "std": (0.4,)}
TWO = BatchNormConfig(branches=("clean", "adv"))

# Parameters of torchvision's models as its documentation publishes them, and of their last layer, 1000 * (width + 1).
TORCHVISION = {18: (11_689_512, 512), 34: (21_797_672, 512), 50: (25_557_032, 2048), 101: (44_549_160, 2048)}


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("depth", TORCHVISION)
def test_parameter_counts(depth):
    total, width = TORCHVISION[depth]
    backbone = total - 1000 * (width + 1)
    with torch.device("meta"):
        imagenet = ResNet(depth, **RGB, bn=BatchNormConfig(), stem="imagenet")
        cifar = build_encoder(f"resnet{depth}", **RGB, bn=BatchNormConfig())
    assert cifar.feature_dim == imagenet.feature_dim == width
    assert count(imagenet) == backbone
    # The stem has 3x3 instead of 7x7 kernels on 3 channels.
    assert count(cifar) == backbone - 64 * 3 * (49 - 9)


def test_resnet18_for_cifar_has_the_known_count():
    assert count(build_encoder("resnet18", **RGB, bn=BatchNormConfig())) == 11_168_832


def torchvision_resnet18():
    """Names and shapes of torchvision's resnet18 with a 3x3 stem and without fc, from its naming rule."""
    shapes = {"conv1.weight": (64, 3, 3, 3)}
    norms = {"bn1": 64}
    channels = 64
    for stage, width in ((1, 64), (2, 128), (3, 256), (4, 512)):
        for block in (0, 1):
            name = f"layer{stage}.{block}"
            shapes[f"{name}.conv1.weight"] = (width, channels, 3, 3)
            shapes[f"{name}.conv2.weight"] = (width, width, 3, 3)
            norms[f"{name}.bn1"] = norms[f"{name}.bn2"] = width
            if channels != width:
                shapes[f"{name}.downsample.0.weight"] = (width, channels, 1, 1)
                norms[f"{name}.downsample.1"] = width
            channels = width
    for name, width in norms.items():
        shapes |= {f"{name}.{kind}": (width,) for kind in ("weight", "bias", "running_mean", "running_var")}
        shapes[f"{name}.num_batches_tracked"] = ()
    return shapes


def test_torchvision_names():
    encoder = build_encoder("resnet18", **RGB, bn=TWO)
    with torch.no_grad():
        encoder.layer2[0].downsample[1].branch["adv"].weight.fill_(7.0)
        encoder.layer2[0].downsample[1].branch["clean"].weight.fill_(5.0)
    exported = torchvision_state_dict(encoder, "adv")
    expected = torchvision_resnet18()
    assert len(expected) == 120  # torchvision's 122 less fc.weight and fc.bias
    assert {name: tuple(tensor.shape) for name, tensor in exported.items()} == expected
    assert set(exported["layer2.0.downsample.1.weight"].tolist()) == {7.0}
    assert exported["bn1.num_batches_tracked"].dtype == torch.int64
    assert len({tensor.data_ptr() for tensor in exported.values()}) == 120
    with pytest.raises(UserError, match="branch must be one of"):
        torchvision_state_dict(encoder, "avd")


def test_exported_bottleneck_names():
    encoder = ResNet(50, **RGB, bn=TWO, width=8)
    exported = torchvision_state_dict(encoder, "clean")
    assert len(exported) == 320 - 2  # torchvision's resnet50 has 320 entries, two of them fc's
    assert exported["layer3.5.conv3.weight"].shape == (128, 32, 1, 1)
    assert "layer1.0.downsample.1.running_var" in exported
    # torchvision strides the 3x3 convolution, the paper the first 1x1: same names and shapes, another function.
    strides = [encoder.get_submodule(f"layer2.0.{name}").stride[0] for name in ("conv1", "conv2", "downsample.0")]
    assert strides == [1, 2, 2]


def functional_resnet18(weights, x, stem_stride):
    """ResNet-18 in eval mode from torchvision's names, written out."""

    def norm(x, name):
        keys = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(weights[f"{name}.{key}"] for key in keys))

    def conv(x, name, stride=1):
        weight = weights[f"{name}.weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    x = F.relu(norm(conv(x, "conv1", stem_stride), "bn1"))
    if stem_stride == 2:
        x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            out = F.relu(norm(conv(x, f"{name}.conv1", stride), f"{name}.bn1"))
            out = norm(conv(out, f"{name}.conv2"), f"{name}.bn2")
            if stride == 2:
                x = norm(conv(x, f"{name}.downsample.0", 2), f"{name}.downsample.1")
            x = F.relu(out + x)
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


@pytest.mark.parametrize("stem, size", [("cifar", 16), ("imagenet", 64)])
def test_resnet18_is_the_function_its_exported_weights_describe(stem, size):
    encoder = ResNet(18, **RGB, bn=TWO, width=8, stem=stem).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in encoder.state_dict().items():
            if ".branch." in name:
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    x = torch.rand(2, 3, size, size, generator=generator)
    mean, std = encoder.normalization
    normalized = (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    expected = functional_resnet18(torchvision_state_dict(encoder, "adv"), normalized, 1 if stem == "cifar" else 2)
    torch.testing.assert_close(encoder(x, branch="adv"), expected)
    assert not torch.allclose(encoder(x, branch="clean"), expected)


def test_normalization_is_what_was_asked_for():
    encoder = build_encoder("digits_cnn", in_channels=1, mean=(0.30590,), std=(0.37600,), bn=BatchNormConfig())
    assert encoder.normalization == ((0.3059,), (0.376,))
    x = torch.tensor([0.0, 0.3059, 0.6819]).view(3, 1, 1, 1)
    torch.testing.assert_close(encoder.normalize(x).flatten(), torch.tensor([-0.3059 / 0.376, 0.0, 1.0]))
    with pytest.raises(ValueError, match=r"\[B, 1, H, W\], got torch.float32 \(2, 3, 8, 8\)"):
        encoder(torch.rand(2, 3, 8, 8), branch="clean")
    with pytest.raises(ValueError, match="uint8"):
        encoder(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), branch="clean")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name, width", [("digits_cnn", 8), ("resnet18", 4), ("resnet50", 4)])
def test_segments_reach_every_layer(name, width, training):
    """In double precision, where a convolution's blocking by batch size cannot hide or fake a difference."""
    encoder = build_encoder(name, **GRAY, bn=TWO, width=width).double().train(training)
    initialise(encoder, 0)
    apart = copy.deepcopy(encoder)
    x = torch.rand(7, 1, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    out = encoder(x, branch=(("clean", 3), ("adv", 4)))
    assert out.shape == (7, encoder.feature_dim)
    torch.testing.assert_close(out, torch.cat([apart(x[:3], branch="clean"), apart(x[3:], branch="adv")]))
    for a, b in zip(encoder.buffers(), apart.buffers(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name, width", [("digits_cnn", 4), ("resnet18", 2)])
def test_encoders_compile_without_graph_breaks(name, width):
    encoder = build_encoder(name, **GRAY, bn=TWO, width=width)
    eager = copy.deepcopy(encoder)
    x, branch = torch.rand(6, 1, 16, 16), (("clean", 2), ("adv", 4))
    torch._dynamo.reset()
    out = torch.compile(encoder, backend="aot_eager", fullgraph=True)(x, branch=branch)
    torch.testing.assert_close(out, eager(x, branch=branch))


def test_digits_encoder_size():
    encoder = build_encoder("digits_cnn", **GRAY, bn=BatchNormConfig())
    assert encoder.feature_dim == 128
    # Weights times the output's pixels: 8x8, 4x4, 4x4, 2x2; and two values per channel of batch norm.
    shapes = {"conv1": (32, 1, 64), "conv2": (64, 32, 16), "conv3": (64, 64, 16), "conv4": (128, 64, 4)}
    assert {name: tuple(encoder.get_submodule(name).weight.shape[:2]) for name in shapes} == {
        name: shape[:2] for name, shape in shapes.items()
    }
    assert 1e6 < sum(9 * out * into * pixels for out, into, pixels in shapes.values()) < 2e6
    assert count(encoder) == 9 * (32 + 64 * 32 + 64 * 64 + 128 * 64) + 2 * (32 + 64 + 64 + 128)


def test_registry():
    assert {"digits_cnn", "resnet18", "resnet34", "resnet50", "resnet101"} < set(ENCODERS)
    with pytest.raises(UserError, match="unknown encoder 'resnet19'; the nearest is 'resnet18'"):
        build_encoder("resnet19", **RGB, bn=BatchNormConfig())
    with pytest.raises(UserError, match="one value for each of 3 channels"):
        build_encoder("resnet18", in_channels=3, mean=(0.5,), std=(0.2,), bn=BatchNormConfig())
    with pytest.raises(UserError, match="std must be 1 positive values"):
        build_encoder("digits_cnn", in_channels=1, mean=(0.5,), std=(0.0,), bn=BatchNormConfig())
    with pytest.raises(UserError, match="width must be at least 1, got 0"):
        build_encoder("digits_cnn", **GRAY, bn=BatchNormConfig(), width=0)
    with pytest.raises(UserError, match="depth must be one of"):
        ResNet(19, **RGB, bn=BatchNormConfig())
    with pytest.raises(UserError, match="stem must be"):
        ResNet(18, **RGB, bn=BatchNormConfig(), stem="tiny")


def test_projector_is_the_mlp_of_its_weights():
    projector = Projector(5, 7, 3, num_layers=3, batch_norm="hidden", bn=TWO).eval()
    initialise(projector, 0)
    with torch.no_grad():
        for state in projector.norms[0].branch.values():
            state.running_mean.normal_(generator=torch.Generator().manual_seed(1))
        projector.norms[1].branch["adv"].bias.fill_(0.5)
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    hidden = x
    for index in (0, 1):
        state = projector.norms[index].branch["adv"]
        hidden = hidden @ projector.layers[index].weight.T + projector.layers[index].bias
        hidden = (hidden - state.running_mean) / (1 + 1e-5) ** 0.5 + state.bias
        hidden = hidden.clamp(min=0)
    expected = hidden @ projector.layers[2].weight.T + projector.layers[2].bias
    torch.testing.assert_close(projector(x, branch="adv"), expected)
    assert [tuple(layer.weight.shape) for layer in projector.layers] == [(7, 5), (7, 7), (3, 7)]
    assert projector(x, branch="adv").min() < 0  # no ReLU at the end


def test_projector_layers():
    assert set(Projector(5, 7, 3).state_dict()) == {f"layers.{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")}
    assert Projector(5, 7, 3, num_layers=1).layers[0].weight.shape == (3, 5)
    with pytest.raises(ValueError, match="num_layers must be at least 1, got 0"):
        Projector(5, 7, 3, num_layers=0)


def test_model_composes():
    encoder = build_encoder("digits_cnn", **GRAY, bn=BatchNormConfig(("a", "b"), "b"), width=4)
    model = Model(encoder, {"projector": Projector(16, 8, 6), "classifier": LinearHead(16, 10)}).eval()
    x, branch = torch.rand(5, 1, 8, 8), (("a", 2), ("b", 3))
    features = model.features(x, branch=branch)
    assert model.evaluation_branch == encoder.evaluation_branch == "b"
    assert torch.equal(features, encoder(x, branch=branch))
    assert torch.equal(model.embed(x, branch=branch), model.heads["projector"](features, branch=branch))
    assert torch.equal(model.logits(x, branch=branch), model.heads["classifier"](features))
    assert model.embed(x, branch="a").shape == (5, 6)
    with pytest.raises(ValueError, match=r"head must be one of \('projector', 'classifier'\), got 'ema'"):
        model.embed(x, branch="a", head="ema")
