"""What the figures and the table have in common: names of models, attacks and radii, colours, titles."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

# Okabe and Ito's colours, told apart by colour-blind readers, and a grey for the model that learnt nothing.
COLOURS = {"trained": "#0072B2", "undefended": "#D55E00", "random": "#6F6F6F"}
INK = "#222222"
FAINT = "#777777"

METHOD_NAMES = {"clead": "C-LEAD", "ce": "CE", "simclr": "SimCLR", "pgd_at": "PGD-AT"}
MODEL_NAMES = {"undefended": "ce, no defence", "random": "random encoder"}
ATTACK_NAMES = {"fgsm": "FGSM", "cw": "CW"}
STAGE_NAMES = {
    "pretrain": "pre-training",
    "linear_eval": "linear evaluation",
    "adv_linear_eval": "adversarial linear evaluation",
    "full_finetune": "full fine-tuning",
    "adv_finetune": "adversarial fine-tuning",
    "evaluate": "evaluation",
}


def model_name(model: str, method: str) -> str:
    """What people call the model ``trained``, ``undefended`` or ``random`` of a run of ``method``."""
    return METHOD_NAMES.get(method, method) if model == "trained" else MODEL_NAMES.get(model, model)


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
    """An empty figure, 8 inches wide and ``height`` high, with a title over a subtitle at its top left."""
    layout = ConstrainedLayoutEngine(rect=(0, 0, 1, 1 - 0.62 / height))
    figure = Figure(figsize=(8, height), layout=layout)
    # Names of runs may hold dollar signs, which are no mathematics.
    figure.text(0.012, 1 - 0.10 / height, title, size=13, weight="bold", color=INK, va="top", parse_math=False)
    figure.text(0.012, 1 - 0.38 / height, subtitle, size=9.5, color=FAINT, va="top", parse_math=False)
    return figure


def plain_axes(axes: Axes) -> None:
    """Leave the left and bottom spines and a light grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=9.5)
    axes.tick_params(axis="both", color=FAINT)
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)
