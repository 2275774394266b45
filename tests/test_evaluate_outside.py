"""Models that no run of ours trained, through the command."""

import json

import pytest
import torch
from PIL import Image

from clead.errors import UserError
from clead.evaluate.command import main
from clead.models import BatchNormConfig, LinearHead, Model, ResNet, initialise

COLORS = {"blue": (30, 30, 200), "red": (200, 30, 30)}


@pytest.fixture
def images(tmp_path, monkeypatch):
    """Two classes that one colour tells apart."""
    monkeypatch.setenv("CLEAD_CACHE", str(tmp_path / "cache"))
    for part, count in (("train", 30), ("val", 10)):
        for name, color in COLORS.items():
            folder = tmp_path / "images" / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (8, 8), tuple(c + index for c in color)).save(folder / f"{index}.png")
    return tmp_path / "images"


# A classifier that looks at red minus blue.
THEIRS = """
import torch

class Redness(torch.nn.Module):
    def forward(self, x):
        difference = (x[:, 0] - x[:, 2]).mean((1, 2))
        return torch.stack([-difference, difference], 1)

def build():
    return Redness()
"""


def rows(out):
    return {(row["name"], row["eps"]): row for row in json.loads((out / "results.json").read_text())["results"]}


def test_a_function_of_the_users(images, tmp_path, monkeypatch):
    (tmp_path / "theirs.py").write_text(THEIRS)
    monkeypatch.syspath_prepend(tmp_path)
    data = ["--data", "folder", "--data-dir", str(images), "--image-size", "8", "--out", str(tmp_path / "out")]
    # |red - blue| is 170 of 255 in every image: 84/255 on both channels leaves a gap of 2/255, 86/255 turns it over.
    main(["theirs:build", *data, "--attacks", "fgsm", "--eps", "84/255,86/255"])
    found = rows(tmp_path / "out")
    assert found["clean", None]["accuracy"] == 1 and found["clean", None]["run"] == "theirs:build"
    assert found["fgsm", 84 / 255]["accuracy"] == 1 and found["fgsm", 86 / 255]["accuracy"] == 0
    with pytest.raises(UserError, match="knn and logistic_regression need features"):
        main(["theirs:build", *data, "--protocols", "knn"])
    for name, message in (
        ("theirs:other", "expected a function that returns a model, found AttributeError"),
        ("nowhere:build", "found ModuleNotFoundError"),
        ("builtins:dict", "expected a function that returns a torch.nn.Module, found dict"),
    ):
        with pytest.raises(UserError, match=message):
            main([name, *data])
    with pytest.raises(UserError, match="a model from outside needs --out"):
        main(["theirs:build", *data[:-2]])


@pytest.fixture
def official(tmp_path):
    """An ACL pre-training's file: two batch norms, of which the adversarial one differs."""
    bn = BatchNormConfig(("clean", "adv"), "adv")
    encoder = ResNet(18, in_channels=3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), bn=bn, width=4)
    initialise(Model(encoder, {"classifier": LinearHead(32, 2)}), 0)
    state = {}
    for key, value in encoder.state_dict().items():
        key = key.replace(".branch.clean", ".bn_list.0").replace(".branch.adv", ".bn_list.1")
        key = key.replace("downsample.0", "downsample.conv").replace("downsample.1", "downsample.bn")
        if not key.startswith("normalize"):
            state[key] = value + 0.1 if "bn_list.1" in key else value
    torch.save({"state_dict": state}, tmp_path / "acl.pt")
    return tmp_path / "acl.pt"


def test_an_official_encoder_gets_a_linear_classifier(images, official, tmp_path):
    arguments = [str(official), "--format", "acl", "--data", "folder", "--data-dir", str(images), "--image-size", "8"]
    arguments += ["--attacks", "fgsm", "--eps", "1/255", "--protocols"]
    main([*arguments, "attacks,knn,logistic_regression", "--out", str(tmp_path / "adv")])
    main([*arguments, "attacks,knn", "--out", str(tmp_path / "clean"), "--branch", "clean"])
    for branch in ("adv", "clean"):
        table = json.loads((tmp_path / branch / "results.json").read_text())["results"]
        protocols = {"linear_eval", "knn_features"} | ({"logistic_regression_features"} if branch == "adv" else set())
        assert {row["protocol"] for row in table} == protocols
        assert {(row["bn_branch"], row["samples"], row["run"]) for row in table} == {(branch, 20, "acl")}
        # Colours are told apart even by an untrained encoder.
        assert all(row["accuracy"] == 1 for row in table if row["name"] == "clean")
    with pytest.raises(UserError, match="--branch must be of clean, adv, got 'normal'"):
        main([*arguments, "attacks", "--out", str(tmp_path / "none"), "--branch", "normal"])
    with pytest.raises(UserError, match="acl.pt: expects images with 3 channels, found 1 in --data"):
        main([str(official), "--format", "acl", "--data", "digits", "--out", str(tmp_path / "none")])
    assert not (tmp_path / "none").exists()
