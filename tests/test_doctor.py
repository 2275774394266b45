"""The doctor: words for a broken installation, and steps done once more."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import save_file

from clead import train
from clead.cli import Plan
from clead.config import FinetuneConfig
from clead.doctor import install
from clead.doctor.command import main
from clead.doctor.install import examine
from clead.engine.progress import Progress
from clead.errors import UserError
from clead.recipes import RECIPES

ROOT = Path(__file__).resolve().parents[1]


def doctor(argv):
    with pytest.raises(SystemExit) as left:
        main(argv)
    return left.value.code


def test_here_all_is_well(capsys):
    assert doctor([]) == 0
    out = capsys.readouterr().out
    assert f"torch {torch.__version__}" in out and "info_nce computes what it should" in out
    assert out.splitlines()[-1] == "clead is ready"


def states(findings):
    return {finding.what: (finding.state, finding.mend) for finding in findings}


@pytest.mark.parametrize("name", ["torch", "safetensors.torch", "scipy.ndimage", "clead_kernels._native"])
def test_a_library_that_does_not_import_is_named_with_its_command(name, monkeypatch, capsys):
    original = install.load
    monkeypatch.setattr(install, "load", lambda wanted: "ImportError: boom" if wanted == name else original(wanted))
    assert doctor([]) == 1
    lines = capsys.readouterr().out.splitlines()
    (index,) = (index for index, line in enumerate(lines) if "does not import: ImportError: boom" in line)
    assert lines[index].startswith("BROKEN") and lines[index + 1].strip().startswith("mend it with: ")
    assert "1 of" in lines[-1] and lines[-1].endswith("checks failed")


def test_an_old_torch_is_named(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    (finding,) = install.check_torch()
    assert finding.state == "broken" and finding.what == "torch 2.9.1+cpu; clead needs 2.11"


def test_absent_kernels_name_what_is_missing_to_build_them(monkeypatch):
    from clead_kernels import _native

    monkeypatch.setattr(_native, "_module", None)
    monkeypatch.setattr(_native, "_reason", "the extension does not load with torch 2.13 (undefined symbol: f)")
    found = states(install.check_kernels())
    assert any("does not load with torch 2.13 (undefined symbol: f)" in what for what in found)
    assert any("they can be built here" in what and mend for what, (_, mend) in found.items())
    monkeypatch.setattr(install.shutil, "which", lambda name: None)
    assert states(install.check_kernels())["they cannot be built: no C++ compiler"][1].startswith("sudo apt-get")


def test_an_old_cpu_and_a_wrong_answer_are_named(monkeypatch):
    import clead_kernels
    from clead_kernels import _native

    old = {"isas": "baseline avx2", "isa": "baseline", "compiler": "g++"}
    monkeypatch.setattr(_native, "_module", object())
    monkeypatch.setattr(_native, "build_info", lambda: old)
    assert any(what.startswith("this CPU has no AVX2") for what in states(install.check_kernels()))
    monkeypatch.setattr(clead_kernels, "info_nce", lambda rows, *_, **__: rows.sum())
    (finding,) = install.check_operators()
    assert finding.state == "broken" and finding.what.startswith("info_nce gives 2.0 instead of 0.313")


def test_triton_that_is_absent_broken_or_old_is_a_note_with_its_command(monkeypatch):
    expected = {
        None: "no Triton: only needed on a GPU",
        "ImportError: boom": "Triton does not import: ImportError: boom",
    }
    expected |= {"3.5.1": "Triton 3.5.1; clead needs 3.6"}
    for found, sentence in expected.items():
        module = SimpleNamespace(__version__=found) if found == "3.5.1" else found
        monkeypatch.setattr(install.importlib.util, "find_spec", lambda name, found=found: found)
        monkeypatch.setattr(install, "load", lambda name, module=module: module)
        (finding,) = install.check_triton()
        assert (finding.state, finding.what) == ("note", sentence)
        assert finding.mend.startswith(install.INSTALL) and "'triton>=3.6'" in finding.mend


def test_a_broken_torchvision_is_no_obstacle(tmp_path, monkeypatch):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = states(examine())
    (what,) = (what for what in found if "torchvision" in what)
    assert "RuntimeError: operator torchvision::nms does not exist" in what
    assert found[what] == ("note", f"{sys.executable} -m pip uninstall torchvision")


def test_the_doctor_needs_nothing_that_may_be_broken(tmp_path):
    for name in ("torch", "numpy", "tyro", "rich"):
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} is broken')")
    path = os.pathsep.join(map(str, (tmp_path, ROOT, ROOT / "kernels")))
    done = subprocess.run(
        [sys.executable, "-m", "clead.doctor"], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert "BROKEN torch does not import: ImportError: torch is broken" in done.stdout
    assert "BROKEN tyro does not import: ImportError: tyro is broken" in done.stdout


# replaying


def broken_run(path, stage):
    """A run whose batches of step 3 hold a NaN, and the file it left."""
    recipe = RECIPES["simclr_digits"]
    tuning = FinetuneConfig(epochs=1, batch_size=100)
    stages = ("pretrain",) if stage == "pretrain" else ("pretrain", stage)
    config = replace(recipe.config, epochs=1, batch_size=100, train_samples=400, stages=stages, full_finetune=tuning)
    config = replace(config, linear_eval=replace(config.linear_eval, epochs=1))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError) as stop:
        module = train.Dataset
        original = module.batch

        def poisoned(self, indices):
            images = original(self, indices)
            return images * float("nan") if len(indices) == 100 and poisoned.on else images

        poisoned.on = stage == "pretrain"
        patch.setattr(module, "batch", poisoned)
        if stage == "linear_eval":
            finetune = sys.modules["clead.protocols.finetune"]  # the package has a function of this name
            encode = finetune.encode
            patch.setattr(finetune, "encode", lambda *a, **k: encode(*a, **k) * float("inf"))
        elif stage == "full_finetune":
            pretrain = train.pretrain

            def and_then(*arguments):
                pretrain(*arguments)
                poisoned.on = True

            patch.setattr(train, "pretrain", and_then)
        train.run(Plan("simclr", recipe.name, config, path, False, False), Progress(Console(quiet=True)))
    return str(stop.value), next(path.glob("nonfinite-*"))


@pytest.mark.parametrize("stage", ["pretrain", "full_finetune", "linear_eval"])
def test_a_step_is_replayed_and_its_first_layer_named(stage, tmp_path, capsys):
    message, file = broken_run(tmp_path / "run", stage)
    assert f"python -m clead.doctor --repro {file}" in message and message.startswith(f"{stage}, step 1: the loss term")
    assert doctor(["--repro", str(file)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{stage}, step 1 of simclr:" and "not finite" in lines[1]
    assert lines[-1].strip().startswith("reproduced: ")

    with safe_open(file, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        metadata = opened.metadata()
    tensors["batch.images"] = torch.rand_like(tensors["batch.images"])
    save_file(tensors, file, metadata)
    assert doctor(["--repro", str(file)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].strip() == "all is finite here"


def test_the_layer_that_overflows_is_named(tmp_path, capsys):
    _, file = broken_run(tmp_path / "run", "pretrain")
    with safe_open(file, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        metadata = opened.metadata()
    tensors["batch.images"] = torch.rand_like(tensors["batch.images"])
    tensors["model.heads.projector.layers.0.weight"].fill_(3e38)
    save_file(tensors, file, metadata)
    assert doctor(["--repro", str(file)]) == 1
    assert "heads.projector" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda tensors, meta: tensors.pop("batch.images"), "expected a batch of simclr, found 'images'"),
        (lambda tensors, meta: meta.pop("config"), "expected a batch that a run wrote, found 'config'"),
        (lambda tensors, meta: meta.update(meta="[]"), "expected a batch of schema 1"),
        (lambda tensors, meta: meta.update(config="[]"), "expected a configuration, found list"),
        (
            lambda tensors, meta: meta.update(config='{"method": "os.system", "values": {}}'),
            "unknown method 'os.system'",
        ),
    ],
)
def test_a_file_of_something_else_is_one_sentence(change, expected, tmp_path):
    _, file = broken_run(tmp_path / "run", "pretrain")
    with safe_open(file, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        metadata = opened.metadata()
    change(tensors, metadata)
    save_file(tensors, file, metadata)
    with pytest.raises(UserError) as refused:
        main(["--repro", str(file)])
    assert expected in str(refused.value) and json.dumps(str(file))[1:-1] in str(refused.value)
