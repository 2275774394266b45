import json
from dataclasses import replace

import pytest

from clead.data import DATASETS
from clead.errors import UserError
from clead.methods import METHODS
from clead.models import ENCODERS
from clead.recipes import RECIPES
from clead.recipes import __main__ as command
from clead.recipes.__main__ import main


def test_names_say_method_and_data():
    for name, recipe in RECIPES.items():
        assert recipe.method in METHODS and isinstance(recipe.config, METHODS[recipe.method].Config)
        assert recipe.config.data in DATASETS and recipe.config.encoder.name in ENCODERS
        data = recipe.config.adv_linear_eval.data or recipe.config.data
        assert name.startswith(recipe.method) and name.endswith(data)


@pytest.mark.parametrize("name", ["plain", "uel", "clae", "clae_uel_07", "simclr", "sup_con", "pgd_at"])
def test_on_cifar100_only_the_data_differs(name):
    first, other = RECIPES[f"{name}_cifar10"], RECIPES[f"{name}_cifar100"]
    assert replace(other.config, data="cifar10") == first.config
    assert other.paper != first.paper


def test_tiny_imagenet_is_seen_at_224_by_the_encoder_of_imagenet():
    config = RECIPES["clae_tiny_imagenet"].config
    assert (config.data, config.image_size, config.encoder.name) == ("tiny_imagenet", 224, "resnet18_imagenet")
    assert config.encoder.bn == RECIPES["clae_cifar10"].config.encoder.bn


@pytest.mark.parametrize("method", ["rocl", "acl", "ascl"])
@pytest.mark.parametrize("target", ["stl10", "cifar100"])
def test_a_transfer_pretrains_as_at_home_and_classifies_the_target(method, target):
    home, away = RECIPES[f"{method}_cifar10"].config, RECIPES[f"{method}_cifar10_to_{target}"].config
    assert away.stages == ("pretrain", "adv_linear_eval", "evaluate")
    assert (away.adv_linear_eval.data, away.adv_linear_eval.loss, away.adv_linear_eval.zero_init) == (
        target,
        "trades",
        True,
    )
    other = ("adv_linear_eval", "stages", "evaluation")
    assert replace(away, **{name: getattr(home, name) for name in other}) == home


def test_the_command_prints_them(capsys):
    main([])
    out = capsys.readouterr().out
    assert all(f"--recipe {name}\n" in out for name in RECIPES)


def test_it_says_what_the_study_measured(capsys, tmp_path, monkeypatch):
    def shown(name):
        main(["show", name])
        return next(line for line in capsys.readouterr().out.splitlines() if line.startswith("  ours: "))

    rows = [
        {"method": "acl", "seed": seed, "clean": clean, "pgd20": 0.5, "few_labels": 0.25}
        for seed, clean in ((0, 0.9), (1, 0.96))
    ]
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "study.json").write_text(json.dumps({"schema": 1, "rows": rows}))
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    expected = (
        "clean 93.0 (90.0 … 96.0), PGD-20 at eps 0.15 50.0 (50.0 … 50.0), two labels per class 25.0 (25.0 … 25.0)"
    )
    assert shown("acl_digits").startswith(f"  ours: {expected}; 2 seeds, ")
    assert shown("rocl_digits") == shown("acl_cifar10") == "  ours: not measured"
    monkeypatch.setattr(command, "RESULTS", tmp_path / "none")
    assert shown("acl_digits") == "  ours: in the folder results of a checkout, which is not here"


def test_every_digits_recipe_has_been_measured(capsys):
    for name in METHODS:
        main(["show", f"{name}_digits"])
        assert "3 seeds, results/digits" in capsys.readouterr().out


def test_it_shows_one_with_all_its_settings(capsys):
    main(["show", "acl_cifar10"])
    out = capsys.readouterr().out
    values = json.loads(out.partition("config: ")[2])
    assert values["projector"] == {"hidden_dim": 512, "dim": 512, "layers": 3, "batch_norm": "all"}
    assert "52.82" in out
    with pytest.raises(UserError, match="unknown recipe 'acl_cifar'; the nearest is 'acl_cifar10'"):
        main(["show", "acl_cifar"])


def test_words_choose_among_them(capsys):
    main(["clae", "cifar10"])
    shown = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("  ")]
    assert shown == [name for name in RECIPES if "clae" in name and "cifar10" in name]
    assert "clae_cifar10" in shown and "clae_digits" not in shown
    for words in (["cifar11"], ["show"], ["show", "acl_cifar10", "clead_digits"]):
        with pytest.raises(UserError, match="expected words of the names|followed by the name of one recipe"):
            main(words)
