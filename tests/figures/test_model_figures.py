"""Figures of hand-made files: that they show those numbers, and what they say of bad ones."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex

from clead.errors import UserError
from clead.figures import (
    accuracy_against_steps,
    batch_norm,
    class_distances,
    corruptions,
    feature_inversion,
    input_surface,
    perturbation_losses,
    tsne,
    weight_surface,
)
from clead.figures.drawing import draw_all
from clead.figures.files import MissingFile
from clead.figures.style import CLASS_COLOURS, COLOURS

RANDOM = np.random.default_rng(0)


def arrays(figure):
    """Data of the figure, as small as it may be."""
    values = lambda *shape: RANDOM.uniform(0.1, 1, shape).astype(np.float32)  # noqa: E731
    return {
        "tsne": {"points": values(20, 2), "labels": np.arange(20) % 10},
        "class_distances": {"features": values(10, 10), "embeddings": values(10, 10)},
        "feature_inversion": {
            "seeds": values(3, 1, 8, 8),
            "inverted": values(3, 4, 1, 8, 8),
            "components": np.array([9, 4, 5, 1]),
            "before": values(3, 4),
            "after": values(3, 4),
        },
        "input_surface": {"loss": values(5, 5), "axis": np.linspace(-0.3, 0.3, 5, dtype=np.float32)},
        "weight_surface": {"loss": values(5, 5), "axis": np.linspace(-0.5, 0.5, 5, dtype=np.float32)},
        "perturbation_losses": {"eps": np.array([0, 0.1, 0.2], np.float32)}
        | {f"{kind}_{of}": values(3) for kind in ("adversarial", "random") for of in ("contrastive", "cross_entropy")},
        "batch_norm": {"layer": np.array([0, 0, 1])}
        | {f"{kind}_{of}": values(3) for kind in ("clean", "adversarial") for of in ("mean", "variance")},
    }[figure]


FACTS = {"class_distances": {"ratio_features": "1.98", "ratio_embeddings": "1.19"}}
DATA = {
    "tsne": tsne,
    "class_distances": class_distances,
    "feature_inversion": feature_inversion,
    "input_surface": input_surface,
    "weight_surface": weight_surface,
    "perturbation_losses": perturbation_losses,
    "batch_norm": batch_norm,
}


@pytest.fixture
def write(run, synthetic):
    """Write the data of a figure for the run and for one of its comparisons; returns the run's."""

    def _write(figure, **changes):
        mine = arrays(figure) | changes
        synthetic.write_data(run, figure, mine, **FACTS.get(figure, {}))
        other = run / "comparisons" / "random"
        synthetic.write_data(other, figure, arrays(figure), model="random", **FACTS.get(figure, {}))
        return mine

    return _write


def words_of(figure):
    return " ".join(text.get_text() for text in figure.texts).replace("\n", " ")


def titles(figure):
    return [axes.get_title().splitlines()[0] for axes in figure.axes if axes.get_title()]


def lines_of(axes):
    return {line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith("_")}


@pytest.mark.parametrize("figure", DATA)
def test_every_figure_is_drawn_from_its_file_alone(run, write, figure):
    write(figure)
    drawn = DATA[figure].figure(run)
    drawn.set_dpi(40)  # a layout that does not fit would warn, which is an error here
    FigureCanvasAgg(drawn).draw()
    assert drawn.get_size_inches()[0] == 6
    assert run.name in words_of(drawn)


@pytest.mark.parametrize("figure", DATA)
def test_what_is_not_computed_yet_is_missing_and_says_how(run, figure):
    with pytest.raises(MissingFile, match=rf"none; python -m clead\.evaluate .* --protocols {figure} computes it"):
        DATA[figure].figure(run)


def test_draw_all_draws_what_was_computed_and_is_silent_about_the_rest(run, write):
    write("tsne")
    (run / "results.json").unlink()
    (run / "examples.safetensors").unlink()
    reasons = []
    assert [path.name for path in draw_all(run, reasons.append)] == ["loss_curves.png", "tsne.png"]
    assert [reason.split(" not ")[0] for reason in reasons] == ["accuracy_against_eps", "image_grid"]


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"points": np.zeros((19, 2), np.float32)}, r"labels to be numbers \[N\], found int64 \(20,\)"),
        ({"points": np.zeros((20, 3), np.float32)}, r"points to be numbers \[N×2\]"),
        ({"points": np.zeros((20, 2))}, r"points to be numbers \[N×2\], found float64"),
        ({"points": np.full((20, 2), np.inf, np.float32)}, "points to be finite"),
        ({"labels": np.arange(20)}, "labels of 10 classes, found 19"),
    ],
)
def test_malformed_arrays(run, write, changes, found):
    write("tsne", **changes)
    with pytest.raises(UserError, match=rf"tsne\.safetensors: expected {found}"):
        tsne.figure(run)


