"""Models that no run of ours trained, through the command."""

import json
import os
import sys
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from clead import report
from clead.data import load
from clead.errors import UserError
from clead.evaluate.command import main
from clead.evaluate.models import first_samples
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

def noisy():
    # Left in train mode, in which it would be wrong half of the time.
    return torch.nn.Sequential(Redness(), torch.nn.Dropout(0.5)).train()

def halved():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2)).bfloat16()

class Odd(Redness):
    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, x):
        return self.change(super().forward(x))

def dictionary():
    return Odd(lambda logits: {"logits": logits})

def pair():
    return Odd(lambda logits: (logits, logits))

def half_logits():
    return Odd(lambda logits: logits.bfloat16())

def three_classes():
    return Odd(lambda logits: torch.cat([logits, logits[:, :1]], 1))

def labels():
    return Odd(lambda logits: logits.argmax(1))

def rows():
    return Odd(lambda logits: logits[:1])

def not_numbers():
    return Odd(lambda logits: logits.log().sqrt())

class Refuses(Redness):
    def forward(self, x):
        if len(x) > 2:
            raise KeyError("too\\nmany")
        return super().forward(x)

def refuses():
    return Refuses()

class Detached(Redness):
    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)

def detached():
    return Detached()

def beside():
    weights = torch.ones(2, requires_grad=True)  # that the module does not know, so that they are not frozen
    return Odd(lambda logits: logits.detach() * weights)

class Changes(Redness):
    def forward(self, x):
        return super().forward(x.mul_(0.5))

def changes():
    return Changes()

def lazy():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(2))

def leaves():
    raise SystemExit(0)

def ours():
    from clead.models import BatchNormConfig, LinearHead, Model, ResNet
    bn = BatchNormConfig(("clean", "adv"), "adv")
    encoder = ResNet(18, in_channels=3, mean=(0.5,) * 3, std=(0.5,) * 3, bn=bn, width=2)
    return Model(encoder, {"classifier": LinearHead(16, 2)})
