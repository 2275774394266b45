import json
from dataclasses import replace

import pytest

from clead.data import DATASETS
from clead.errors import UserError
from clead.methods import METHODS
from clead.models import ENCODERS
from clead.recipes import RECIPES
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


def test_it_shows_one_with_all_its_settings(capsys):
    main(["show", "acl_cifar10"])
    out = capsys.readouterr().out
    values = json.loads(out.partition("config: ")[2])
    assert values["projector"] == {"hidden_dim": 512, "dim": 512, "layers": 3, "batch_norm": "all"}
    assert "52.82" in out
    with pytest.raises(UserError, match="unknown recipe 'acl_cifar'; the nearest is 'acl_cifar10'"):
        main(["show", "acl_cifar"])
