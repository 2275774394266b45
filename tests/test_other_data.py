"""The commands on data sets that no recipe of the method names."""

import json

import pytest
from PIL import Image

from clead import train
from clead.cli import plans
from clead.errors import UserError


@pytest.fixture
def photographs(tmp_path, monkeypatch):
    """Two classes of noise and of bars, in the layout of ImageNet."""
    monkeypatch.setenv("CLEAD_CACHE", str(tmp_path / "cache"))
    for part, count in (("train", 40), ("val", 10)):
        for name in ("bars", "noise"):
            folder = tmp_path / "photographs" / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                image = Image.effect_noise((20, 16), 60 + index).convert("RGB")
                if name == "bars":
                    image.paste((255, 255, 0), (index % 10, 0, index % 10 + 4, 16))
                image.save(folder / f"{index}.png")
    return tmp_path / "photographs"


def test_a_folder_of_images_goes_from_training_to_the_table(photographs, tmp_path):
    out = tmp_path / "run"
    arguments = ["pgd_at", "--data", "folder", "--data-dir", str(photographs), "--image-size", "8", "--epochs", "1"]
    arguments += ["--encoder.name", "digits_cnn", "--batch-size", "36", "--attack.steps", "1"]
    arguments += ["--evaluation.attacks", "fgsm", "--compare", "undefended", "--out", str(out)]
    train.main(arguments)
    rows = json.loads((out / "results.json").read_text())["results"]
    assert {(row["model"], row["samples"]) for row in rows} == {("trained", 20), ("undefended", 20)}
    assert {row["dataset"] for row in rows} == {"folder"}


def test_a_method_without_a_recipe_for_the_data_takes_that_for_cifar10():
    (plan,) = plans(["ascl", "--data", "cifar100"])
    assert (plan.recipe, plan.config.data, plan.config.epochs) == ("ascl_cifar10", "cifar100", 200)
    (plan,) = plans(["plain", "--data", "cifar100"])
    assert plan.recipe == "plain_cifar100"
    with pytest.raises(UserError, match="unknown data set 'cifar-100'; the nearest is 'cifar100'"):
        plans(["ascl", "--data", "cifar-100"])
