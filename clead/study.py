"""``python -m clead.study``: every method on the digits, with the same seeds and radius, in one table.

For every method and seed: the recipe's training and linear evaluation, then on test images the clean accuracy and
PGD-20 at eps 0.15, the accuracy of a linear head on two labels per class, and how large a label-free attack makes the
contrastive loss. Trained runs are kept under ``--out/runs`` and not trained again.
"""

from __future__ import annotations

from clead.errors import UserError, leave_on_interrupt, run_command

if __name__ == "__main__":
    leave_on_interrupt()

import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

from clead import report, train
from clead.attacks import Constraint, Objective, attack, frozen
from clead.attacks.contrastive import info_nce_against
from clead.cli import Plan, tyro_cli
from clead.config import EvaluationConfig, Integers
from clead.data import Splits, load_digits
from clead.engine.environment import environment
from clead.engine.files import read_json, write_atomic, write_json
from clead.engine.progress import Progress
from clead.loading import load
from clead.methods import METHODS
from clead.models import Model
from clead.own_modules import HELP as IMPORT_HELP
from clead.own_modules import import_own
from clead.protocols.few_labels import few_labels
from clead.recipes import default_recipe
from clead.rng import Rng

SCHEMA = 1
EPS, STEPS = 0.15, 20
PER_CLASS, DRAWS = 2, 10
TEMPERATURE, BATCH = 0.2, 128
_EVALUATION = EvaluationConfig(attacks=("pgd20",), eps=(EPS,))


@dataclass(frozen=True)
class Options:
    """Which methods to study."""

    out: Path = Path("results/digits")
    """Folder of the table; the runs go to its runs/."""
    methods: Annotated[tuple[str, ...], tyro.conf.arg(metavar="METHOD")] = ()
    """Only these, by spaces or commas; all when empty. ``random`` is the untrained encoder."""
    seeds: Integers = (0, 1, 2)
    """One run per method and seed; the data and the labels drawn are the same for all methods."""
    modules: Annotated[str | None, tyro.conf.arg(name="import", metavar="MODULE,…", help=IMPORT_HELP)] = None


def study(name: str, seed: int, folder: Path, splits: Splits, progress: Progress) -> dict[str, Any]:
    """Train one method with one seed, unless that is done, and measure it."""
    method = "simclr" if name == "random" else name
    recipe = default_recipe(method, "digits")
    if recipe.config.data != "digits":
        raise UserError(f"{name} needs a recipe for the digits to be in the study, found {recipe.name}")
    changes: dict[str, Any] = {"seed": seed, "evaluation": _EVALUATION, "compare": ()} | (
        {"epochs": 0} if name == "random" else {}
    )
    plan = Plan(method, recipe.name, replace(recipe.config, **changes), folder, resume=True, overwrite=False)
    run = train.run(plan, progress)
    accuracies = {row["name"]: row["accuracy"] for row in run.results}
    model = load(run.path)
    branch = model.evaluation_branch
    projector = "projector" in model.heads
    return {
        "method": name,
        "seed": seed,
        "commit": environment()["commit"],
        "clean": accuracies["clean"],
        "pgd20": accuracies["pgd20"],
        "few_labels": few_labels(model, splits, per_class=PER_CLASS, draws=DRAWS, branch=branch, seed=0),
        "contrastive_loss": contrastive_loss(model, splits, branch) if projector else None,
    }


def contrastive_loss(model: Model, splits: Splits, branch: str) -> float:
    """InfoNCE of every test image against its own attacked version, the mean; PGD-20 that ascends this loss.

    Image i's positive is its attacked version, its negatives are those of the other images of its batch.
    """
    test = splits.test
    losses: list[Tensor] = []
    for samples in torch.arange(len(test)).split(BATCH):
        x = test.batch(samples)
        with frozen(model), torch.no_grad():
            anchors = model.embed(x, branch=branch)
        loss = info_nce_against(anchors, temperature=TEMPERATURE)
        x_adv = attack(
            Objective(model, lambda x: model.embed(x, branch=branch), loss),
            x,
            constraint=Constraint("linf", EPS),
            steps=STEPS,
            step_size=EPS / 4,
            random_start=True,
            rng=Rng.create(0, "eval_attack", samples),
        )
        with torch.no_grad():
            losses.append(loss(model.embed(x_adv, branch=branch)))
    return float(torch.cat(losses).mean())


def to_markdown(rows: list[dict[str, Any]], command: str) -> str:
    """One line per method: mean and range over the seeds."""
    lines = [
        "# Every method on the digits",
        "",
        f"`{command}`; commit, versions and machine in [study.json](study.json). Mean over seeds, smallest and largest "
        f"in brackets. PGD-20 is white-box at eps {EPS} on the linear classifier (or the network's own). `2 labels`: "
        f"logistic regression on {PER_CLASS} labelled images per class, mean of {DRAWS} draws. `contrastive`: InfoNCE "
        f"of test images against their own attacked versions (temperature {TEMPERATURE}, PGD-20 at eps {EPS} that "
        "ascends it; ln 128 = 4.85 is chance).",
        "",
        "| method | labels in training | seeds | clean % | PGD-20 % | 2 labels % | contrastive |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for name in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == name]
        percents = [_spread([100 * row[key] for row in mine], 1) for key in ("clean", "pgd20", "few_labels")]
        losses = [row["contrastive_loss"] for row in mine]
        contrastive = "–" if None in losses else _spread(losses, 2)
        labelled = "yes" if name in METHODS and METHODS[name].labelled else "no"
        cells = [f"`{name}`", labelled, str(len(mine)), *percents, contrastive]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _spread(values: list[float], digits: int) -> str:
    low, high = min(values), max(values)
    return f"{statistics.mean(values):.{digits}f} ({low:.{digits}f} … {high:.{digits}f})"


def main(argv: list[str]) -> None:
    """The command."""
    import_own(argv)
    options: Options = tyro_cli(Options, argv, prog="python -m clead.study", description=__doc__)
    known = ("random", *METHODS)
    asked = [name for words in options.methods for name in words.split(",")]
    for name in asked:
        if name not in known:
            raise UserError(f"unknown method {name!r}; expected some of {', '.join(known)}")
    console = report.output_console()
    progress = Progress(console)
    splits = load_digits()
    file = options.out / "study.json"
    options.out.mkdir(parents=True, exist_ok=True)
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    if file.exists():
        rows = {(row["method"], row["seed"]): row for row in read_json(file, schema=SCHEMA)["rows"]}
    for name in asked or known:
        for seed in options.seeds:
            rows[name, seed] = study(name, seed, options.out / "runs" / f"{name}-s{seed}", splits, progress)
            done = [rows[key] for key in sorted(rows, key=lambda key: (known.index(key[0]), key[1]))]
            write_json(file, {"schema": SCHEMA, "environment": environment(), "rows": done})
            table = to_markdown(done, "python -m clead.study")
            write_atomic(options.out / "README.md", table.encode())
    report.emit(console, table)


if __name__ == "__main__":
    run_command(main, hint="the same command continues")
