"""Official checkpoints, made here with their codes' names and read by arithmetic that knows nothing of ours."""

import argparse
import re

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from clead.errors import UserError
from clead.models.official import FORMATS, read_official

WIDTH = 4
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def resnet18(downsample, norms, normalize=None):
    """Random weights under official names.

    downsample: what the shortcut's convolution and batch norm are called; norms: suffixes of each batch norm.
    """
    generator = torch.Generator().manual_seed(0)
    state = {}

    def norm(name, width):
        for suffix in norms:
            for part in ("weight", "bias", "running_mean"):
                state[f"{name}{suffix}.{part}"] = torch.randn(width, generator=generator) / 3
            state[f"{name}{suffix}.running_var"] = torch.rand(width, generator=generator) + 0.5
            state[f"{name}{suffix}.num_batches_tracked"] = torch.tensor(3)

    def conv(name, out, into, size):
        state[f"{name}.weight"] = torch.randn(out, into, size, size, generator=generator) / into**0.5 / size

    conv("conv1", WIDTH, 3, 3)
    norm("bn1", WIDTH)
    for stage in range(4):
        width, into = WIDTH << stage, WIDTH << max(stage - 1, 0)
        for block in range(2):
            name = f"layer{stage + 1}.{block}"
            conv(f"{name}.conv1", width, into if block == 0 else width, 3)
            norm(f"{name}.bn1", width)
            conv(f"{name}.conv2", width, width, 3)
            norm(f"{name}.bn2", width)
            if stage and not block:
                conv(f"{name}.{downsample[0]}", width, into, 1)
                norm(f"{name}.{downsample[1]}", width)
    if normalize:
        state["normalize.mean"], state["normalize.std"] = map(torch.tensor, normalize)
    return state


