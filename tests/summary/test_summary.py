"""The page about several runs: means over seeds by hand, the papers' rows, flags, and what the files hold."""

import base64
import html
import json
import re
import statistics

import pytest

from clead.cli import config_values
from clead.errors import UserError
from clead.recipes import RECIPES
from clead.recipes.tables import TABLES, TRANSFER
from clead.summary import write_page
from clead.summary.accuracies import corruption_table, results_tables, transfer_tables
from clead.summary.beside import paper_blocks
from clead.summary.flags import flags_of
from clead.summary.markdown import escape
from clead.summary.page import TITLES, commands_of
from clead.summary.runs import group_runs, read_run, read_runs

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def row(name, accuracy, eps=None, **more):
    attack = {"fgsm": "fgsm", "pgd20": "pgd", "autoattack": "autoattack"}.get(name)
    where = {"protocol": "linear_eval", "bn_branch": "clean", "dataset": "digits", "split": "test", "samples": 500}
    interval = {"low": max(0.0, accuracy - 0.04), "high": min(1.0, accuracy + 0.04)}
    norm = None if eps is None else "linf"
    mine = {"run": "r", "model": "trained", "name": name, "accuracy": accuracy, "attack": attack, "norm": norm}
    return mine | where | interval | {"eps": eps, "flags": []} | more


@pytest.fixture
def make(tmp_path):
    """Write a run folder as training does; returns its path."""

    def _make(name, rows, *, recipe="clead_digits", seed=0, state="done", **changes):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        values = config_values(RECIPES[recipe].config) | {"seed": seed} | changes
        config = {"schema": 1, "method": RECIPES[recipe].method, "recipe": recipe, "values": values}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "run.json").write_text(json.dumps({"schema": 1, "state": state, "stages": []}))
        (folder / "env.json").write_text(json.dumps({"schema": 1, "commit": "abc" * 9, "dirty": True, "torch": "2.13"}))
        if rows is not None:
            (folder / "results.json").write_text(json.dumps({"schema": 1, "results": rows}))
        return folder

    return _make


def groups_of(*folders):
    return group_runs([read_run(folder) for folder in folders])


def test_runs_that_differ_in_their_seed_are_one_group(make):
    first = [make(f"clead-digits-s{seed}", [], seed=seed, threads=seed) for seed in (0, 1, 2)]
    longer = make("longer", [], seed=0, epochs=7)
    copy = make("copy", [], seed=1)
    groups = groups_of(first[0], longer, *first[1:], copy)
    assert [(group.name, [run.seed for run in group.runs]) for group in groups] == [
        ("clead-digits", [0, 1, 2]),
        ("longer", [0]),
        ("copy", [1]),
    ]
    assert [group.seeds for group in groups[:2]] == ["3 seeds (0, 1, 2)", "1 seed (0)"]


def test_groups_of_one_name_are_told_apart(make):
    groups = groups_of(make("a/r", [], epochs=1), make("b/r", [], epochs=2))
    assert [group.name.rsplit("/", 2)[-2:] for group in groups] == [["a", "r"], ["b", "r"]]


def test_results_are_means_and_standard_deviations_over_seeds(make):
    clean, robust = (0.96, 0.962, 0.97), (0.5, 0.52)
    folders = [
        make(f"clead-digits-s{seed}", [row("clean", value), row("fgsm", 0.1, 0.2, flags=["sweep"])], seed=seed)
        for seed, value in enumerate(clean)
    ]
    for folder, value in zip(folders, robust, strict=False):
        content = json.loads((folder / "results.json").read_text())
        content["results"].append(row("pgd20", value, 0.15))
        (folder / "results.json").write_text(json.dumps(content))
    other = make("acl-digits-s0", [row("clean", 0.99), row("clean", 0.8, model="random")], recipe="acl_digits")
    (table,) = results_tables(groups_of(*folders, other))
    assert table.heads == ["model", "seeds", "clean", "pgd20 0.15"]
    mean, sd = 100 * statistics.mean(clean), 100 * statistics.stdev(clean)
    assert table.rows == [
        ["clead-digits: C-LEAD", "3", f"{mean:.1f} ± {sd:.1f}", "51.0 ± 1.4 (2 of 3)"],
        ["acl-digits-s0: acl", "1", "99.0", "–"],
        ["acl-digits-s0: random encoder", "1", "80.0", "–"],
    ]
    assert sd == pytest.approx(0.529, abs=1e-3)
    assert table.bold == {(1, 2)}
    assert table.caption == "digits, 500 test images"
    assert table.notes[-1] == "95% Wilson intervals of a single run: ± 4.0 at most."


