"""What every method must show on the digits, with three paired seeds and one radius: committed, and measured afresh.

A miss is to be reported with its number, never met by another radius, seed, head or weaker baseline.
"""

import os
from pathlib import Path

import pytest

from clead import study
from clead.cli import read_config
from clead.data import load_digits
from clead.engine import checkpoint
from clead.engine.files import read_json
from clead.engine.results import read_results
from clead.methods import METHODS
from clead.recipes import RECIPES

COMMITTED = Path(__file__).resolve().parents[1] / "results" / "digits"
SEEDS = (0, 1, 2)
UNDEFENDED = ("adaptive_fnc", "clae", "fnc", "ifnd", "plain", "simclr", "sup_con", "uel")
LABELLED_DEFENCES = ("ascl", "mart", "pgd_at", "trades")
LABEL_FREE_DEFENCES = ("a_acl", "a_rocl", "acl", "advcl", "dynacl", "rocl")
ROBUST = (*LABELLED_DEFENCES, "clead")
PRINTED_ONLY = ("ce", "fast_at")


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """The study's folder, measured by this code: hours. CLEAD_STUDY names one to continue, or to measure again."""
    folder = Path(os.environ.get("CLEAD_STUDY") or tmp_path_factory.mktemp("study"))
    study.main(["--out", str(folder)])
    return folder


@pytest.fixture(params=["committed", pytest.param("fresh", marks=pytest.mark.slow)])
def folder(request):
    return COMMITTED if request.param == "committed" else request.getfixturevalue("fresh")


@pytest.fixture
def rows(folder):
    return {(row["method"], row["seed"]): row for row in read_json(folder / "study.json", schema=study.SCHEMA)["rows"]}


def misses(rows, names, key, holds):
    """The (method, seed, value) of which ``holds(value, seed)`` is false."""
    values = [(name, seed, rows[name, seed][key]) for name in names for seed in SEEDS]
    return [(name, seed, value) for name, seed, value in values if not holds(value, seed)]


def test_every_method_has_a_bar_and_every_seed(rows):
    assert {*UNDEFENDED, *ROBUST, *LABEL_FREE_DEFENCES, *PRINTED_ONLY} == set(METHODS)
    assert set(rows) == {(name, seed) for name in ("random", *METHODS) for seed in SEEDS}


def test_features_of_methods_without_a_defence_beat_the_random_encoder_on_two_labels_per_class(rows):
    assert (study.PER_CLASS, study.DRAWS) == (2, 10)
    random = {seed: rows["random", seed]["few_labels"] for seed in SEEDS}
    assert misses(rows, UNDEFENDED, "few_labels", lambda value, seed: value >= random[seed] + 0.08) == []


def test_defences_with_labels_and_clead_beat_undefended_models_under_attack(rows):
    assert misses(rows, ["ce"], "pgd20", lambda value, seed: value < 0.1) == []
    for name in ("ce", "simclr"):
        other = {seed: rows[name, seed]["pgd20"] for seed in SEEDS}
        assert misses(rows, ROBUST, "pgd20", lambda value, seed, other=other: value >= other[seed] + 0.2) == []


def test_label_free_defences_keep_the_contrastive_loss_under_attack_below_that_of_simclr(rows):
    simclr = {seed: rows["simclr", seed]["contrastive_loss"] for seed in SEEDS}
    assert misses(rows, LABEL_FREE_DEFENCES, "contrastive_loss", lambda value, seed: value < simclr[seed]) == []


def test_the_table_shows_these_rows(folder, rows):
    # PGD-20 of the label-free defences and of fast_at has no bar: it is shown.
    assert (folder / "README.md").read_text() == study.to_markdown(list(rows.values()), "python -m clead.study")


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_recipe_trains_for_500_steps_and_every_defence_at_the_radius_of_the_study(name):
    config = RECIPES[f"{name}_digits"].config
    assert config.epochs * (len(load_digits().train) // config.batch_size) >= 500
    assert study.EPS == 0.15
    if name not in (*UNDEFENDED, "ce"):
        assert config.attack.eps == 0.15


@pytest.mark.slow
def test_the_fresh_runs_were_trained_and_attacked_as_the_study_says(fresh):
    train = len(load_digits().train)
    for name in METHODS:
        for seed in SEEDS:
            run = fresh / "runs" / f"{name}-s{seed}"
            method, _, config = read_config(run / "config.json")
            assert (method, config.seed, config.evaluation.eps) == (name, seed, (0.15,))
            meta = checkpoint.load(checkpoint.latest(run / "checkpoints", "pretrain")).meta
            assert meta["step"] == config.epochs * (train // config.batch_size) >= 500
            attacked = [row for row in read_results(run / "results.json") if row["attack"] is not None]
            assert [(row["name"], row["eps"]) for row in attacked] == [("pgd20", 0.15)]
            if name not in (*UNDEFENDED, "ce"):
                assert config.attack.eps == 0.15
