"""The examples run as they are, and print what they promise."""

from __future__ import annotations

import re
import runpy
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import clead_kernels

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")

EXAMPLES = Path(clead_kernels.__file__).parents[1] / "examples"
NUMBER = re.compile(r"-?\d+\.\d+")


@pytest.fixture
def printed(capsys):
    """``printed(name)``: the lines of an example, run in this process, and its variables."""

    def run(name: str):
        with torch.random.fork_rng():
            names = runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out.splitlines(), names

    return run


def numbers(line: str) -> list[float]:
    return [float(x) for x in NUMBER.findall(line)]


def test_every_example_is_tested_and_short():
    tested = {name.removeprefix("test_example_") for name in globals() if name.startswith("test_example_")}
    assert tested == {file.stem for file in EXAMPLES.iterdir() if file.suffix == ".py"}
    assert all(len(file.read_text().splitlines()) <= 60 for file in EXAMPLES.glob("*.py"))


def test_example_simclr(printed):
    before, *steps, after = printed("simclr")[0]
    assert numbers(after)[0] > numbers(before)[0] + 10
    assert numbers(steps[-1])[0] < numbers(steps[0])[0]


def test_example_learnable_temperature(printed):
    *steps, accuracy = printed("learnable_temperature")[0]
    temperatures = [numbers(line)[1] for line in steps]
    assert temperatures[0] == pytest.approx(0.5, abs=0.01) and temperatures[-1] < 0.4
    assert numbers(accuracy)[0] > 90


def test_example_false_negatives(printed):
    first, _, *lines = printed("false_negatives")[0]
    plain = numbers(first)[0]
    table = {line[:28].strip(): numbers(line[28:]) for line in lines[:6]}
    assert table["true classes"][1:3] == [100.0, 100.0]
    # A rule that cancels less is right more often; one that cancels leaves a smaller sum, so a smaller loss.
    assert table["threshold 0.7"][0] < table["threshold 0.5"][0]
    assert table["threshold 0.7"][1] > table["threshold 0.5"][1] > 50
    assert table["clusters and threshold 0.5"][0] < min(table["clusters"][0], table["threshold 0.5"][0])
    assert all(row[3] < plain for row in table.values())
    half, attracted = (numbers(line)[-1] for line in lines[6:])
    assert table["threshold 0.7"][3] < half < plain < attracted


def test_example_pgd(printed):
    clean, *attacks = printed("pgd")[0]
    assert numbers(clean)[0] > 85 and len(attacks) == 3
    for line in attacks:
        eps, robust, distance, highest = numbers(line)
        assert robust < numbers(clean)[0] - 20
        assert 0.9 * eps < distance <= eps + 5e-5 and highest == 1.0


def test_example_drop_in(printed):
    lines, names = printed("drop_in")
    found = {line.split(": ")[0]: numbers(line.split(": ")[1])[0] for line in lines if "library" not in line}
    assert len(found) == 8
    a, b = names["a"].double(), names["b"].double()
    own = torch.arange(len(a))
    images, texts = F.normalize(a), F.normalize(b)
    clip = (F.cross_entropy(14 * images @ texts.t(), own) + F.cross_entropy(14 * texts @ images.t(), own)) / 2
    assert found["open_clip ClipLoss"] == pytest.approx(clip.item(), abs=1e-4)
    ranking = F.cross_entropy(20 * images @ texts.t(), own)
    name = "sentence-transformers MultipleNegativesRankingLoss"
    assert found[name] == pytest.approx(ranking.item(), abs=1e-4)
    theirs = [index for index, line in enumerate(lines) if "library" in line]
    assert len(theirs) == (2 if find_spec("pytorch_metric_learning") else 0)
    for index in theirs:
        assert numbers(lines[index])[0] == pytest.approx(numbers(lines[index - 1])[0], abs=2e-4)