def test_malformed_files(run, synthetic):
    synthetic.write_data(run, "tsne", {"points": np.zeros((9, 2), np.float32)})
    with pytest.raises(UserError, match="expected the array labels, found points"):
        tsne.figure(run)
    synthetic.write_data(run, "tsne", arrays("tsne"), classes="ten")
    with pytest.raises(UserError, match="expected metadata figure, model, .*classes, eps"):
        tsne.figure(run)
    synthetic.write_data(run, "tsne", arrays("tsne"), schema="2")
    with pytest.raises(UserError, match="expected schema 1 of the figure tsne, found '2'"):
        tsne.figure(run)
    path = run / "figures" / "tsne.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match=r"tsne\.safetensors: expected a safetensors file, got"):
        tsne.figure(run)


# each figure


def test_tsne_has_a_colour_a_marker_and_a_name_per_class(run, write):
    mine = write("tsne")
    first, second = tsne.figure(run).axes
    assert [first.get_title(), second.get_title()] == ["C-LEAD", "random encoder"]
    assert len(first.collections) == 10
    for label, cloud in enumerate(first.collections):
        np.testing.assert_allclose(cloud.get_offsets(), mine["points"][mine["labels"] == label])
        assert to_hex(cloud.get_facecolor()[0]).upper() == CLASS_COLOURS[label]
    assert len({str(cloud.get_paths()[0].vertices.tolist()) for cloud in first.collections}) == 10
    assert [text.get_text() for text in first.texts] == [str(label) for label in range(10)]


def test_distances_share_a_scale_and_tell_the_ratio(run, write):
    mine = write("class_distances")
    drawn = class_distances.figure(run)
    maps = [axes for axes in drawn.axes if axes.images]
    assert [axes.get_title().splitlines() for axes in maps[:2]] == [
        ["C-LEAD, features", "inter / intra 1.98"],
        ["C-LEAD, embeddings", "inter / intra 1.19"],
    ]
    assert len(maps) == 4
    np.testing.assert_array_equal(maps[0].images[0].get_array(), mine["features"])
    assert len({axes.images[0].get_clim() for axes in maps}) == 1
    assert [label.get_text() for label in maps[0].get_yticklabels()] == [str(label) for label in range(10)]


def test_distances_without_a_ratio(run, synthetic):
    synthetic.write_data(run, "class_distances", arrays("class_distances"), ratio_features="much")
    with pytest.raises(UserError, match="expected the number ratio_features"):
        class_distances.figure(run)


def test_inversion_shows_seeds_and_components(run, write):
    mine = write("feature_inversion")
    drawn = feature_inversion.figure(run)
    block = drawn.subfigs[0]
    assert block.get_suptitle() == "C-LEAD"
    assert len(block.axes) == 3 * 5
    assert [axes.get_title() for axes in block.axes[:5]] == ["seed", "no. 9", "no. 4", "no. 5", "no. 1"]
    np.testing.assert_array_equal(block.axes[5].images[0].get_array(), mine["seeds"][1, 0])
    np.testing.assert_array_equal(block.axes[5 + 3].images[0].get_array(), mine["inverted"][1, 2, 0])


@pytest.mark.parametrize(("name", "end"), [("input_surface", "0.3"), ("weight_surface", "0.5")])
def test_surfaces_share_a_scale_and_have_contours(run, write, name, end):
    mine = write(name)
    drawn = DATA[name].figure(run)
    first, second = (axes for axes in drawn.axes if axes.get_title())
    assert [first.get_title(), second.get_title()] == ["C-LEAD", "random encoder"]
    mesh, contours = first.collections
    np.testing.assert_allclose(np.asarray(mesh.get_array()).reshape(5, 5), mine["loss"], rtol=1e-6)
    assert mesh.norm is second.collections[0].norm
    assert list(contours.levels) == [level for level in (0.3,) if mine["loss"].min() < level < mine["loss"].max()]
    assert [label.get_text() for label in first.get_xticklabels()][1:] == ["0", end]


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"loss": np.full((5, 5), np.nan, np.float32)}, "losses without NaN"),
        ({"axis": np.zeros(5, np.float32)}, "an axis of two points or more that grows"),
    ],
)
def test_a_surface_with_gaps_is_refused(run, write, changes, found):
    write("input_surface", **changes)
    with pytest.raises(UserError, match=found):
        input_surface.figure(run)


