"""A method, a data set and an encoder of one's own, from a module outside the package: ``--import``."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import clead
from clead import study, train
from clead.cli import plans
from clead.config import TrainConfig
from clead.data import DATASETS
from clead.engine.progress import Progress
from clead.errors import UserError
from clead.evaluate.command import main as evaluate
from clead.methods import METHODS
from clead.methods.clead import CLead
from clead.methods.pgd_at import PGDAdversarialTraining
from clead.models import ENCODERS
from clead.own_modules import import_own
from clead.recipes import RECIPES, default_recipe

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = re.search(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)[1]
OWN = """
import torch
from clead.data import DATASETS, Dataset, Splits
from clead.models import ENCODERS, DigitsEncoder

def load(data_dir, *, download=False, image_size=None):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(96) % 2
    images = (torch.rand(96, 3, 16, 16, generator=generator) * 100 + 120 * labels.view(-1, 1, 1, 1)).to(torch.uint8)
    part = Dataset("mine/train", images, labels, ("dark", "light"), 255)
    return Splits.published(part, part)

DATASETS["mine"], ENCODERS["mine"] = load, DigitsEncoder
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with the example of CONTRIBUTING.md as example.py, and OWN as own.py; nothing stays registered."""
    (tmp_path / "example.py").write_text(EXAMPLE)
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = [(registry, dict(registry)) for registry in (METHODS, DATASETS, ENCODERS)]
    yield tmp_path
    for registry, entries in before:
        registry.clear()
        registry.update(entries)
    for name in ("example", "own", "broken"):
        sys.modules.pop(name, None)


def test_the_example_of_contributing_trains_resumes_and_is_evaluated_from_outside(own, capsys):
    few = ["--epochs", "1", "--batch-size", "16", "--linear-eval.epochs", "1", "--linear-eval.batch-size", "16"]
    few += ["--evaluation.samples", "8", "--evaluation.attacks", "fgsm", "--evaluation.eps", "0.1"]
    imported = ["--import", "example,own", "--data", "mine", "--encoder.name", "mine"]
    train.main(["twins", *imported, *few, "--augment", "crop_flip", "--out", "run"])
    assert "twins" in capsys.readouterr().out
    train.main(["twins", "--import", "example,own", "--resume", "--out", "run"])
    evaluate(["run", "--import=example,own", "--attacks", "pgd2", "--eps", "0.1", "--samples", "8"])
    assert "pgd2 linf eps 0.1" in capsys.readouterr().out
    assert clead.load("run").features(torch.rand(2, 3, 16, 16), branch="clean").shape == (2, 128)


@pytest.mark.parametrize("words", [["--import", "example", "--import=own"], ["--imp", "example,own"]])
def test_every_import_counts(own, words):
    import_own(["run", *words, "--attacks", "fgsm"])
    assert "twins" in METHODS and "mine" in DATASETS


def test_the_study_is_of_methods_with_a_recipe_for_the_digits(own, tmp_path):
    import_own(["--import", "own"])
    METHODS["mine"] = type("Mine", (CLead,), {})
    RECIPES["mine_own"] = replace(RECIPES["clead_cifar10"], name="mine_own", method="mine")
    try:
        with pytest.raises(UserError, match="mine needs a recipe for the digits to be in the study, found mine_own"):
            study.study("mine", 0, tmp_path / "run", None, Progress())
    finally:
        del RECIPES["mine_own"]


def test_list_shows_a_method_of_ones_own(own, capsys):
    train.main(["--list", "--import", "example"])
    assert re.search(r"^twins ", capsys.readouterr().out, re.MULTILINE)


def test_a_run_of_a_method_that_is_not_imported_says_how_to_bring_it(own):
    with pytest.raises(UserError, match=r"unknown method 'twins'.*--import MODULE"):
        plans(["twins"])


@pytest.mark.parametrize("name", ["absent", "example.py", "own.deeper", "."])
def test_a_module_that_is_not_there_is_one_sentence(own, name):
    with pytest.raises(UserError, match="--import must be a module that Python finds"):
        import_own(["--import", name])


def test_what_a_module_of_ones_own_raises_is_left_as_it_is(own):
    (own / "broken.py").write_text("import not_installed_at_all\n")
    with pytest.raises(ModuleNotFoundError, match="not_installed_at_all"):
        import_own(["clead", "--import", "broken"])


def test_a_method_without_a_recipe_borrows_what_it_shares_with_its_relative(monkeypatch):
    monkeypatch.setitem(METHODS, "mine", type("Mine", (CLead,), {}))
    recipe, theirs = default_recipe("mine", "digits"), RECIPES["clead_digits"]
    assert recipe.config == theirs.config and (recipe.name, recipe.method, recipe.paper) == ("mine_digits", "mine", "")
    assert default_recipe("mine", "cifar10").config == default_recipe("clead", "cifar10").config


def test_a_method_without_relatives_borrows_from_simclr_or_ce(monkeypatch):
    base = PGDAdversarialTraining.__mro__[1]
    monkeypatch.setitem(METHODS, "mine", type("Mine", (base,), {"Config": TrainConfig, "paper": ""}))
    assert default_recipe("mine", "digits").source.startswith("those of ce_digits")
    assert default_recipe("mine", "digits").config.encoder == RECIPES["ce_digits"].config.encoder


def test_the_commands_start_without_what_they_may_never_need():
    code = "import sys, clead.train, clead.evaluate.command; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"matplotlib", "scipy", "sklearn", "torch._dynamo"} & set(loaded)
