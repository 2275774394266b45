import json
import struct
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.colors import to_hex
from safetensors.numpy import save_file

from clead.errors import UserError
from clead.figures import accuracy_against_eps as accuracy
from clead.figures import image_grid as grid
from clead.figures import loss_curves as curves
from clead.figures.drawing import FIGURES, USUAL, draw_all
from clead.figures.files import MissingFile, write_figure
from clead.figures.style import COLOURS, data_name, format_eps


def png_size(path):
    """Width and height from the header; checks signature and the closing chunk."""
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert content[-8:-4] == b"IEND"
    return struct.unpack(">II", content[16:24])


def texts(figure):
    found = [text.get_text() for text in figure.texts]
    for axes in figure.axes:
        found += [axes.get_title(), axes.get_title(loc="left"), axes.get_xlabel(), axes.get_ylabel()]
    return found


def named_lines(axes):
    return {line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith("_")}


def test_draws_the_usual_pngs_and_returns_their_paths(run):
    paths = draw_all(run)
    assert [path.relative_to(run).as_posix() for path in paths] == [f"figures/{name}.png" for name in USUAL]
    assert set(USUAL) < set(FIGURES)
    for path in paths:
        width, height = png_size(path)
        assert width == 1440
        assert 600 <= height <= 1800
        assert 10_000 < path.stat().st_size < 1_000_000
    assert len(list((run / "figures").iterdir())) == 3  # nothing unfinished is left


def test_same_files_same_figure(run):
    before = [path.read_bytes() for path in draw_all(run)]
    assert [path.read_bytes() for path in draw_all(run)] == before


def test_figures_need_no_pyplot(run):
    code = (
        "import sys, pathlib, clead.figures.drawing as f; "
        "f.draw_all(pathlib.Path(sys.argv[1])); print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, run], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# loss curves


def test_loss_curves_hold_the_logged_losses(run):
    figure = curves.figure(run)
    pretrain, linear = figure.axes
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["pre-training", "linear evaluation"]
    assert {axes.get_xlabel() for axes in figure.axes} == {"optimiser step"}
    assert any("digits" in text for text in texts(figure))
    drawn = named_lines(pretrain)
    assert list(drawn) == ["C-LEAD", "C-LEAD: pgd", "C-LEAD: cw", "ce, no defence"]
    np.testing.assert_allclose(drawn["C-LEAD"].get_xydata(), [[1, 6], [2, 5], [3, 4], [4, 3.5]])
    np.testing.assert_allclose(drawn["C-LEAD: cw"].get_ydata(), [2.4, 2.0, 1.6, 1.4])
    np.testing.assert_allclose(drawn["ce, no defence"].get_ydata(), [2.3, 0.5, 0.1, 0.05])
    assert pretrain.get_yscale() == "log"  # 6 against 0.05
    assert list(named_lines(linear)) == ["C-LEAD", "random encoder"]
    assert linear.get_yscale() == "linear"
    assert to_hex(drawn["ce, no defence"].get_color()).upper() == COLOURS["undefended"]
    assert {text.get_text() for text in pretrain.get_legend().get_texts()} == set(drawn)


def test_loss_curves_of_a_run_alone(tmp_path, synthetic):
    synthetic.write_run(tmp_path / "r", synthetic.lines("pretrain", [3.0]), "new_method")
    (axes,) = curves.figure(tmp_path / "r").axes
    assert list(named_lines(axes)) == ["new_method"]
    assert named_lines(axes)["new_method"].get_marker() == "o"  # a single point has no line


def test_long_curves_are_smoothed_beside_the_measured_ones(tmp_path, synthetic):
    losses = [5.0 + (-1) ** step for step in range(600)]
    synthetic.write_run(tmp_path / "r", synthetic.lines("pretrain", losses))
    (axes,) = curves.figure(tmp_path / "r").axes
    measured, smoothed = axes.get_lines()
    np.testing.assert_allclose(measured.get_ydata(), losses)
    # 21 points about the middle: 11 of one sign, 10 of the other.
    np.testing.assert_allclose(smoothed.get_ydata()[20:-20], 5 + np.array(losses[20:-20]) / 21 - 5 / 21)


@pytest.mark.parametrize("end", ['{"stage": "pretrain", "epoch": 1, "st', '{"stage": "pretr\xc3', "\x00\x00\n"])
def test_truncated_last_line_is_ignored(run, end):
    before = curves.curves(curves.read_metrics(run))
    with open(run / "metrics.jsonl", "ab") as file:
        file.write(end.encode("latin-1"))
    after = curves.curves(curves.read_metrics(run))
    assert {stage: list(terms) for stage, terms in after.items()} == {s: list(t) for s, t in before.items()}
    assert len(after["linear_eval"]["loss"][0]) == 3


def test_repeated_steps_of_a_resumed_run_count_once(tmp_path, synthetic):
    metrics = synthetic.lines("pretrain", [6.0, 5.0, 4.0]) + synthetic.lines("pretrain", [9.0, 8.0])[1:]
    synthetic.write_run(tmp_path / "r", metrics)
    steps, losses = curves.curves(curves.read_metrics(tmp_path / "r"))["pretrain"]["loss"]
    assert steps.tolist() == [1, 2, 3]
    assert losses.tolist() == [6.0, 8.0, 4.0]


def test_nan_and_null_losses_are_gaps(tmp_path, synthetic):
    synthetic.write_run(tmp_path / "r", synthetic.lines("pretrain", [3.0, float("nan"), 2.0]))
    with open(tmp_path / "r" / "metrics.jsonl", "a") as file:
        file.write('{"stage": "pretrain", "step": 4, "loss": null}\n{"stage": "evaluate", "step": 1, "loss": null}\n')
    (axes,) = curves.figure(tmp_path / "r").axes
    np.testing.assert_array_equal(named_lines(axes)["C-LEAD"].get_ydata(), [3.0, np.nan, 2.0, np.nan])


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("", "at least one line with a loss"),
        ("{}\n", "stage and step on line 1"),
        ('{"stage": "a", "step": 1, "loss": 1.0}\nnonsense\n{"stage": "a", "step": 2}\n', "line 2"),
        ("[1]\n", "line 1"),
    ],
)
def test_malformed_metrics(run, content, found):
    (run / "metrics.jsonl").write_text(content)
    for model in ("undefended", "random"):
        (run / "comparisons" / model / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match=rf"metrics\.jsonl: expected .*{found}.*, found"):
        curves.draw(run)
    assert not (run / "figures").exists()