def test_data_sets_have_tables_of_their_own(make):
    groups = groups_of(make("a", [row("clean", 0.5)]), make("b", [row("clean", 0.4, dataset="cifar10")], epochs=3))
    assert [table.caption for table in results_tables(groups)] == [
        "digits, 500 test images",
        "cifar10, 500 test images",
    ]
    assert not any(table.bold for table in results_tables(groups))  # nothing to be better than


def test_corruptions_and_transfer_are_no_columns(make):
    damaged = [
        row(name, value, corruption=name, severity=severity, flags=["cifar10c_style"])
        for name, severity, value in (("fog", 1, 0.8), ("fog", 3, 0.6), ("snow", 1, 0.4))
    ]
    moved = [row("pgd20", 0.7, 0.1, run="a", attack="transfer:b"), row("pgd20", 0.9, 0.1, run="a", attack="transfer:a")]
    groups = groups_of(make("a", [row("clean", 0.9), *damaged, *moved]))
    assert results_tables(groups)[0].heads == ["model", "seeds", "clean"]
    table = corruption_table(groups)
    assert table.heads == ["model", "severity 1", "severity 3", "types", "images"]
    assert table.rows == [["a: C-LEAD", "60.0", "60.0", "2", "digits, our generator"]]
    (matrix,) = transfer_tables(groups)
    assert (matrix.heads[1:], matrix.rows) == (["b", "a"], [["a", "70.0", "90.0"]])
    assert corruption_table(groups_of(make("c", [row("clean", 0.9)]))) is None


def test_transfer_stands_beside_the_papers_table(make):
    def rows(target):
        return [
            row("pgd20", 0.5, eps, run=target, attack=f"transfer:{source}") for source in "ab" for eps in (8 / 255, 0.1)
        ]

    folders = [make("a", rows("a"), recipe="ascl_cifar10"), make("b", rows("b"), recipe="acl_cifar10")]
    paper, other = transfer_tables(groups_of(*folders))
    assert paper.caption == "transfer, linf eps 8/255, accuracy in %"
    # Rows are targets, whatever the head of the printed table says: made on ASCL, images fool each of the others most.
    assert paper.rows == [
        ["a", "50.0", "50.0"],
        ["ASCL table 2", "–", "67.32"],
        ["b", "50.0", "50.0"],
        ["ASCL table 2", "50.78", "–"],
    ]
    assert other.rows == [["a", "50.0", "50.0"], ["b", "50.0", "50.0"]]
    assert {name for pair in TRANSFER for name in pair} <= set(RECIPES) and len(TRANSFER) == 12


# beside the papers


def test_every_row_of_the_papers_is_a_recipe_and_has_its_columns():
    for table in TABLES:
        for paper in table.rows:
            assert paper.recipe in RECIPES, (table.name, paper.recipe)
            assert len(paper.numbers) == len(table.columns), (table.name, paper.recipe)
            assert all(value is None or 0 <= value <= 100 for value in paper.numbers)


