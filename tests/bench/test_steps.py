"""Whole steps through the harness, and that the plain form costs what the official codes cost."""

from dataclasses import replace

import pytest
import torch

import bench.steps.run as harness
from bench import rows
from bench.__main__ import main, parse
from bench.run import Options
from bench.steps import convolutions, optimizers
from bench.steps.cases import FORMS, StepCase, prepare
from bench.steps.loading import PILLoading
from clead.augment import AUGMENTATIONS
from clead.rng import Rng
from clead_kernels import build_info

# Passes over a batch, a backward pass counting 1 for the images and 1 for the weights, from the official codes:
# (method, attack steps, plain, needed).
PASSES = [
    ("simclr", 0, 6, 6),
    ("pgd_at", 5, 18, 13),
    ("trades", 5, 21, 17),
    ("rocl", 5, 35, 26),
    ("acl", 5, 42, 32),
    ("advcl", 5, 50, 35),
    ("clae", 1, 15, 12),
]


@pytest.mark.parametrize(("method", "steps", "plain", "needed"), PASSES)
def test_plain_steps_cost_what_the_official_codes_cost(method, steps, plain, needed):
    case = StepCase(method, "digits", 16, steps)
    found = {}
    for name, number in (("plain", plain), ("fold", needed)):
        step = prepare(case, FORMS[name], "cpu")
        step.once()
        with harness._Watch("cpu") as watch:
            step.once()
        found[name] = (watch.flops, number)
    one_pass = 2 * 16 * 1.2e6  # multiply-adds of the digits' encoder, as its docstring has them
    for flops, number in found.values():
        assert flops / one_pass == pytest.approx(number, rel=0.12)
    ratio = found["plain"][0] / found["fold"][0]
    assert ratio == pytest.approx(plain / needed, rel=0.04)


def test_rows_of_a_step(monkeypatch, tmp_path):
    monkeypatch.setattr(harness, "grid", lambda quick, cuda: [StepCase("acl", "digits", 8, steps=1)])
    lines = []
    found, sound = harness.run(
        Options(quick=True, memory=False, cases="step/", json=tmp_path / "rows.json"), lines.append
    )
    assert sound and all(tuple(row) == rows.COLUMNS for row in found)
    full = {row["impl"]: row for row in found if row["mode"] == "full"}
    assert set(full) == {name for name in FORMS if "graph" not in name}
    for name, row in full.items():
        if row["reason"]:
            assert name == "fold+compile"
            continue
        assert row["ratio_to_eager"] == pytest.approx(full["plain"]["p50_ms"] / row["p50_ms"])
        assert 0 < row["ratio_to_line"] < 1.5
        parts = {other["mode"]: other["p50_ms"] for other in found if other["impl"] == name}
        assert all(parts[part] > 0 for part in harness.PARTS)
    assert full["fold"]["value_error"] < 1e-2 and full["plain+loading"]["value_error"] is None
    assert [row["p50_ms"] for row in rows.read(tmp_path / "rows.json")] == [row["p50_ms"] for row in found]
    parse(full["fold"]["command"].split()[3:])
    shown = "\n".join(lines)
    loading = full["plain+loading"]["p50_ms"] / full["fold"]["p50_ms"]
    (fold,) = [line.split() for line in shown.splitlines() if line.startswith("fold ")]
    assert "images/s" in shown and float(fold[6]) == pytest.approx(loading, abs=0.01)


def test_another_step_gets_no_number(monkeypatch):
    monkeypatch.setattr(harness, "grid", lambda quick, cuda: [StepCase("pgd_at", "digits", 8, steps=1)])
    prepared = harness.prepare

    def wrong(case, form, device):
        step = prepared(case, form, device)
        if not form.plain:
            run = step.stages[0]
            step.stages = [lambda: (run(), step.terms.update(more=torch.tensor(1.0)))]
        return step

    monkeypatch.setattr(harness, "prepare", wrong)
    found, sound = harness.run(Options(quick=True, memory=False, cases="step/", impls=("fold",)), lambda line: None)
    fold = next(row for row in found if row["impl"] == "fold")
    assert not sound and fold["p50_ms"] is None and fold["reason"].startswith("wrong: the loss is off by")


def test_rows_of_an_optimizer(monkeypatch):
    lines = []
    options = Options(quick=True, memory=False, cases="optimizer/lars")
    found, sound = harness.run(options, lines.append)
    assert sound and [row["impl"] for row in found] == ["loop", "clead"]
    assert all(tuple(row) == rows.COLUMNS and row["case"] == "lars-resnet18" for row in found)
    assert found[1]["ratio_to_eager"] == pytest.approx(found[0]["p50_ms"] / found[1]["p50_ms"])
    parse(found[1]["command"].split()[3:])
    monkeypatch.setitem(optimizers.CONFIGS, "lars", replace(optimizers.CONFIGS["lars"], decay_vectors=False))
    found, sound = harness.run(options, lines.append)
    assert not sound and found[1]["reason"].startswith("wrong: weights are off by") and found[1]["p50_ms"] is None


@pytest.mark.skipif(not build_info(), reason="no native kernels")
def test_rows_of_a_convolution(monkeypatch):
    lines = []
    options = Options(quick=True, memory=False, cases="convolution/")
    found, sound = harness.run(options, lines.append)
    assert sound and {row["mode"] for row in found} == {"forward", "data", "weight"}
    assert all(tuple(row) == rows.COLUMNS and 0 < row["value_error"] < 2e-6 for row in found)
    forward = {row["impl"]: row for row in found if row["mode"] == "forward"}
    assert list(forward) == ["torch", "channels-last", "clead", "clead-packed"]
    assert forward["clead"]["ratio_to_eager"] == pytest.approx(forward["torch"]["p50_ms"] / forward["clead"]["p50_ms"])
    assert forward["clead"]["flops"] == 2 * 9 * 64 * 64 * 4 * 4 * 64
    parse(found[1]["command"].split()[3:])
    monkeypatch.setattr(convolutions, "PackedConv3x3", lambda weight: lambda x: 1.001 * x)
    found, sound = harness.run(replace(options, cases="convolution/forward"), lines.append)
    assert not sound and [row["impl"] for row in found if row["reason"].startswith("wrong: off by")] == ["clead-packed"]


@pytest.mark.parametrize(("name", "channels"), [("simclr", 3), ("crop_flip", 3), ("digits", 1)])
def test_loaded_images_are_like_ours(name, channels):
    ramp = torch.linspace(0, 1, 16).expand(channels, 16, 16)
    pool = (ramp * torch.linspace(0.2, 1, channels).view(-1, 1, 1)).repeat(1000, 1, 1, 1)
    rng = Rng.create(0, "augment", torch.arange(1000))
    ours, theirs = (augment(pool, rng) for augment in (AUGMENTATIONS[name], PILLoading(AUGMENTATIONS[name], pool)))
    assert theirs.shape == ours.shape and theirs.dtype == ours.dtype and theirs.min() >= 0 and theirs.max() <= 1
    torch.testing.assert_close(theirs.mean(0), ours.mean(0), rtol=0, atol=0.06)
    torch.testing.assert_close(theirs.std(0), ours.std(0), rtol=0, atol=0.06)
    unchanged = PILLoading(AUGMENTATIONS["none"], pool)(pool, rng.view(1))
    torch.testing.assert_close(unchanged, pool, rtol=0, atol=0.5 / 255 + 1e-6)


def test_arguments(capsys):
    with pytest.raises(SystemExit):
        parse(["steps", "loss"])
    assert main(["steps", "--case", "nothing like it", "--device", "cpu"]) == 2
    assert "no step has" in capsys.readouterr().err
