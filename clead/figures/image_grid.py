"""A handful of test images: clean, attacked, and the difference amplified."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from clead.figures.files import Examples, read_data, read_examples, read_method, write_figure
from clead.figures.style import FAINT, INK, SMALL, attack_name, format_eps, model_name, new_figure, subtitle

MOST = 6
RIGHT, WRONG = "#0072B2", "#D55E00"
CLASSES = {
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
}


def amplification(examples: Examples) -> int:
    """The largest whole factor that keeps the amplified difference within half the range of pixels, at least 1."""
    largest = float(np.abs(examples.adversarial - examples.clean).max())
    return max(1, math.floor(0.5 / largest + 1e-4)) if largest > 0 else 1


def amplified(examples: Examples) -> NDArray[np.float32]:
    """0.5 + factor · (adversarial - clean), [K, C, H, W] in [0, 1]: grey where nothing changed."""
    shifted: NDArray[np.float32] = 0.5 + amplification(examples) * (examples.adversarial - examples.clean)
    return shifted.clip(0, 1)


def figure(run: Path) -> Figure:
    """Draw the first examples of ``run``, at most six."""
    examples = read_examples(run)
    count = min(len(examples.labels), MOST)
    data = read_data(run)
    attack = f"{attack_name(examples.attack)} with eps {format_eps(examples.eps)}"
    title = f"{attack} on {model_name(examples.model, read_method(run))}"
    key = "above: true class, below: prediction (✗ wrong)"
    columns = max(count, 5)  # a single image need not fill the page
    drawn = new_figure(0.3 + 3 * (5.0 / columns + 0.3), title, subtitle(data, key, run.name))
    images = (examples.clean, examples.adversarial, amplified(examples))
    predictions = (examples.clean_prediction, examples.adversarial_prediction, None)
    names = ("clean", f"attacked\neps {format_eps(examples.eps)}", f"difference\n× {amplification(examples)}")
    colour = examples.clean.shape[1] == 3
    for row, (batch, predicted, name) in enumerate(zip(images, predictions, names, strict=True)):
        for column in range(count):
            axes = drawn.add_subplot(3, columns, row * columns + column + 1)
            show(axes, batch[column], "gray" if row < 2 else "RdBu_r")
            label = int(examples.labels[column])
            if row == 0:
                axes.set_title(class_name(data, label), size=SMALL, color=INK, pad=4)
            if predicted is not None:
                prediction = int(predicted[column])
                text, ink = class_name(data, prediction), RIGHT
                if prediction != label:
                    text, ink = f"{text} ✗", WRONG
                axes.set_xlabel(text, size=SMALL, color=ink, labelpad=3)
            if column == 0:
                axes.set_ylabel(name, size=SMALL, color=INK)
    meaning = "grey unchanged" if colour else "red brighter, blue darker, white unchanged"
    drawn.supxlabel(f"difference × {amplification(examples)}: {meaning}", size=SMALL, color=FAINT)
    return drawn


def class_name(data: str, label: int) -> str:
    """The class's name where the data set is known, else its number."""
    names = CLASSES.get(data, ())
    return names[label] if 0 <= label < len(names) else str(label)


def show(axes: Axes, image: NDArray[np.float32], colour_map: str) -> None:
    """Show one image [C, H, W] in [0, 1] pixel by pixel."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color("#BBBBBB")
    pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    axes.imshow(pixels, cmap=colour_map, vmin=0, vmax=1, interpolation="nearest")


def draw(run: Path) -> Path:
    """Write ``run/figures/image_grid.png``; returns its path."""
    return write_figure(figure(run), run, "image_grid")
