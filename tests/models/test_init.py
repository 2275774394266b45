import copy
import math

import pytest
import torch
from torch import nn

from clead.models import BatchNormConfig, LinearHead, Model, Projector, build_encoder, initialise

TWO = BatchNormConfig(branches=("clean", "adv"))


def make_model(width=8, zero_init=False, extra=False, global_seed=0):
    torch.manual_seed(global_seed)
    encoder = build_encoder("digits_cnn", in_channels=1, mean=(0.3,), std=(0.4,), bn=TWO, width=width)
    heads = {"extra": LinearHead(4 * width, 3)} if extra else {}
    heads |= {"projector": Projector(4 * width, 16, 8), "classifier": LinearHead(4 * width, 10, zero_init)}
    return Model(encoder, heads)


def same(a, b):
    return [key for key in a if key in b and torch.equal(a[key], b[key])]


def test_a_function_of_the_seed_alone():
    first, second = make_model(global_seed=1), make_model(global_seed=2)
    initialise(first, 7)
    torch.rand(3)
    state = torch.get_rng_state()
    initialise(second, 7)
    assert torch.equal(torch.get_rng_state(), state)
    assert same(first.state_dict(), second.state_dict()) == list(first.state_dict())
    initialise(second, 8)
    random = [name for name, _ in first.named_parameters() if ".branch." not in name]
    assert not set(same(first.state_dict(), second.state_dict())) & set(random)


def test_values_do_not_depend_on_what_else_there_is():
    with_extra, without = make_model(extra=True), make_model()
    initialise(with_extra, 7)
    initialise(without, 7)
    assert same(without.state_dict(), with_extra.state_dict()) == list(without.state_dict())


def test_parameters_of_one_shape_differ():
    encoder = build_encoder("resnet18", in_channels=1, mean=(0.3,), std=(0.4,), bn=TWO, width=4)
    initialise(encoder, 0)
    weights = [w.flatten() for name, w in encoder.named_parameters() if w.dim() == 4]
    for index, a in enumerate(weights):
        assert not any(torch.equal(a[:16], b[:16]) for b in weights[index + 1 :])


def test_statistics():
    conv, linear = nn.Conv2d(64, 96, 3), nn.Linear(256, 300)
    for module in (conv, linear):
        initialise(module, 3)
    # 55,296 and 76,800 values: the standard error of a standard deviation is below 0.4%.
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (96 * 9)), rel=0.05)
    assert conv.weight.mean().abs().item() < 0.05 * math.sqrt(2 / (96 * 9))
    assert ((conv.weight / conv.weight.std()).pow(4).mean()).item() == pytest.approx(3.0, rel=0.05)  # normal
    bound = 1 / math.sqrt(256)
    assert linear.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert linear.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert linear.weight.abs().max().item() <= bound
    assert linear.bias.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.15)
    assert linear.bias.abs().max().item() <= bound
    assert conv.bias.abs().max().item() <= 1 / math.sqrt(64 * 9)


def test_batch_norm_and_zero_heads():
    model = make_model(zero_init=True)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.encoder.conv1.buffers(), *model.encoder.bn2.buffers()):
            tensor.fill_(9.0)
    initialise(model, 0)
    for name, tensor in model.state_dict().items():
        if ".branch." in name:
            assert set(tensor.tolist()) == {1.0 if name.endswith(("weight", "var")) else 0.0}, name
    assert not model.heads["classifier"].weight.any()
    assert not model.heads["classifier"].bias.any()
    assert model.heads["projector"].layers[1].weight.all()
    assert model.encoder.normalization == ((0.3,), (0.4,))


def test_precision_rounds_the_same_values():
    single = make_model()
    double = copy.deepcopy(single).double()
    initialise(single, 5)
    initialise(double, 5)
    assert torch.equal(double.encoder.conv2.weight.float(), single.encoder.conv2.weight)


def test_an_unknown_layer_is_not_left_to_chance():
    with pytest.raises(TypeError, match="got '0' of Embedding"):
        initialise(nn.Sequential(nn.Embedding(3, 4)), 0)
