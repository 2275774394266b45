"""ImageNet checkpoints, made here in the layouts of their codes and read by arithmetic that knows nothing of ours."""

import argparse
import re
import zipfile

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from clead.errors import UserError
from clead.models import View
from clead.models.official import read_official

WIDTH, CLASSES = 2, 5
BLOCKS = (3, 4, 6, 3)
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
SWAV = ([0.485, 0.456, 0.406], [0.228, 0.224, 0.225])
PLAIN = ([0.0] * 3, [1.0] * 3)


def resnet50(counters=True):
    """A thin ResNet-50 with random weights under torchvision's names, without a classifier."""
    generator = torch.Generator().manual_seed(0)
    state = {}

    def conv(name, out, into, size):
        state[f"{name}.weight"] = torch.randn(out, into, size, size, generator=generator) / into**0.5 / size

    def norm(name, width):
        for part in ("weight", "bias", "running_mean"):
            state[f"{name}.{part}"] = torch.randn(width, generator=generator) / 3
        state[f"{name}.running_var"] = torch.rand(width, generator=generator) + 0.5
        if counters:
            state[f"{name}.num_batches_tracked"] = torch.tensor(3)

    conv("conv1", WIDTH, 3, 7)
    norm("bn1", WIDTH)
    into = WIDTH
    for stage, blocks in enumerate(BLOCKS):
        width = WIDTH << stage
        for block in range(blocks):
            name = f"layer{stage + 1}.{block}"
            for index, shape in enumerate(((width, into, 1), (width, width, 3), (4 * width, width, 1)), start=1):
                conv(f"{name}.conv{index}", *shape)
                norm(f"{name}.bn{index}", shape[0])
            if block == 0:
                conv(f"{name}.downsample.0", 4 * width, into, 1)
                norm(f"{name}.downsample.1", 4 * width)
            into = 4 * width
    return state