# accuracy against eps


def test_accuracy_lines_start_clean_and_hold_the_sweep(run):
    (axes,) = accuracy.figure(run).axes
    drawn = named_lines(axes)
    assert list(drawn) == ["C-LEAD", "ce, no defence", "random encoder"]
    expected = [[0, 0.95], [0.05, 0.76], [0.1, 0.57], [0.15, 0.38], [0.2, 0.19]]
    np.testing.assert_allclose(drawn["C-LEAD"].get_xydata(), expected)
    assert axes.get_xlim()[0] == 0
    assert [label.get_text() for label in axes.get_xticklabels()] == ["clean", "0.05", "0.1", "0.15", "0.2"]


def test_accuracy_band_is_the_interval(run):
    (axes,) = accuracy.figure(run).axes
    band = axes.collections[0].get_paths()[0].vertices
    assert {(round(x, 3), round(y, 3)) for x, y in band} >= {(0.1, 0.54), (0.1, 0.6), (0.0, 0.92), (0.0, 0.98)}


def test_accuracy_says_what_and_on_what(run):
    figure = accuracy.figure(run)
    words = " ".join(texts(figure))
    assert "Accuracy under PGD-20" in words
    assert "digits, 500 test images" in words
    assert "Wilson" in words
    assert "pixels in [0, 1]" in figure.axes[0].get_xlabel()


def test_radii_are_written_as_fractions(run, synthetic):
    rows = [synthetic.row("trained", "clean", 0.9)]
    rows += [synthetic.row("trained", "pgd20", 0.5, k / 255) for k in (8, 16)]
    synthetic.write_results(run, rows)
    (axes,) = accuracy.figure(run).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["clean", "8/255", "16/255"]