def features(state, x, downsample, suffix, normalize):
    """The official networks' arithmetic."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in normalize)

    def norm(name, x):
        name = f"{name}{suffix}"
        parts = [state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *parts, training=False)

    x = F.relu(norm("bn1", F.conv2d((x - mean) / std, state["conv1.weight"], padding=1)))
    for stage in range(4):
        for block in range(2):
            name, stride = f"layer{stage + 1}.{block}", 2 if stage and not block else 1
            out = F.relu(norm(f"{name}.bn1", F.conv2d(x, state[f"{name}.conv1.weight"], stride=stride, padding=1)))
            out = norm(f"{name}.bn2", F.conv2d(out, state[f"{name}.conv2.weight"], padding=1))
            if f"{name}.{downsample[0]}.weight" in state:
                x = norm(f"{name}.{downsample[1]}", F.conv2d(x, state[f"{name}.{downsample[0]}.weight"], stride=stride))
            x = F.relu(out + x)
    return x.mean((2, 3))


def layer(out, into, names=("weight", "bias"), prefix="fc."):
    return {f"{prefix}{names[0]}": torch.randn(out, into), f"{prefix}{names[1]}": torch.randn(out)}


@pytest.fixture
def x():
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


SPLIT, CHAIN, SHORTCUT = (
    ("downsample.conv", "downsample.bn"),
    ("downsample.0", "downsample.1"),
    ("shortcut.0", "shortcut.1"),
)


@pytest.mark.parametrize(("name", "branches"), [("acl", 2), ("dynacl", 2), ("advcl", 3)])
def test_pretrained_encoders_with_several_batch_norms(name, branches, x, tmp_path):
    suffixes = [f".bn_list.{index}" for index in range(branches)]
    normalize = IMAGENET if name != "advcl" else ([0.0] * 3, [1.0] * 3)
    state = resnet18(SPLIT, suffixes, normalize if name == "acl" else None)
    if name == "advcl":
        state |= layer(10, 8 * WIDTH, prefix="fc_010.") | layer(8, 8, prefix="head_proj.0.")
    else:
        state |= layer(8, 8, prefix="fc.fc1.") | {"fc.bn1.bn_list.0.running_mean": torch.zeros(8)}
    saved = {"P_state" if name == "acl" else "model": {f"module.{key}": value for key, value in state.items()}}
    torch.save(saved | {"epoch": 1000, "optim": {"state": {}}}, tmp_path / "model.pt")
    model = read_official(tmp_path / "model.pt", name)
    assert model.evaluation_branch == "adv" and not model.heads
    for suffix, branch in zip(suffixes, ("clean", "adv", "adv_ce"), strict=False):
        torch.testing.assert_close(model.features(x, branch), features(state, x, SPLIT, suffix, normalize))


def test_acl_fine_tuned(x, tmp_path):
    state = resnet18(CHAIN, [""], IMAGENET) | layer(10, 8 * WIDTH)
    torch.save({"state_dict": state, "epoch": 25, "optim": {}, "best_prec1": 0.8}, tmp_path / "model.pt")
    model = read_official(tmp_path / "model.pt", "acl")
    expected = features(state, x, CHAIN, "", IMAGENET) @ state["fc.weight"].T + state["fc.bias"]
    torch.testing.assert_close(model.logits(x, model.evaluation_branch), expected)


def test_advcl_fine_tuned_has_its_classifier_beside_an_unused_one(x, tmp_path):
    state = resnet18(SHORTCUT, [""])
    used = layer(10, 8 * WIDTH)
    unused = layer(10, 8 * WIDTH, prefix="linear.") | layer(8, 8, prefix="head_pred.2.")
    saved = {"model": state | unused, "classifier": used, "epoch": 25, "rng_state": torch.get_rng_state()}
    torch.save(saved, tmp_path / "best.ckpt")
    model = read_official(tmp_path / "best.ckpt", "advcl")
    expected = features(state, x, SHORTCUT, "", ([0.0] * 3, [1.0] * 3)) @ used["fc.weight"].T + used["fc.bias"]
    torch.testing.assert_close(model.logits(x, model.evaluation_branch), expected)


def test_rocl_keeps_its_classifier_in_a_file_of_its_own(x, tmp_path):
    state, head = resnet18(SHORTCUT, [""]), layer(10, 8 * WIDTH, prefix="0.")
    for name, weights in (("ckpt.t7", state), ("ckpt.t7_linear", head)):
        torch.save({"model": {f"module.{key}": value for key, value in weights.items()}}, tmp_path / name)
    model = read_official(tmp_path / "ckpt.t7", "rocl", head=tmp_path / "ckpt.t7_linear")
    expected = features(state, x, SHORTCUT, "", ([0.0] * 3, [1.0] * 3)) @ head["0.weight"].T + head["0.bias"]
    torch.testing.assert_close(model.logits(x, "clean"), expected)


def test_supcontrast_with_its_arguments_in_the_file(x, tmp_path):
    state = resnet18(SHORTCUT, [""])
    saved = {f"encoder.module.{key}": value for key, value in state.items()} | layer(8, 8, prefix="head.0.")
    torch.save({"opt": argparse.Namespace(model="resnet18", temp=0.1), "model": saved}, tmp_path / "last.pth")
    normalize = ([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010])
    model = read_official(tmp_path / "last.pth", "supcontrast")
    torch.testing.assert_close(model.features(x, "clean"), features(state, x, SHORTCUT, "", normalize))


def test_safetensors_of_a_torchvision_resnet(x, tmp_path):
    state = resnet18(CHAIN, [""]) | layer(7, 8 * WIDTH)
    save_file(state, tmp_path / "model.safetensors")
    model = read_official(tmp_path / "model.safetensors", "torchvision")
    torch.testing.assert_close(model.features(x, "clean"), features(state, x, CHAIN, "", IMAGENET))
    assert model.heads["classifier"].out_features == 7


class Evil:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("layer2.1.conv2.weight"), "no layer2.1.conv2.weight"),
        (lambda state: state.update(surprise=torch.zeros(1)), "surprise, which does not belong there"),
        (lambda state: state.update({"bn1.bias": torch.zeros(5)}), "bn1.branch.clean.bias of shape [5] instead of [4]"),
        (
            lambda state: state.update({"bn1.bn_list.2.bias": torch.zeros(4)}),
            "batch norms for clean, adv, found bn1.bn",
        ),
        (lambda state: state.update({"fc.weight": torch.zeros(4)}), "the weight and bias of a linear classifier"),
        (
            lambda state: [state.pop(key) for key in list(state) if key.startswith("layer4")],
            "found (2, 2, 2, 0) blocks",
        ),
        (lambda state: state.clear(), "expected weights, found nothing"),
        (lambda state: (state.clear(), state.update(a=1, b=2)), "expected weights, found the keys a; b"),
    ],
)
def test_what_does_not_fit_is_listed(change, message, tmp_path):
    state = resnet18(CHAIN, [""])
    change(state)
    torch.save({"state_dict": state}, tmp_path / "model.pt")
    with pytest.raises(UserError, match=re.escape(message)):
        read_official(tmp_path / "model.pt", "acl")


def test_files_are_not_trusted(tmp_path, capsys):
    torch.save({"state_dict": resnet18(CHAIN, [""]), "extra": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match=r"evil\.pt: expected tensors, numbers and names only"):
        read_official(tmp_path / "evil.pt", "acl")
    assert capsys.readouterr().out == ""
    whole = (tmp_path / "evil.pt").read_bytes()
    for name, content in (
        ("short.pt", whole[: len(whole) // 2]),
        ("empty.pt", b""),
        ("text.safetensors", b"hello there"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=re.escape(name)):
            read_official(tmp_path / name, "acl")
    with pytest.raises(UserError, match="found no file"):
        read_official(tmp_path / "none.pt", "acl")
    with pytest.raises(UserError, match="unknown format 'alc'; the nearest is 'acl'"):
        read_official(tmp_path / "evil.pt", "alc")
    assert len(FORMATS) == 12
