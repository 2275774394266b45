"""``--protocols`` of a figure: a file in the run folder, and the figure from it."""

import json

import pytest
import safetensors

from clead import report, train
from clead.cli import plans
from clead.engine.progress import Progress
from clead.errors import UserError
from clead.evaluate import command as evaluate
from clead.evaluate.figures import expand
from clead.figures.drawing import FIGURES
from clead.protocols.figure_data import FIGURE_DATA

TINY = ["--epochs", "1", "--train-samples", "128", "--batch-size", "64", "--evaluation.sweep-eps"]
TINY += ["--linear-eval.epochs", "1", "--evaluation.eps", "0.1", "--evaluation.attacks", "fgsm"]
TINY += ["--evaluation.samples", "30"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "tiny"
    (plan,) = plans(["simclr", *TINY, "--compare", "random", "--out", str(out)])
    train.run(plan, Progress(report.output_console()))
    return out


def test_a_figure_by_its_name_for_the_run_and_what_it_is_compared_with(run, capsys):
    asked = "class_distances,perturbation_losses"
    evaluate.main([str(run), "--comparisons", "--protocols", asked, "--samples", "40", "--eps", "0.05,0.1"])
    output = capsys.readouterr().out
    for name in asked.split(","):
        for folder in (run, run / "comparisons" / "random"):
            path = folder / "figures" / f"{name}.safetensors"
            assert f"{folder.name} {name}: {path}" in output
            with safetensors.safe_open(path, framework="np") as opened:
                facts = opened.metadata()
            assert (facts["figure"], facts["method"], facts["eps"]) == (name, "simclr", "0.1")
            assert facts["model"] == ("trained" if folder == run else "random")
            assert json.loads(facts["classes"]) == [str(digit) for digit in range(10)]
            assert "torch" in facts["versions"]
        assert FIGURES[name](run).is_file()
    assert f"python -m clead.report {run} draws the figures" in output
    assert "Rows are in" not in output


def test_figures_are_all_figures():
    rows = ["sweep_eps", "sweep_steps", "corruptions"]
    assert expand(["figures"]) == [*rows, *FIGURE_DATA]
    assert expand(["knn", "tsne", "figures"]) == [
        "knn",
        "tsne",
        *rows,
        *(name for name in FIGURE_DATA if name != "tsne"),
    ]
    drawn_from_rows = {"loss_curves", "image_grid", "accuracy_against_eps", "accuracy_against_steps", "corruptions"}
    assert set(FIGURES) == set(FIGURE_DATA) | drawn_from_rows


def test_figures_go_to_run_folders_only(run, tmp_path):
    with pytest.raises(UserError, match=r"figures are drawn from run folders, found no run\.json in .*out"):
        evaluate.main([str(run), "--protocols", "tsne", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--protocols", "tsne", "--samples", "5"], "tsne needs at least 7 images, got 5"),
        (["--protocols", "input_surface", "--eps", "0"], "input_surface needs a radius above 0, got 0"),
        (["--protocols", "figures", "--norm", "l2", "--eps", "1"], "--norm must be linf for figures, got l2"),
        (["--protocols", "tnse"], "--protocols must be of .*tsne.*figures, got 'tnse'"),
    ],
)
def test_what_no_figure_can_be_made_of(run, arguments, message):
    with pytest.raises(UserError, match=message):
        evaluate.main([str(run), *arguments])
