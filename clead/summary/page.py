"""Puts a page together and writes it: ``report.html``, which needs no other file, and ``report.md``."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from clead.engine.environment import name_commit
from clead.engine.files import write_atomic
from clead.errors import UserError
from clead.figures.drawing import FIGURES
from clead.figures.files import read_names
from clead.summary.accuracies import corruption_table, results_tables, transfer_tables
from clead.summary.beside import paper_blocks
from clead.summary.blocks import Block, Bullets, Commands, Pictures, Section, Words
from clead.summary.flags import flags_of
from clead.summary.html import to_html
from clead.summary.markdown import to_markdown
from clead.summary.runs import Group, Run, group_runs, read_runs

TITLES = {
    "loss_curves": "Training loss",
    "accuracy_against_eps": "Accuracy against the radius",
    "accuracy_against_steps": "Accuracy against the steps",
    "corruptions": "Accuracy on corrupted images",
    "image_grid": "Attacked images and amplified differences",
    "perturbation_losses": "Adversarial against random perturbations",
    "tsne": "Features by t-SNE",
    "class_distances": "Distances between classes",
    "feature_inversion": "Feature inversion",
    "input_surface": "Loss around the images",
    "weight_surface": "Loss around the weights",
    "batch_norm": "Batch norm: clean against adversarial",
}


def write_page(runs: Sequence[Path], folder: Path) -> list[Path]:
    """Write ``report.html`` and ``report.md`` about runs and evaluations into ``folder``; returns their paths.

    Raises:
        UserError: a file of a run is malformed, or the folder cannot be written.
    """
    groups = group_runs([run for path in runs for run in read_runs(path)])
    sections = sections_of(groups)
    title = "clead: " + ", ".join(group.name for group in groups)
    pages = {"report.html": to_html(title, sections), "report.md": to_markdown(title, sections, folder)}
    for name, text in pages.items():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomic(folder / name, text.encode())
        except OSError as error:
            raise UserError(f"{folder / name}: expected to write the page, got: {error.strerror}") from error
    return [folder / name for name in pages]


def sections_of(groups: Sequence[Group]) -> list[Section]:
    """What the page says, in order; what there is nothing to say of is left out."""
    flags = flags_of(groups)
    corrupted, transferred = corruption_table(groups), transfer_tables(groups)
    sections = [
        Section("Results", [*results_tables(groups)]),
        Section("Corrupted images", [corrupted] if corrupted else []),
        Section("Transfer of adversarial images", [*transferred]),
        Section("Beside the papers", paper_blocks(groups)),
        Section("Flags", [Bullets(flags)] if flags else [Words("None.")]),
        Section("Figures", [block for group in groups for block in figures_of(group)]),
        Section("Commands", commands_of(groups)),
    ]
    return [section for section in sections if section.blocks]


def figures_of(group: Group) -> list[Block]:
    """The figures of a group's first run; of an evaluation of several models there are none."""
    run = group.first
    if run.outside and len(read_names(run.path)) > 1:
        return []
    files = [(TITLES[name], run.path / "figures" / f"{name}.png") for name in FIGURES]
    there = [(title, file) for title, file in files if file.is_file()]
    of = group.name if len(group.runs) == 1 else f"{group.name}, seed {run.seed}"
    return [Pictures(of, there)] if there else []


def commands_of(groups: Sequence[Group]) -> list[Block]:
    """How to get these numbers again, and what they were computed with."""
    every = [run for group in groups for run in group.runs]
    trained = [_quoted(run) for run in every if not run.outside]
    lines = [f"python -m clead.train --config {run}/config.json --out again" for run in trained]
    if trained:
        lines.append(f"python -m clead.evaluate {' '.join(trained)} --attacks autoattack")
        lines.append(f"python -m clead.evaluate {' '.join(trained)} --comparisons --protocols figures")
    lines.append(f"python -m clead.report {' '.join(dict.fromkeys(map(_quoted, every)))}")
    return [Commands(lines), Bullets([environment_of(run) for run in every])]


def environment_of(run: Run) -> str:
    """Commit, versions and device of a run, or of every row of a model from outside, in one line."""
    if run.outside:
        return f"{run.name}: {'; '.join(dict.fromkeys(str(row.get('versions') or 'unknown') for row in run.rows))}"
    here = run.environment
    rest = [f"{name} {here[name]}" for name in ("torch", "python", "device", "platform") if here.get(name)]
    return ", ".join([f"{run.name}: {name_commit(here)}", *rest])


def _quoted(run: Run) -> str:
    return shlex.quote(str(run.path))