def test_of_repeated_radii_the_stronger_attack_counts(run, synthetic):
    table = synthetic.row("trained", "pgd20", 0.6, 0.1)
    sweep = synthetic.row("trained", "pgd20", 0.5, 0.1, flags=["sweep"])
    synthetic.write_results(run, [table, sweep])
    (axes,) = accuracy.figure(run).axes
    np.testing.assert_allclose(named_lines(axes)["C-LEAD"].get_xydata(), [[0.1, 0.5]])


def test_other_protocols_have_lines_of_their_own(run, synthetic):
    protocols = ("linear_eval", "adv_linear_eval")
    rows = [synthetic.row("trained", "pgd20", 0.5, eps, protocol=name) for name in protocols for eps in (0.1, 0.2)]
    rows.append(synthetic.row("undefended", "pgd20", 0.5, 0.1, protocol="end_to_end"))
    synthetic.write_results(run, rows)
    (axes,) = accuracy.figure(run).axes
    assert list(named_lines(axes)) == ["C-LEAD, linear_eval", "C-LEAD, adv_linear_eval", "ce, no defence"]
    assert len({str(line.get_linestyle()) for line in axes.get_lines()}) == 2


def test_null_intervals_and_other_norms(run, synthetic):
    rows = [synthetic.row("trained", "pgd20", 0.5, 0.1, low=None, high=None)]
    rows.append(synthetic.row("trained", "pgd20", 0.1, 0.5, norm="l2"))
    synthetic.write_results(run, rows)
    (axes,) = accuracy.figure(run).axes
    np.testing.assert_allclose(named_lines(axes)["C-LEAD"].get_xydata(), [[0.1, 0.5]])
    assert not axes.collections


def test_no_pgd_rows_yet(run, synthetic):
    synthetic.write_results(run, [synthetic.row("trained", "clean", 0.5)])
    with pytest.raises(MissingFile, match=r"results\.json: expected rows of pgd20, found none"):
        accuracy.draw(run)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ('{"schema": 1, "resu', "found 19 bytes that are no JSON"),
        ("[]", "found a list"),
        ('{"schema": 2, "results": []}', "expected schema 1, found 2"),
        ('{"schema": 1}', "expected a list under results"),
        ('{"schema": 1, "results": [3]}', "expected row 0 to be an object"),
        ('{"schema": 1, "results": [{"model": "trained"}]}', "a string under name of row 0, found None"),
    ],
)
def test_malformed_results(run, content, found):
    (run / "results.json").write_text(content)
    with pytest.raises(UserError, match="results.json") as caught:
        accuracy.draw(run)
    assert found in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"accuracy": 95.0},
        {"accuracy": float("nan")},
        {"accuracy": "0.9"},
        {"accuracy": True},
        {"low": -0.1},
        {"eps": "8/255"},
        {"flags": 3},
        {"samples": "many"},
        {"dataset": ["digits"]},
        {"split": 0},
    ],
)
def test_malformed_row(run, synthetic, change):
    synthetic.write_results(run, [synthetic.row("trained", "pgd20", 0.5, 0.1) | change])
    with pytest.raises(UserError, match=rf"results\.json: expected .*{next(iter(change))}.*row 0, found"):
        accuracy.draw(run)


# image grid


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_shows_images_predictions_and_difference(run, synthetic, channels):
    tensors = synthetic.write_examples(run, channels=channels)
    figure = grid.figure(run)
    assert len(figure.axes) == 3 * 6
    shown = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    expected = tensors["adversarial"][2]
    np.testing.assert_array_equal(shown[6 + 2], expected[0] if channels == 1 else np.moveaxis(expected, 0, -1))
    difference = 0.5 + 3 * (tensors["adversarial"][1] - tensors["clean"][1])  # 0.5 / 0.15 is 3 and a bit
    expected = difference[0] if channels == 1 else np.moveaxis(difference, 0, -1)
    np.testing.assert_allclose(shown[12 + 1], expected, atol=1e-6)
    assert [axes.get_title() for axes in figure.axes[:6]] == list("012345")
    assert [axes.get_xlabel() for axes in figure.axes[:6]] == list("012345")
    assert [axes.get_xlabel() for axes in figure.axes[6:12]] == ["0", "1", "3 ✗", "3", "4", "5"]
    words = " ".join(texts(figure))
    assert "PGD-20 with eps 0.15 on C-LEAD" in words
    assert "difference\n× 3" in words
    assert ("grey unchanged" in words) == (channels == 3)
    assert png_size(grid.draw(run))[0] == 1440


