"""``measures.json``: numbers about a model that are no accuracies, each with its formula; ``sanity.json`` beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clead.attacks import frozen
from clead.augment import find_augmentation
from clead.engine.files import read_json, write_json
from clead.engine.results import Row, merged
from clead.errors import UserError
from clead.evaluate.models import Opened
from clead.protocols.corruptions.evaluation import STYLE
from clead.protocols.metrics import (
    FORMULAS,
    alignment,
    class_distance_ratio,
    gap_closed,
    relative_drop,
    uniformity,
)
from clead.rng import Rng

SCHEMA = 1
KEY = ("run", "model", "protocol", "bn_branch", "dataset", "split", "seed", "name", "of")


def read_entries(file: Path) -> list[Row]:
    """The entries of a file such as ``measures.json``; none when it does not exist yet."""
    found = read_json(file, schema=SCHEMA).get(file.stem) if file.exists() else []
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise UserError(f"{file}: expected a list of objects under {file.stem}, found {found!r:.60}")
    return found


def add_entries(file: Path, entries: Sequence[dict[str, Any]], run: str | None) -> None:
    """Add to a file such as ``measures.json``; an entry with the key of an older one replaces it.

    Args:
        file: the file; made where it is missing.
        entries: what to add.
        run: the name that the run of all entries there has now; None where the file has entries of several.
    """
    write_json(file, {"schema": SCHEMA, file.stem: merged(read_entries(file), entries, run, KEY)})


def make_measure(key: dict[str, Any], name: str, of: str, value: float, samples: int) -> Row:
    """One measure: ``name`` of ``of``, over ``samples`` images."""
    named = {field: key.get(field) for field in KEY}
    return {**named, "name": name, "of": of, "value": value, "samples": samples, "formula": FORMULAS[name]}


def encoding_measures(opened: Opened) -> Iterator[Row]:
    """Alignment, uniformity and class-distance ratio of the features, and of the embeddings where there are any.

    The views of the alignment are two draws of the augmentation the model was trained with.
    """
    subject = opened.subject
    counts = subject.labels.bincount()
    if int((counts > 0).sum()) < 2 or int(counts.max()) < 2:
        raise UserError(f"metrics need images of two classes, two of one of them, got {len(subject.samples)} images")
    augment = find_augmentation(opened.config.augment)
    rng = Rng.create(subject.seed, "augment", subject.samples)
    for of, encode in subject.classifier.encodings.items():
        z = _encode(opened, encode, subject.images)
        views = [_encode(opened, encode, augment(subject.images, rng.view(view))) for view in (0, 1)]
        values = {
            "alignment": alignment(*views),
            "uniformity": uniformity(z),
            "class_distance_ratio": class_distance_ratio(z, subject.labels),
        }
        for name, value in values.items():
            yield make_measure(subject.key, name, of, value, len(z))


@torch.no_grad()
def _encode(opened: Opened, encode: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    with frozen(opened.model):
        return torch.cat([encode(part) for part in images.split(opened.subject.batch_size)])


def accuracy_measures(rows: Sequence[Row], gap: Sequence[str] | None) -> Iterator[Row]:
    """The relative drop of every attacked or corrupted row; with ``gap`` the share of the gap that it closes.

    Args:
        rows: of one evaluation; a drop needs a clean row of the same model.
        gap: the names of the baseline and of the reference, or None.
    """
    clean = {_classifier(row): row["accuracy"] for row in rows if row.get("name") == "clean"}
    drops: dict[tuple[str, str, int], dict[str, tuple[Row, float]]] = {}
    protocols: dict[str, list[str]] = {}  # in the order asked for: one model's linear_eval is another's end_to_end
    for row in rows:
        own = _classifier(row)
        if own in clean and (row.get("attack") or row.get("corruption")) and "sweep" not in row["flags"]:
            at = "" if row["eps"] is None else f" {row['norm']} eps {row['eps']:.6g}"
            of = f"{row['name']}{at}" + (f" severity {row['severity']}" if row["severity"] else "")
            drop = relative_drop(clean[own], row["accuracy"])
            mine = protocols.setdefault(row["run"], [])
            mine += [row["protocol"]] if row["protocol"] not in mine else []
            drops.setdefault((of, own[2], mine.index(row["protocol"])), {})[row["run"]] = (row, drop)
            yield make_measure(row, "relative_drop", of, drop, row["samples"])
    yield from _mean_corruption(rows)
    for (of, *_), by_run in drops.items() if gap else ():
        if gap and set(gap) <= set(by_run):
            baseline, reference = (by_run[name][1] for name in gap)
            for row, drop in by_run.values():
                value = gap_closed(drop, baseline=baseline, reference=reference)
                yield make_measure(row, "gap_closed", f"{of}, {gap[0]} to {gap[1]}", value, row["samples"])


def _classifier(row: Row) -> tuple[str, str, str]:
    """Whose accuracy a row is: one model has a classifier of every protocol, and neighbours have a clean row too."""
    return row["run"], row["protocol"], row["dataset"].removesuffix("-c")  # cifar10-c is cifar10, corrupted


def _mean_corruption(rows: Sequence[Row]) -> Iterator[Row]:
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.get("corruption"):
            groups.setdefault((row["run"], row["dataset"]), []).append(row)
    for group in groups.values():
        types, severities = ({row[name] for row in group} for name in ("corruption", "severity"))
        of = f"{len(types)} types, severities {', '.join(map(str, sorted(severities)))}"
        of += ", our generator" if STYLE in group[0]["flags"] else ", official files"
        mean = sum(row["accuracy"] for row in group) / len(group)
        yield make_measure(group[0], "mean_corruption_accuracy", of, mean, group[0]["samples"])