def test_odd_maps_and_images_are_refused(run, write):
    write("class_distances", embeddings=np.ones(10, np.float32))
    with pytest.raises(UserError, match=r"embeddings to be numbers \[K×K\], found float32 \(10,\)"):
        class_distances.figure(run)
    two = {"seeds": np.ones((1, 2, 8, 8), np.float32), "inverted": np.ones((1, 4, 2, 8, 8), np.float32)}
    write("feature_inversion", **two)
    with pytest.raises(UserError, match="images with 1 or 3 channels"):
        feature_inversion.figure(run)


def test_perturbation_losses_are_two_panels(run, write):
    mine = write("perturbation_losses")
    contrastive, entropy = perturbation_losses.figure(run).axes
    assert [axes.get_ylabel() for axes in (contrastive, entropy)] == ["contrastive loss", "cross-entropy"]
    lines = lines_of(entropy)
    assert list(lines) == [f"{of}, {kind}" for of in ("C-LEAD", "random encoder") for kind in ("adversarial", "random")]
    np.testing.assert_array_equal(lines["C-LEAD, random"].get_ydata(), mine["random_cross_entropy"])
    np.testing.assert_array_equal(lines["C-LEAD, random"].get_xdata(), mine["eps"])
    assert lines["random encoder, random"].get_color() == COLOURS["random"]
    assert lines["C-LEAD, random"].get_linestyle() != lines["C-LEAD, adversarial"].get_linestyle()


def test_batch_norm_has_a_point_per_channel_and_the_diagonal(run, write):
    mine = write("batch_norm")
    drawn = batch_norm.figure(run)
    assert titles(drawn) == ["C-LEAD: mean", "C-LEAD: variance", "random encoder: mean", "random encoder: variance"]
    mean, variance = drawn.axes[:2]
    points = np.stack([mine["clean_mean"], mine["adversarial_mean"]], 1)
    np.testing.assert_allclose(mean.collections[0].get_offsets(), points)
    (diagonal,) = mean.get_lines()
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata()) == [points.min(), points.max()]
    assert (mean.get_xscale(), variance.get_xscale()) == ("linear", "log")


# rows


def test_accuracy_against_steps(run, synthetic):
    sweep = [
        synthetic.row("trained", f"pgd{steps}", accuracy, eps, steps=steps, attack="pgd", flags=["sweep"])
        for eps, high in ((0.1, 0.8), (0.2, 0.6))
        for steps, accuracy in ((100, high - 0.2), (0, high), (10, high - 0.1))
    ]
    few = synthetic.row("trained", "pgd10", 0.1, 0.1, steps=10, attack="pgd", samples=50)
    other = [synthetic.row("trained", "pgd40", 0.1, 0.1, steps=40, attack="pgd", norm="l2")]
    alone = [synthetic.row("random", "pgd20", 0.3, 0.1, steps=20, attack="pgd")]
    synthetic.write_results(run, [*sweep, few, *other, *alone])
    (axes,) = accuracy_against_steps.figure(run).axes
    lines = lines_of(axes)
    assert list(lines) == ["C-LEAD, eps 0.1", "C-LEAD, eps 0.2"]  # a single number of steps is no curve
    np.testing.assert_allclose(lines["C-LEAD, eps 0.1"].get_xydata(), [[0, 0.8], [10, 0.7], [100, 0.6]])
    assert len({str(line.get_linestyle()) for line in lines.values()}) == 2
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "10", "100"]


def test_no_sweep_over_steps_yet(run):
    with pytest.raises(MissingFile, match=r"several numbers of steps; python -m clead\.evaluate .* sweep_steps"):
        accuracy_against_steps.figure(run)


def test_corruptions_are_means_and_ranges_over_severities(run, synthetic):
    values = {"fog": {1: 0.9, 5: 0.5}, "snow": {1: 0.8, 5: 0.8}}
    rows = [
        synthetic.row("trained", name, value, corruption=name, severity=severity, flags=["cifar10c_style"])
        for name, of in values.items()
        for severity, value in of.items()
    ]
    synthetic.write_results(run, [*rows, synthetic.row("random", "fog", 0.2, corruption="fog", severity=1)])
    (axes,) = corruptions.figure(run).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["mean of all", "fog"]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([0.2, 0.2])  # official files come first
    synthetic.write_results(run, rows)
    drawn = corruptions.figure(run)
    (axes,) = drawn.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["mean of all", "fog", "snow"]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([0.75, 0.7, 0.8])
    whiskers = [np.asarray(path.vertices)[:, 0].tolist() for path in axes.collections[0].get_paths()]
    assert whiskers == [[0.5, 0.9], [0.5, 0.9], [0.8, 0.8]]
    assert "our own generator" in words_of(drawn)


def test_no_corruptions_yet(run):
    with pytest.raises(MissingFile, match=r"corrupted images, found none; python -m clead\.evaluate .* corruptions"):
        corruptions.figure(run)
