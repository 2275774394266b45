"""Accuracy on corrupted images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from clead.engine.results import Row
from clead.errors import UserError
from clead.protocols.corruptions.generator import CORRUPTIONS, corrupt
from clead.protocols.corruptions.official import read_official
from clead.protocols.robustness import clean_outcome, outcome_row
from clead.protocols.subject import Subject

STYLE = "cifar10c_style"  # the flag of rows from our own generator


def corruption_rows(
    subject: Subject, types: Sequence[str] | None, severities: Sequence[int], official: Path | None
) -> Iterator[Row]:
    """Clean accuracy, then one row per type and severity.

    Rows from the official files have the model's data set and ``-c``, such as ``cifar10-c``; those from our own
    generator have the model's data set and the flag ``cifar10c_style``.

    Args:
        subject: the model.
        types: keys of CORRUPTIONS; None for all that suit the images.
        severities: 1 to 5.
        official: folder of the official files; None for our own generator.

    Raises:
        UserError: a type is unknown or does not suit the images, or a file does not.
    """
    gray = subject.test.images.shape[1] != 3
    names = list(types or (name for name, it in CORRUPTIONS.items() if not (gray and it.colour)))
    for name in names:
        if name not in CORRUPTIONS:
            raise UserError(f"unknown corruption {name!r}; expected one of {', '.join(CORRUPTIONS)}")
        if CORRUPTIONS[name].colour and gray:
            raise UserError(f"{name} needs images with three channels, got {subject.test.images.shape[1]}")
    yield outcome_row(subject, "clean", clean_outcome(subject))
    key = {**subject.key, "dataset": f"{subject.key['dataset']}-c"} if official else subject.key
    for name in names:
        for severity in severities:
            test = read_official(official, subject.test, name, severity) if official else None
            test = test or corrupt(subject.test.select(subject.samples), name, severity)
            samples = subject.samples if official else subject.samples.new_tensor(range(len(test)))
            outcome = clean_outcome(replace(subject, test=test, samples=samples, key=key))
            outcome = outcome if official else replace(outcome, flags=(STYLE,))
            yield outcome_row(replace(subject, key=key), name, outcome, corruption=name, severity=severity)