def test_grid_names_the_classes_of_cifar10(tmp_path, synthetic):
    synthetic.write_run(tmp_path / "r", [], "pgd_at", data="cifar10")
    synthetic.write_examples(tmp_path / "r", channels=3, count=10, size=32, eps=8 / 255)
    figure = grid.figure(tmp_path / "r")
    assert len(figure.axes) == 3 * 6
    assert figure.axes[3].get_title() == "cat"
    assert "attacked\neps 8/255" in texts(figure)


def test_grid_of_one_image_nothing_changed(run, synthetic):
    synthetic.write_examples(run, count=1, eps=0.0)
    figure = grid.figure(run)
    assert np.all(np.asarray(figure.axes[2].images[0].get_array()) == 0.5)
    assert png_size(grid.draw(run))[0] == 1440


def test_malformed_examples(run, synthetic):
    path = run / "examples.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"examples\.safetensors: expected a safetensors file, got"):
        grid.draw(run)
    synthetic.write_examples(run, eps=2.0)
    with pytest.raises(UserError, match=r"expected adversarial to be float32 \[6, 1, 8, 8\] in \[0, 1\]"):
        grid.draw(run)
    synthetic.write_examples(run, channels=2)
    with pytest.raises(UserError, match=r"expected clean to be \[K, 1 or 3, H, W\]"):
        grid.draw(run)
    tensors = synthetic.write_examples(run)
    grid.draw(run)
    for name in tensors:
        save_file({key: value for key, value in tensors.items() if key != name}, path)
        with pytest.raises(UserError, match=f"expected tensors clean, .*, found .*{min(set(tensors) - {name})}"):
            grid.draw(run)
    save_file(tensors, path, {"attack": "pgd20"})
    with pytest.raises(UserError, match="expected metadata attack, eps and model"):
        grid.draw(run)
    save_file(tensors | {"labels": tensors["labels"].astype(np.float32)}, path)
    with pytest.raises(UserError, match="expected labels to be int64"):
        grid.draw(run)


# files


def test_an_unfinished_run_gets_the_figures_it_has_data_for(run):
    (run / "results.json").unlink()
    (run / "examples.safetensors").unlink()
    reasons = []
    (path,) = draw_all(run, reasons.append)
    assert path.name == "loss_curves.png"
    assert [reason.split(" not drawn: ")[0] for reason in reasons] == ["accuracy_against_eps", "image_grid"]
    assert "results.json: expected this file" in reasons[0]
    with pytest.raises(MissingFile, match=r"examples\.safetensors"):
        grid.draw(run)


def test_malformed_config(run):
    (run / "config.json").write_text(json.dumps({"schema": 1, "method": None}))
    with pytest.raises(UserError, match=r"config\.json: expected the name of a method under method, found None"):
        draw_all(run)


def test_a_figure_is_written_whole_or_not_at_all(run, monkeypatch):
    path = curves.draw(run)
    before = path.read_bytes()
    figure = curves.figure(run)

    def fill_disk(file, **_):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figure, "savefig", fill_disk)
    with pytest.raises(UserError, match=r"loss_curves\.png: .*No space left on device"):
        write_figure(figure, run, "loss_curves")
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_odd_names_of_runs(run):
    odd = run.rename(run.parent / "cost_$5$_\\frac$_実験\t")  # no mathematics, and characters the font lacks
    assert len(draw_all(odd)) == 3


def test_radius_formats():
    radii = {8 / 255: "8/255", float(np.float32(8 / 255)): "8/255", 0.1: "0.1", 0.2: "0.2", 0.15: "0.15", 1.0: "1"}
    radii |= {0.03: "0.03", 0.031: "0.031", 1 / 255: "1/255", 0.0: "0", 128 / 255: "128/255", 0.5: "0.5"}
    assert {eps: format_eps(eps) for eps in radii} == radii


def test_data_names():
    rows = [{"dataset": "digits", "split": "test", "samples": count} for count in (500, 100, 200)]
    assert data_name(rows) == "digits, 100 to 500 test images"
    assert data_name([{"dataset": "stl10"}, {"dataset": "digits", "split": "val"}]) == "stl10; digits, val"