def test_the_numbers_of_recipes_are_in_the_tables():
    """Each number of a recipe's text, which was read from the papers by itself, is one of its rows'."""
    checked = 0
    for recipe in RECIPES.values():
        if re.search(r"(ASCL|CLAE|C-LEAD|adaptive-FNC) tables? \d", recipe.paper):
            numbers = {
                value for table in TABLES for of in table.rows if of.recipe == recipe.name for value in of.numbers
            }
            for text in re.findall(r"\d+\.\d+", recipe.paper):
                assert float(text) in numbers, (recipe.name, text)
                checked += 1
    assert checked > 150


def test_ours_stands_below_the_paper_with_what_differs(make):
    def rows(clean, robust):
        protocol = {"protocol": "adv_linear_eval", "dataset": "cifar10", "bn_branch": "adv"}
        found = [row("clean", clean, **protocol), row("pgd20", robust, 8 / 255, **protocol)]
        return [*found, row("clean", 0.1, **protocol | {"protocol": "linear_eval"})]

    folders = [
        make(f"ascl-cifar10-s{seed}", rows(clean, robust), recipe="ascl_cifar10", seed=seed, epochs=20)
        for seed, (clean, robust) in enumerate([(0.70, 0.40), (0.74, 0.44)])
    ]
    *tables, differences = paper_blocks(groups_of(*folders, make("clead-digits-s0", [row("clean", 0.9)])))
    names = [table.caption for table in tables]
    assert names == [f"ASCL table {number}" for number in (1, 4, 5, 6, 7, 8)]
    assert tables[0].heads == ["row", "clean", "pgd20 8/255", "autoattack 8/255"]
    assert tables[0].rows == [
        ["paper: ascl_cifar10, adv_linear_eval", "81.67", "53.09", "45.7"],
        ["ours: ascl-cifar10, 2 seeds (0, 1)", "72.0 ± 2.8", "42.0 ± 2.8", "–"],
    ]
    assert [of[1] for of in tables[1].rows] == ["81.35", "10.0 ± 0.0", "81.67", "72.0 ± 2.8"]
    assert differences.items[0].startswith(
        "ascl-cifar10: epochs 20 instead of 200 (settings of ascl_cifar10: ASCL sect"
    )
    assert differences.items[1].endswith("No table of the papers has a row for it.")


def test_probes_are_found_by_their_protocol(make):
    protocols = {"knn_embeddings": 0.7, "logistic_regression_features": 0.8, "linear_eval": 0.6}
    rows = [row("clean", value, protocol=protocol, dataset="cifar10") for protocol, value in protocols.items()]
    (table, _) = paper_blocks(groups_of(make("r", rows, recipe="clae_cifar10")))
    assert table.heads == ["row", "kNN", "logistic regression"]
    assert table.rows[1][1:] == ["70.0", "80.0"]


def test_a_run_without_a_known_recipe(make):
    folder = make("r", [row("clean", 0.5)])
    config = json.loads((folder / "config.json").read_text()) | {"recipe": None}
    (folder / "config.json").write_text(json.dumps(config))
    (differences,) = paper_blocks(groups_of(folder))
    assert differences.items == ["r: started from no recipe that is known here."]


# flags


def test_flags_of_rows_checks_and_runs(make):
    flagged = make("a", [row("clean", 0.5), row("fgsm", 0.4, 8 / 255, flags=["subset", "sweep", "zero_gradients"])])
    check = {"name": "x", "flag": "random_outputs", "found": True, "detail": "two looks differ"}
    fine = {"name": "y", "flag": "logits_are_probabilities", "found": False, "detail": "no"}
    (flagged / "sanity.json").write_text(json.dumps({"schema": 1, "sanity": [check, fine]}))
    best = make("b", [row("autoattack", 0.2, 0.1, flags=["headline"])], epochs=1)
    begun = make("c", None, epochs=2, state="running")
    assert flags_of(groups_of(flagged, best, begun)) == [
        "a, subset: fgsm 8/255",
        "a, zero_gradients: fgsm 8/255",
        "a, RED FLAG random_outputs: two looks differ",
        "no results yet: c",
        "not finished: c",
        "no headline, as a claim of robustness takes autoattack, or apgd_ce and apgd_t: a",
    ]
    alike = make("d", [row("clean", 0.5, flags=["subset"]), row("fgsm", 0.4, 8 / 255, flags=["subset"])], epochs=3)
    assert flags_of(groups_of(alike))[0] == "d, subset: all rows"
    (flagged / "sanity.json").write_text('{"schema": 1, "sanity": [3]}')
    with pytest.raises(UserError, match=r"sanity\.json: expected a list of objects under sanity"):
        flags_of(groups_of(flagged))


