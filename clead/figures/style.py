"""What the figures and the table have in common: names of models, attacks and radii, colours, titles."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by colour-blind readers, and a grey for the model that learnt nothing.
COLOURS = {"trained": "#0072B2", "undefended": "#D55E00", "random": "#6F6F6F"}
INK = "#222222"
FAINT = "#666666"
# Ten that stay apart for colour-blind readers, who have the markers too.
CLASS_COLOURS = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#8C6D1F", "#7A3E9D", "#9A9A9A",
)  # fmt: skip
CLASS_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")

# A figure is shown 350 pixels wide on a telephone: a point is four fifths of a pixel there.
WIDTH = 6.0
TITLE, TEXT, SMALL = 15, 12, 11
TITLE_LETTERS, SUBTITLE_LETTERS = 48, 66  # to a line

METHOD_NAMES = {"clead": "C-LEAD", "ce": "CE", "simclr": "SimCLR", "pgd_at": "PGD-AT"}
MODEL_NAMES = {"undefended": "ce, no defence", "random": "random encoder"}
OUR_GENERATOR = "cifar10c_style"  # the flag of rows on images that clead itself corrupted
ATTACK_NAMES = {"fgsm": "FGSM", "cw": "CW"}
STAGE_NAMES = {
    "pretrain": "pre-training",
    "linear_eval": "linear evaluation",
    "adv_linear_eval": "adversarial linear evaluation",
    "full_finetune": "full fine-tuning",
    "adv_finetune": "adversarial fine-tuning",
    "evaluate": "evaluation",
}


def method_name(method: str) -> str:
    """What people call a method."""
    return METHOD_NAMES.get(method, method)


def model_name(model: str, method: str) -> str:
    """What people call the model ``trained``, ``undefended`` or ``random`` of a run of ``method``."""
    return method_name(method) if model == "trained" else MODEL_NAMES.get(model, model)


def attack_name(name: str) -> str:
    """``PGD-20`` for ``pgd20``; unknown names as they are."""
    if name.startswith("pgd") and name[3:].isdigit():
        return f"PGD-{name[3:]}"
    return ATTACK_NAMES.get(name, name)


def format_eps(eps: float) -> str:
    """A radius as ``8/255`` where it is k/255, else as a short decimal."""
    k = round(eps * 255)
    # 51/255, 102/255 … are 0.2, 0.4 …, which nobody would call that.
    if k > 0 and k % 51 and abs(eps * 255 - k) < 1e-4:
        return f"{k}/255"
    return f"{eps:.4g}"


def data_name(rows: list[dict[str, Any]]) -> str:
    """What rows of results.json were measured on: ``digits, 500 test images``."""
    counts: dict[tuple[str, str], set[int]] = {}
    for row in rows:
        samples = counts.setdefault((row.get("dataset") or "", row.get("split") or ""), set())
        if row.get("samples"):
            samples.add(int(row["samples"]))
    names = []
    for (dataset, split), samples in counts.items():
        count = " to ".join(str(value) for value in sorted({min(samples), max(samples)})) if samples else ""
        images = " ".join(word for word in (count, split, "images") if word) if samples else split
        names.append(", ".join(word for word in (dataset, images) if word))
    return "; ".join(names)


def new_figure(height: float, title: str, subtitle: str) -> Figure:
    """An empty figure, 6 inches wide, with a title over a subtitle above ``height`` inches of room."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    words = (title, TITLE, TITLE_LETTERS), (subtitle, SMALL, SUBTITLE_LETTERS)
    lines = [textwrap.wrap(text, letters, break_on_hyphens=False) for text, _, letters in words]
    heads = [size / 72 * 1.25 * len(of) for (_, size, _), of in zip(words, lines, strict=True)]
    total = height + sum(heads) + 0.2
    layout = ConstrainedLayoutEngine(rect=(0, 0, 1, height / total))
    figure = Figure(figsize=(WIDTH, total), layout=layout)
    # Names of runs may hold dollar signs, which are no mathematics.
    style: dict[str, Any] = {"va": "top", "parse_math": False, "linespacing": 1.15}
    figure.text(0.012, 1 - 0.06 / total, "\n".join(lines[0]), size=TITLE, weight="bold", color=INK, **style)
    below = 1 - (0.06 + heads[0]) / total
    figure.text(0.012, below, "\n".join(lines[1]), size=SMALL, color=FAINT, **style)
    return figure


def plain_axes(axes: Axes) -> None:
    """Leave the left and bottom spines and a light grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=TEXT)
    axes.tick_params(axis="both", color=FAINT)
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)


def panels(figure: Figure, count: int, columns: int = 2) -> list[Axes]:
    """``count`` axes, as many in a row as ``columns``."""
    columns = min(count, columns)
    return [figure.add_subplot(-(-count // columns), columns, index + 1) for index in range(count)]


def legend_below(axes: Axes) -> None:
    """The names of the lines below the axes, where they hide none."""
    from matplotlib.transforms import ScaledTranslation

    long = max((len(name) for name in axes.get_legend_handles_labels()[1]), default=0) > 28
    figure = axes.get_figure(root=True)
    assert figure is not None
    down = axes.transAxes + ScaledTranslation(0, -46 / 72, figure.dpi_scale_trans)
    where: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.45, 0), "bbox_transform": down}
    axes.legend(**where, ncols=1 if long else 2, frameon=False, fontsize=SMALL, labelcolor=INK)


def subtitle(*parts: str) -> str:
    """The parts that say something, separated by dots."""
    return " · ".join(part for part in parts if part)
