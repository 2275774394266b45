import copy

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from clead.errors import UserError
from clead.models import BatchNormConfig, BranchBatchNorm1d, BranchBatchNorm2d

SEGMENTS = (("clean", 5), ("adv", 3), ("clean", 2))
TWO = BatchNormConfig(branches=("clean", "adv"), momentum=(0.1, 0.01))
SHARED = BatchNormConfig(branches=("clean", "adv"), affine="shared")


def images(rows, channels=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, channels, 3, 2, generator=generator) * 2 + 1


def filled(norm, seed=1):
    """Distinct values everywhere, so that a branch taken for another shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*norm.parameters(), *norm.buffers()):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return norm


def by_hand(x, state, training):
    """Float64 loops over channels: out, and the running statistics afterwards."""
    x, mean, var = x.double(), state.running_mean.double().clone(), state.running_var.double().clone()
    weight, bias = state.weight.detach().double(), state.bias.detach().double()
    out = torch.empty_like(x)
    for c in range(x.shape[1]):
        values = x[:, c].flatten().tolist()
        m, v = mean[c].item(), var[c].item()
        if training:
            m = sum(values) / len(values)
            squares = sum((value - m) ** 2 for value in values)
            v = squares / len(values)
            mean[c] = (1 - state.momentum) * mean[c] + state.momentum * m
            var[c] = (1 - state.momentum) * var[c] + state.momentum * squares / (len(values) - 1)
        out[:, c] = (x[:, c] - m) / (v + 1e-5) ** 0.5 * weight[c] + bias[c]
    return out, mean, var


@pytest.mark.parametrize("training", [True, False])
def test_segments_follow_the_equation_one_by_one(training):
    norm = filled(BranchBatchNorm2d(4, TWO)).train(training)
    truth = copy.deepcopy(norm)
    x = images(10)
    out = norm(x, SEGMENTS)
    for part, rows, (name, _) in zip(x.split([5, 3, 2]), out.split([5, 3, 2]), SEGMENTS, strict=True):
        state = truth.branch[name]
        expected, mean, var = by_hand(part, state, training)
        torch.testing.assert_close(rows, expected.float(), rtol=1e-5, atol=1e-5)
        state.running_mean.copy_(mean)
        state.running_var.copy_(var)
    for name in ("clean", "adv"):
        for buffer in ("running_mean", "running_var"):
            torch.testing.assert_close(
                norm.get_buffer(f"branch.{name}.{buffer}"), truth.get_buffer(f"branch.{name}.{buffer}")
            )


@pytest.mark.parametrize("training", [True, False])
def test_segments_equal_separate_calls_bitwise(training):
    norm = filled(BranchBatchNorm2d(4, TWO)).train(training)
    apart = copy.deepcopy(norm)
    x = images(10)
    out = norm(x, SEGMENTS)
    parts = [apart(part, name) for part, (name, _) in zip(x.split([5, 3, 2]), SEGMENTS, strict=True)]
    assert torch.equal(out, torch.cat(parts))
    assert all(torch.equal(a, b) for a, b in zip(norm.buffers(), apart.buffers(), strict=True))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("ours, theirs, shape", [
    (BranchBatchNorm2d, nn.BatchNorm2d, (6, 4, 3, 2)),
    (BranchBatchNorm1d, nn.BatchNorm1d, (6, 4)),
    (BranchBatchNorm1d, nn.BatchNorm1d, (6, 4, 5)),
])  # fmt: skip
def test_one_branch_is_torchs_batch_norm(ours, theirs, shape, training):
    norm = filled(ours(4, BatchNormConfig(momentum=(0.3,)))).train(training)
    rival = theirs(4, momentum=0.3).train(training)
    rival.load_state_dict({key.removeprefix("branch.clean."): value for key, value in norm.state_dict().items()}, False)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    out, expected = norm(a, "clean"), rival(b)
    out.square().sum().backward()
    expected.square().sum().backward()
    assert torch.equal(out, expected)
    assert torch.equal(a.grad, b.grad)
    assert torch.equal(norm.branch["clean"].weight.grad, rival.weight.grad)
    assert torch.equal(norm.branch["clean"].running_mean, rival.running_mean)
    assert torch.equal(norm.branch["clean"].running_var, rival.running_var)


def test_momentum_is_the_weight_of_the_new_batch_per_branch():
    norm = BranchBatchNorm1d(1, BatchNormConfig(("a", "b"), "a", momentum=(0.25, 0.5)))
    # Batch mean 6 and unbiased variance 2 * 2**2 = 8, from running mean 0 and variance 1.
    norm(torch.tensor([[4.0], [8.0], [4.0], [8.0]]), (("a", 2), ("b", 2)))
    assert norm.branch["a"].running_mean.item() == 1.5
    assert norm.branch["b"].running_mean.item() == 3.0
    assert norm.branch["a"].running_var.item() == 0.75 * 1 + 0.25 * 8
    assert norm.branch["b"].running_var.item() == 0.5 * 1 + 0.5 * 8


def test_a_branch_leaves_the_other_alone():
    norm = filled(BranchBatchNorm2d(4, TWO))
    before = {key: value.clone() for key, value in norm.state_dict().items()}
    norm(images(6), "adv").sum().backward()
    for key, value in norm.state_dict().items():
        assert torch.equal(value, before[key]) == (not key.startswith("branch.adv.running")), key
    assert norm.branch["clean"].weight.grad is None
    assert norm.branch["adv"].bias.grad is not None


def test_state_keys():
    names = {f"branch.{b}.{n}" for b in ("clean", "adv") for n in ("weight", "bias", "running_mean", "running_var")}
    assert set(BranchBatchNorm2d(4, TWO).state_dict()) == names
    assert set(BranchBatchNorm1d(4, SHARED).state_dict()) == names


def tied(norm):
    clean, adv = norm.branch["clean"], norm.branch["adv"]
    return clean.weight is adv.weight and clean.bias is adv.bias


def test_shared_affine_is_one_parameter():
    norm = BranchBatchNorm2d(4, SHARED)
    assert tied(norm)
    assert tied(copy.deepcopy(norm))
    assert tied(norm.double().float())
    assert len(list(norm.parameters())) == 2
    assert len(list(BranchBatchNorm2d(4, TWO).parameters())) == 4
    norm(images(8), (("clean", 4), ("adv", 4))).sum().backward()
    # d(sum of w * z + b)/db counts every value of a channel, in both segments: 8 images of 3x2 pixels.
    assert norm.branch["clean"].bias.grad.tolist() == [48.0] * 4
    assert not torch.equal(norm.branch["clean"].running_mean, norm.branch["adv"].running_mean)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("config", [TWO, SHARED], ids=["separate", "shared"])
def test_safetensors_round_trip(config, assign):
    norm = filled(BranchBatchNorm2d(4, config))
    data = save({key: value.detach().clone().contiguous() for key, value in norm.state_dict().items()})
    other = BranchBatchNorm2d(4, config)
    other.load_state_dict(load(data), strict=True, assign=assign)
    x = images(10)
    assert torch.equal(norm.eval()(x, SEGMENTS), other.eval()(x, SEGMENTS))
    assert tied(other) == (config.affine == "shared")


def test_shared_refuses_branches_that_differ():
    weights = filled(BranchBatchNorm2d(4, TWO)).state_dict()
    with pytest.raises(RuntimeError, match=r"branch\.\*\.weight differ, but this model shares them"):
        BranchBatchNorm2d(4, SHARED).load_state_dict(weights)


@pytest.mark.parametrize("branch, message", [
    ("avd", r"branch must be one of \('clean', 'adv'\), got 'avd'"),
    ((("clean", 3), ("avd", 3)), "got 'avd'"),
    ((("clean", 3), ("adv", 4)), "sum to the 6 rows"),
    ((("clean", 6), ("adv", 0)), "positive"),
    ((("clean", 7), ("adv", -1)), "positive"),
    ((), "sum to the 6 rows"),
])  # fmt: skip
def test_wrong_branches(branch, message):
    with pytest.raises(ValueError, match=message):
        BranchBatchNorm2d(4, TWO)(images(6), branch)


def test_one_value_per_channel():
    norm = BranchBatchNorm2d(4, TWO)
    x = images(4)[:, :, :1, :1]
    with pytest.raises(ValueError, match=r"more than one value per channel, got an input of shape \(1, 4, 1, 1\)"):
        norm(x, (("clean", 3), ("adv", 1)))
    assert norm.eval()(x, (("clean", 3), ("adv", 1))).shape == (4, 4, 1, 1)
    with pytest.raises(ValueError, match="BranchBatchNorm2d expects 4 dimensions"):
        norm(x[..., 0, 0], "clean")


@pytest.mark.parametrize("values, message", [
    ({"branches": ()}, "one or more"),
    ({"branches": ("clean", "clean")}, "different"),
    ({"branches": ("clean", "a.b")}, "identifiers"),
    ({"branches": ("clean", "train")}, "'train'"),
    ({"branches": ("clean", "training")}, "'training'"),
    ({"branches": ("normal", "pgd")}, r"evaluation_branch must be one of \('normal', 'pgd'\), got 'clean'"),
    ({"affine": "tied"}, "'separate' or 'shared'"),
    ({"momentum": (0.1, 0.01)}, "1 or 1 values, got 2"),
    ({"momentum": (1.5,)}, r"\[0, 1\]"),
])  # fmt: skip
def test_impossible_configurations(values, message):
    with pytest.raises(UserError, match=message):
        BatchNormConfig(**values)


@pytest.mark.parametrize("training", [True, False])
def test_compiles_without_graph_breaks(training):
    norm = filled(BranchBatchNorm2d(4, TWO)).train(training)
    eager = copy.deepcopy(norm)
    compiled = torch.compile(norm, backend="aot_eager", fullgraph=True)
    for rows, branch in ((10, SEGMENTS), (6, "adv")):
        a, b = images(rows).requires_grad_(), images(rows).requires_grad_()
        out, expected = compiled(a, branch), eager(b, branch)
        torch.testing.assert_close(out, expected)
        out.square().sum().backward()
        expected.square().sum().backward()
        torch.testing.assert_close(a.grad, b.grad)
    for a, b in zip(norm.buffers(), eager.buffers(), strict=True):
        torch.testing.assert_close(a, b)
