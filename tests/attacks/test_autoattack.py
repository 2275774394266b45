"""The library behind AutoAttack: checked before it is imported, and nothing left behind."""

import logging
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from clead.attacks import autoattack as wrapper
from clead.attacks.autoattack import autoattack
from clead.errors import UserError

needs_library = pytest.mark.skipif(not wrapper.available(), reason="needs pyautoattack (the extra evaluation)")


def network(classes=5):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, classes))


def problem(module, size=24):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(size, 1, 6, 6, generator=generator)
    module.eval()
    with torch.no_grad():
        return x, module(x).argmax(1)


def run(module, x, labels, attack="apgd_ce", norm="linf", eps=0.02, **settings):
    return autoattack(
        module, settings.pop("logits", module), x, labels, attack=attack, norm=norm, eps=eps, seed=0, batch_size=50
    )


@needs_library
def test_nothing_is_left_behind():
    module = network()
    x, labels = problem(module)
    module[1].train()
    module[4].bias.requires_grad_(False)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    generator, tracer = torch.random.get_rng_state(), sys.gettrace()
    log = logging.getLogger("auto-attack")
    handlers, propagate = list(log.handlers), log.propagate

    def trace(frame, event, argument):
        return None

    sys.settrace(trace)
    try:
        run(module, x[:6], labels[:6], "fab")
        assert sys.gettrace() is trace
    finally:
        sys.settrace(tracer)
    assert [m.training for m in module.modules()] == [False, False, True, False, False, False]
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())
    assert [p.requires_grad for p in module.parameters()] == [True] * 5 + [False]
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert (log.handlers, log.propagate) == (handlers, propagate)


@needs_library
def test_it_is_the_library_called_by_hand():
    module = network()
    x, labels = problem(module)
    ours, flags = run(module, x, labels, "apgd_ce", eps=0.2)
    library = sys.modules["pyautoattack"]
    with torch.random.fork_rng():
        by_hand = library.AutoAttack(module, norm="Linf", eps=0.2, seed=0, version="custom", attacks=["apgd-ce"])
        by_hand.apgd.n_restarts = 1
        tracer = sys.gettrace()
        theirs, _ = by_hand.run_standard_evaluation(x, labels, batch_size=50)
        sys.settrace(tracer)
    assert flags == () and torch.equal(ours, theirs) and not torch.equal(ours, x)


@needs_library
@pytest.mark.parametrize(("classes", "attack", "flags"), [(2, "fab", ()), (3, "apgd_dlr", ()), (4, "apgd_t", ())])
def test_few_classes_are_no_crash(classes, attack, flags):
    module = network(classes)
    x, labels = problem(module, 8)
    x_adv, found = run(module, x, labels, attack)
    assert found == flags and (x_adv - x).abs().max() <= 0.02 + 1e-6


@needs_library
def test_too_few_classes_for_an_attack_are_an_error():
    module = network(3)
    with pytest.raises(UserError, match="apgd_t needs 4 classes or more, got 3"):
        run(module, *problem(module, 8), "apgd_t")


@needs_library
def test_what_the_library_suspects_becomes_a_flag():
    module = network()
    x, labels = problem(module)
    generator = torch.Generator().manual_seed(0)
    noisy = lambda z: module(z) + torch.randn(len(z), 5, generator=generator)  # noqa: E731
    assert "random_outputs" in run(module, x, labels, logits=noisy)[1]
    assert run(module, x, labels, logits=lambda z: module(z).softmax(1))[1] == ("softmax_outputs",)
    quantised = lambda z: module((z * 4).round() / 4)  # noqa: E731
    assert "zero_gradients" in run(module, x, labels, "apgd_dlr", logits=quantised)[1]


def test_an_absent_library_is_one_sentence(monkeypatch):
    monkeypatch.setattr(wrapper.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"need the library pyautoattack 0\.2\.0, found none: pip install pyautoattack"):
        run(network(), *problem(network(), 2))


@needs_library
def test_an_altered_library_is_never_imported(monkeypatch, tmp_path):
    source = Path(wrapper.importlib.util.find_spec("pyautoattack").origin).parent
    shutil.copytree(source, tmp_path / "pyautoattack", ignore=shutil.ignore_patterns("examples", "__pycache__"))
    square = tmp_path / "pyautoattack" / "square.py"
    square.write_text(square.read_text() + "\n")
    for name in [name for name in sys.modules if name.split(".")[0] == "pyautoattack"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=r"square\.py: expected the file of pyautoattack 0\.2\.0"):
        run(network(), *problem(network(), 2))
    assert "pyautoattack" not in sys.modules