def logits(state, head, x, normalize, same=False):
    """The official networks' arithmetic; ``same`` puts JAX's zeros around images of even size."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in normalize)

    def norm(name, x):
        parts = [state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *parts, training=False)

    def conv(name, x, stride=1):
        weight = state[f"{name}.weight"]
        size = weight.shape[-1]
        if same and stride == 2 and size > 1:
            x = F.pad(x, {3: (0, 1, 0, 1), 7: (2, 3, 2, 3)}[size])
            return F.conv2d(x, weight, stride=2)
        return F.conv2d(x, weight, stride=stride, padding=size // 2)

    x = F.relu(norm("bn1", conv("conv1", (x - mean) / std, 2)))
    x = F.max_pool2d(F.pad(x, (0, 1, 0, 1)), 3, 2) if same else F.max_pool2d(x, 3, 2, padding=1)
    for stage, blocks in enumerate(BLOCKS):
        for block in range(blocks):
            name, stride = f"layer{stage + 1}.{block}", 2 if stage and not block else 1
            out = F.relu(norm(f"{name}.bn1", conv(f"{name}.conv1", x)))
            out = F.relu(norm(f"{name}.bn2", conv(f"{name}.conv2", out, stride)))
            out = norm(f"{name}.bn3", conv(f"{name}.conv3", out))
            if f"{name}.downsample.0.weight" in state:
                x = norm(f"{name}.downsample.1", conv(f"{name}.downsample.0", x, stride))
            x = F.relu(out + x)
    return F.linear(x.mean((2, 3)), head["weight"], head["bias"])


def prefixed(prefix, state):
    return {f"{prefix}{key}": value for key, value in state.items()}


def linear(out, into):
    generator = torch.Generator().manual_seed(out)
    return {"weight": torch.randn(out, into, generator=generator), "bias": torch.randn(out, generator=generator)}


def whole(state, head):
    """What a linear classifier's training saves: torchvision's model in DataParallel."""
    return {"epoch": 100, "arch": "resnet50", "state_dict": prefixed("module.", state | prefixed("fc.", head))}


def moco(state, head, mlp):
    """Pre-training: v1's head is one layer, v2's two; the key encoder and the queue are other weights."""
    fc = prefixed("fc.0.", linear(64, 64)) | prefixed("fc.2.", linear(8, 64)) if mlp else prefixed("fc.", linear(8, 64))
    other = {key: torch.zeros_like(value) for key, value in (state | fc).items()}
    rest = {"module.queue": torch.rand(8, 16), "module.queue_ptr": torch.zeros(1, dtype=torch.int64)}
    encoders = prefixed("module.encoder_q.", state | fc) | prefixed("module.encoder_k.", other)
    return {"epoch": 200, "state_dict": encoders | rest, "optimizer": {"state": {}}}


def mocov3(state, head):
    mlp = {"fc.0.weight": torch.rand(8, 64), "fc.1.running_mean": torch.rand(8), "fc.4.running_var": torch.rand(8)}
    momentum = {key: torch.zeros_like(value) for key, value in (state | mlp).items()}
    encoders = prefixed("module.base_encoder.", state | mlp) | prefixed("module.momentum_encoder.", momentum)
    return {"state_dict": encoders | {"module.predictor.0.weight": torch.rand(8, 8)}, "scaler": {"scale": 65536.0}}


def dino(state, head):
    heads = {"head.mlp.0.bias": torch.rand(8), "head.last_layer.weight_g": torch.ones(9, 1)}
    student = {key: torch.zeros_like(value) for key, value in state.items()}
    return {
        "student": prefixed("module.", prefixed("backbone.", student) | heads),
        "teacher": prefixed("module.", prefixed("backbone.", state) | heads),
        "args": argparse.Namespace(arch="resnet50"),
        "dino_loss": {"center": torch.zeros(1, 9)},
    }


def swav(state, head):
    return prefixed(
        "module.", state | {"projection_head.0.weight": torch.rand(8, 64), "prototypes.weight": torch.rand(3, 8)}
    )


def apart(head):
    return {"epoch": 100, "state_dict": prefixed("module.linear.", head), "best_acc": 75.3}


# name, the file it writes, whether its classifier is in a file of its own, how it normalises
LAYOUTS = {
    "simclr": ("simclr", lambda state, head: {"state_dict": state | prefixed("fc.", head)}, False, PLAIN),
    "swav": ("swav", swav, True, SWAV),
    "byol": ("byol", lambda state, head: state | prefixed("fc.", head), False, IMAGENET),
    "moco v1": ("moco", lambda state, head: moco(state, head, mlp=False), True, IMAGENET),
    "moco v2": ("moco", lambda state, head: moco(state, head, mlp=True), True, IMAGENET),
    "moco linear": ("moco", whole, False, IMAGENET),
    "moco v3": ("mocov3", mocov3, True, IMAGENET),
    "moco v3 linear": ("mocov3", whole, False, IMAGENET),
    "dino": ("dino", lambda state, head: state, True, IMAGENET),
    "dino full": ("dino", dino, True, IMAGENET),
}


@pytest.fixture
def x():
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_logits_are_those_of_the_official_network(layout, x, tmp_path):
    name, write, has_head_file, normalize = LAYOUTS[layout]
    state, head = resnet50(counters=name != "byol"), linear(CLASSES, 32 * WIDTH)
    # The releases of 2020 are in torch's old form, which is no archive.
    torch.save(write(state, head), tmp_path / "model.pth.tar", _use_new_zipfile_serialization=name in ("byol", "dino"))
    torch.save(apart(head), tmp_path / "linear.pth.tar")
    model = read_official(tmp_path / "model.pth.tar", name, head=tmp_path / "linear.pth.tar" if has_head_file else None)
    with torch.no_grad():
        found = model.logits(x, model.evaluation_branch)
    assert torch.equal(found, logits(state, head, x, normalize, same=name == "byol"))
    if has_head_file:
        assert not read_official(tmp_path / "model.pth.tar", name).heads


def test_jax_pads_other_sides_of_even_images_only(x, tmp_path):
    save_file(resnet50() | prefixed("fc.", linear(CLASSES, 32 * WIDTH)), tmp_path / "model.safetensors")
    byol, usual = (read_official(tmp_path / "model.safetensors", name) for name in ("byol", "torchvision"))
    with torch.no_grad():
        odd = x[..., :33, :33]  # 33, 17, 9, 5, 3: as many zeros before as behind
        assert torch.equal(byol.logits(odd, "clean"), usual.logits(odd, "clean"))
        expected = byol.logits(x, "clean")
        assert (expected - usual.logits(x, "clean")).abs().max() > 0.01
        view = View(byol, training=False)
        view.refresh(("clean",))
        torch.testing.assert_close(view.module.logits(x, "clean"), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", ["simclr", "swav", "moco v2", "moco v3", "dino full"])
def test_a_key_that_does_not_fit_is_listed(layout, tmp_path):
    name, write, _, _ = LAYOUTS[layout]
    for change, message in (
        (lambda state: state.pop("layer2.1.conv2.weight"), "no layer2.1.conv2.weight"),
        (lambda state: state.update({"surprise.weight": torch.zeros(1)}), "surprise.weight, which does not belong"),
        (lambda state: state.update({"bn1.bias": torch.zeros(5)}), "bn1.branch.clean.bias of shape [5] instead of [2]"),
        (lambda state: state.update({"bn1.bias": torch.ones(2).long()}), "bn1.branch.clean.bias of torch.int64"),
    ):
        state = resnet50()
        change(state)
        torch.save(write(state, linear(CLASSES, 32 * WIDTH)), tmp_path / "model.pt")
        with pytest.raises(UserError, match=re.escape(message)):
            read_official(tmp_path / "model.pt", name)


def test_a_weight_under_two_names_is_refused(tmp_path):
    state = resnet50()
    torch.save({"state_dict": prefixed("encoder_q.", state) | state}, tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"one weight conv1\.weight, found encoder_q\.conv1\.weight; conv1\.weight"):
        read_official(tmp_path / "model.pt", "moco")


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (
            {"weight": torch.zeros(CLASSES, 63), "bias": torch.zeros(CLASSES)},
            "weight of shape [5, 63] instead of [5, 64]",
        ),
        ({"weight": torch.zeros(CLASSES, 64)}, "expected the weight and bias of a linear classifier"),
        (
            {"weight": torch.zeros(5, 64), "bias": torch.zeros(5), "more": torch.zeros(5)},
            "expected the weight and bias",
        ),
        ({"weight": torch.zeros(5, 64), "bias": torch.tensor(5.0)}, "expected the weight and bias"),
    ],
)
def test_a_classifier_that_does_not_fit_is_refused(head, message, tmp_path):
    save_file(resnet50(), tmp_path / "model.safetensors")
    torch.save(apart(head), tmp_path / "linear.pt")
    with pytest.raises(UserError, match=r"linear\.pt.*" + re.escape(message)):
        read_official(tmp_path / "model.safetensors", "dino", head=tmp_path / "linear.pt")


def expanded(state):
    """One number that says it is a ResNet of 100,000 channels."""
    state["conv1.weight"] = torch.zeros(1).expand(100_000, 3, 7, 7)


def wide(state):
    state["conv1.weight"] = torch.zeros(100_000, 3, 1, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (expanded, "expected weights as large as the file, found 14,7"),
        (wide, "expected a first convolution of 1 to 1024 channels, found 100000"),
        (lambda state: state.update({"bn1.bias": torch.ones(2, device="meta")}), "found other kinds for bn1.bias"),
        (lambda state: state.update({"bn1.bias": torch.ones(2).to_sparse()}), "found other kinds for bn1.bias"),
        (
            lambda state: state.update({"conv1.weight": torch.zeros(2, 1, 7, 7)}),
            "mean must hold one value for each of 1",
        ),
        (lambda state: state.update({"normalize.std": torch.zeros(3)}), "std must be 3 positive values"),
        (lambda state: state.update({"normalize.std": torch.full((3,), torch.nan)}), "finite numbers in normalize.std"),
    ],
)
def test_a_file_that_asks_for_more_than_it_holds_is_refused(change, message, tmp_path):
    state = resnet50()
    change(state)
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(UserError, match=re.escape(message)) as refused:
        read_official(tmp_path / "model.pt", "torchvision")
    assert str(refused.value).startswith(str(tmp_path / "model.pt"))


def test_a_compressed_archive_is_refused(tmp_path):
    torch.save({"weight": torch.zeros(1_000_000)}, tmp_path / "model.pt")
    with zipfile.ZipFile(tmp_path / "model.pt") as source:
        parts = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in parts.items():
            packed.writestr(name, content)
    with pytest.raises(
        UserError, match=r"packed\.pt: expected an archive as torch\.save writes it, found a compressed"
    ):
        read_official(tmp_path / "packed.pt", "torchvision")


def test_many_keys_that_do_not_fit_make_one_line(tmp_path):
    torch.save(resnet50() | {f"odd\n{index}": torch.zeros(1) for index in range(500)}, tmp_path / "model.pt")
    with pytest.raises(UserError, match="480 more") as refused:
        read_official(tmp_path / "model.pt", "torchvision")
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 2000