def test_checks_and_versions_of_an_evaluation_are_told_by_model(tmp_path):
    rows = [row("clean", 0.5, run=name, versions=f"commit of {name}") for name in "ab"]
    (tmp_path / "results.json").write_text(json.dumps({"schema": 1, "results": rows}))
    check = {"flag": "random_outputs", "found": True, "detail": "two looks differ", "run": "b"}
    (tmp_path / "sanity.json").write_text(json.dumps({"schema": 1, "sanity": [check]}))
    groups = group_runs(read_runs(tmp_path))
    assert flags_of(groups) == ["b, RED FLAG random_outputs: two looks differ"]
    commands, environment = commands_of(groups)
    assert commands.lines == [f"python -m clead.report {tmp_path}"]
    assert environment.items == ["a: commit of a", "b: commit of b"]


# the files


def test_the_page_needs_no_other_file_and_says_the_same_twice(make, tmp_path):
    run = make("a<b>&-s0", [row("clean", 0.9), row("fgsm", 0.4, 0.1)])
    (run / "figures").mkdir()
    (run / "figures" / "tsne.png").write_bytes(PIXEL)
    paths = write_page([run], tmp_path / "page")
    assert [path.name for path in paths] == ["report.html", "report.md"]
    page, text = (path.read_text() for path in paths)
    assert "<b>&-s0" not in page and html.escape("a<b>&-s0") in page
    assert not re.search(r"<script|<link|https?://[^<]*\"|src=\"(?!data:)|url\(", page)
    (picture,) = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert base64.b64decode(picture) == PIXEL
    assert f'alt="{TITLES["tsne"]}, {html.escape("a<b>&-s0")}"' in page
    assert 'name="viewport"' in page and '<html lang="en">' in page
    assert "](../a%3Cb%3E%26-s0/figures/tsne.png)" in text
    assert (tmp_path / "page" / "../a<b>&-s0/figures/tsne.png").is_file()
    for cell in ("90.0", "40.0", "fgsm 0.1"):
        assert f">{cell}<" in page and f"| {cell} |" in text
    titles = re.findall(r"<h2>([^<]+)</h2>", page)
    assert titles == re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert titles == ["Results", "Beside the papers", "Flags", "Figures", "Commands"]
    assert re.findall(r'href="#([^"]+)"', page) == re.findall(r'<section id="([^"]+)"', page)
    for tag in ("table", "tr", "section", "div", "ul", "li", "p", "th", "td"):
        assert len(re.findall(rf"<{tag}[ >]", page)) == page.count(f"</{tag}>"), tag


def test_commands_and_environment(make):
    commands, environment = commands_of(groups_of(make("a b", [row("clean", 0.9)])))
    assert commands.lines[0].startswith("python -m clead.train --config '") and "a b'/config.json" in commands.lines[0]
    assert environment.items == ["a b: commit abcabcabcabc+changes, torch 2.13"]


def test_text_has_no_meaning_in_markdown():
    assert escape("a|b_c*d`e [f] <g>\n h") == r"a\|b\_c\*d\`e \[f] \<g> h"


def test_a_page_that_cannot_be_written_is_one_sentence(make, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"report\.html: expected to write the page, got: "):
        write_page([make("r", [])], tmp_path / "file" / "folder")