"""


def rows(out):
    return {(row["name"], row["eps"]): row for row in json.loads((out / "results.json").read_text())["results"]}


def test_a_function_of_the_users(images, tmp_path, monkeypatch, capsys):
    (tmp_path / "theirs.py").write_text(THEIRS)
    monkeypatch.syspath_prepend(tmp_path)
    data = ["--data", "folder", "--data-dir", str(images), "--image-size", "8", "--out", str(tmp_path / "out")]
    # |red - blue| is 170 of 255 in every image: 84/255 on both channels leaves a gap of 2/255, 86/255 turns it over.
    main(["theirs:build", *data, "--attacks", "fgsm", "--eps", "84/255,86/255"])
    found = rows(tmp_path / "out")
    assert found["clean", None]["accuracy"] == 1 and found["clean", None]["run"] == "theirs:build"
    assert found["fgsm", 84 / 255]["accuracy"] == 1 and found["fgsm", 86 / 255]["accuracy"] == 0
    report.main([str(tmp_path / "out"), "--markdown"])
    assert "| theirs:build | 100.0 | 100.0 | 0.0 |" in capsys.readouterr().out
    with pytest.raises(UserError, match="knn and logistic_regression need features"):
        main(["theirs:build", *data, "--protocols", "knn"])
    with pytest.raises(UserError, match="a model from outside needs --out"):
        main(["theirs:build", *data[:-2]])
    main(["theirs:noisy", *data, "--attacks", "fgsm", "--eps", "84/255"])
    assert rows(tmp_path / "out")["clean", None]["accuracy"] == 1
    assert rows(tmp_path / "out")["clean", None]["flags"] == []
    main(["theirs:ours", *data[:-2], "--out", str(tmp_path / "ours"), "--protocols", "knn"])
    (row,) = json.loads((tmp_path / "ours" / "results.json").read_text())["results"]
    assert (row["protocol"], row["bn_branch"]) == ("knn_features", "adv")


def test_a_librarys_model(images, tmp_path, monkeypatch):
    namespace, offline = {}, []
    exec(THEIRS, namespace)

    def create_model(name, pretrained):
        offline.append(os.environ.get("HF_HUB_OFFLINE"))
        model = namespace["build"]()
        model.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.1, 0.1, 0.1)}
        return model

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create_model))
    data = ["--data", "folder", "--data-dir", str(images), "--image-size", "8", "--out", str(tmp_path / "out")]
    main(["timm:red.or_blue", *data, "--attacks", "fgsm", "--eps", "84/255,86/255"])
    main(["timm:red.or_blue", *data, "--attacks", "fgsm", "--eps", "84/255", "--download"])
    assert offline == ["1", None]
    found = rows(tmp_path / "out")
    assert found["fgsm", 84 / 255]["accuracy"] == 1 and found["fgsm", 86 / 255]["accuracy"] == 0
    assert {row["run"] for row in found.values()} == {"timm:red.or_blue"}
    gray = ["--data", "digits", "--out", str(tmp_path / "none")]
    with pytest.raises(
        UserError, match=r"timm:red.or_blue: .* found ValueError: x must be floating point \[B, 3, H, W\]"
    ):
        main(["timm:red.or_blue", *gray])


EXPECTED = r"expected float32 logits \[2, 2\] of images \[2, 3, 8, 8\], found "


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "theirs:other",
            r"found AttributeError: module 'theirs' has no attribute 'other'$",
        ),
        ("theirs:leaves", "expected a function that returns a model, found SystemExit: 0"),
        ("theirs:lazy", "expected a model with weights, found layers that wait for their first images"),
        ("nowhere:build", "found ModuleNotFoundError"),
        (":build", "found ValueError: Empty module name"),
        ("builtins:dict", "expected a function that returns a torch.nn.Module, found dict"),
        ("theirs:halved", r"expected logits of torch.float32 images \[2, 3, 8, 8\], found RuntimeError: .*BFloat16"),
        ("theirs:changes", r"images \[2, 3, 8, 8\], found RuntimeError: a leaf Variable .* in-place"),
        ("theirs:refuses", r"images \[20, 3, 8, 8\], found KeyError: 'too.*many' at theirs\.py:\d+$"),
        ("theirs:detached", "expected logits with gradients for the images, found none"),
        ("theirs:beside", "expected logits with gradients for the images, found none"),
        ("theirs:dictionary", EXPECTED + "dict"),
        ("theirs:pair", EXPECTED + "tuple"),
        ("theirs:half_logits", EXPECTED + r"torch.bfloat16 \[2, 2\]"),
        ("theirs:three_classes", EXPECTED + r"torch.float32 \[2, 3\]"),
        ("theirs:labels", EXPECTED + r"torch.int64 \[2\]"),
        ("theirs:rows", EXPECTED + r"torch.float32 \[1, 2\]"),
        ("theirs:not_numbers", "the model must give finite logits, got NaN or infinity for 20 of 20 images"),
        ("timm:nothing", "timm:nothing: expected the library timm, found no module timm"),
        ("no/such:run", "no/such:run/config.json: expected a file"),
    ],
)
def test_an_odd_model_is_one_sentence(name, message, images, tmp_path, monkeypatch):
    (tmp_path / "theirs.py").write_text(THEIRS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "theirs", raising=False)
    monkeypatch.setitem(sys.modules, "timm", None)
    data = ["--data", "folder", "--data-dir", str(images), "--image-size", "8", "--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match=message) as refused:
        main([name, *data])
    assert "\n" not in str(refused.value)


def test_a_part_of_a_folder_has_all_its_classes(images, tmp_path, monkeypatch):
    (tmp_path / "theirs.py").write_text(THEIRS)
    monkeypatch.syspath_prepend(tmp_path)
    test = load("folder", images, image_size=8).test
    assert first_samples(test, 4).tolist() == [0, 5, 10, 15] and first_samples(test, None).tolist() == [*range(20)]
    assert first_samples(test.select(torch.tensor([19, 0, 1])), 2).tolist() == [0, 1]
    data = ["--data", "folder", "--data-dir", str(images), "--image-size", "8", "--out", str(tmp_path / "out")]
    main(["theirs:build", *data, "--samples", "2", "--attacks", "fgsm", "--eps", "86/255"])
    assert rows(tmp_path / "out")["clean", None]["flags"] == ["subset"]


def test_an_official_encoder_gets_a_linear_classifier(images, acl_file, tmp_path):
    arguments = [str(acl_file), "--format", "acl", "--data", "folder", "--data-dir", str(images), "--image-size", "8"]
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
        main([str(acl_file), "--format", "acl", "--data", "digits", "--out", str(tmp_path / "none")])
    assert not (tmp_path / "none").exists()
    with pytest.raises(UserError, match="acl.pt: a file of weights needs --format, one of acl, advcl, byol"):
        main([str(acl_file), *arguments[3:], "attacks", "--out", str(tmp_path / "none")])
    val = ["--data", "imagenet_val", "--data-dir", str(images), "--image-size", "7", "--out", str(tmp_path / "none")]
    with pytest.raises(UserError, match="acl.pt: expected labelled training images .* found none in --data"):
        main([str(acl_file), "--format", "acl", *val])
    with pytest.raises(UserError, match="--protocols knn needs training images, found none in imagenet_val"):
        main([str(acl_file), "--format", "acl", *val, "--protocols", "attacks,knn"])


def test_an_encoder_and_its_classifier_in_files_of_their_own(images, tmp_path):
    """SwAV's, on ImageNet's validation images; two models of one command, one of them a function's."""
    bn = BatchNormConfig()
    mean, std = (0.485, 0.456, 0.406), (0.228, 0.224, 0.225)
    model = Model(ResNet(50, in_channels=3, mean=mean, std=std, bn=bn, width=2, stem="imagenet"), {})
    initialise(model, 0)
    head = LinearHead(64, 2)
    initialise(head, 0)
    state = {key.replace(".branch.clean", ""): value for key, value in model.encoder.state_dict().items()}
    saved = {f"module.{key}": value for key, value in state.items() if not key.startswith("normalize")}
    torch.save(saved | {"module.prototypes.weight": torch.zeros(3, 8)}, tmp_path / "swav.pth.tar")
    linear = {f"module.linear.{key}": value for key, value in head.state_dict().items()}
    torch.save({"state_dict": linear, "best_acc": 75.3}, tmp_path / "linear.pth.tar")
    files = [str(tmp_path / "swav.pth.tar"), "--format", "swav", "--head", str(tmp_path / "linear.pth.tar")]
    data = ["--data", "imagenet_val", "--data-dir", str(images), "--image-size", "28", "--out", str(tmp_path / "out")]
    main([*files, *data, "--attacks", "fgsm", "--eps", "0.25/255"])
    test = load("imagenet_val", images, image_size=28).test
    with torch.no_grad():
        logits = head(model.eval().features(test.batch(torch.arange(20)), "clean"))
    clean = rows(tmp_path / "out")["clean", None]
    assert ("fgsm", 1 / 1020) in rows(tmp_path / "out")
    assert (clean["protocol"], clean["bn_branch"], clean["dataset"]) == ("end_to_end", "clean", "imagenet_val")
    assert clean["accuracy"] == float((logits.argmax(1) == test.labels).double().mean())
