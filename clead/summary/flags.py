"""What casts doubt on numbers: the flags of rows, the checks in sanity.json, runs that are not finished."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from clead.errors import UserError
from clead.figures.files import MissingFile, read_object
from clead.figures.style import OUR_GENERATOR, format_eps
from clead.figures.table import Row
from clead.summary.runs import Group, Run

NO_WARNING = {"sweep", "headline", OUR_GENERATOR}


def flags_of(groups: Sequence[Group]) -> list[str]:
    """One sentence per flag and run, those that have no more to say of a run last, with all runs they hold for."""
    runs = [run for group in groups for run in group.runs]
    sentences = [sentence for run in runs for sentence in (*_of_rows(run), *_of_checks(run))]
    remarks = {
        "no results yet": [run for run in runs if not run.rows],
        "not finished": [run for run in runs if run.state != "done"],
        "no headline, as a claim of robustness takes autoattack, or apgd_ce and apgd_t": [
            run for run in runs if _attacked(run) and not any("headline" in _flags(row) for row in run.rows)
        ],
    }
    return sentences + [f"{words}: {', '.join(run.name for run in of)}" for words, of in remarks.items() if of]


def _flags(row: Row) -> list[str]:
    return [str(flag) for flag in row.get("flags") or ()]


def _attacked(run: Run) -> bool:
    return any(row.get("attack") and row.get("eps") for row in run.rows)


def _of_rows(run: Run) -> Iterator[str]:
    flagged: dict[str, dict[str, None]] = {}
    every: set[str] = set()
    for row in run.rows:
        eps = row.get("eps")
        name = f"{row['name']} {format_eps(eps)}" if eps is not None else str(row["name"])
        every.add(name)
        for flag in _flags(row):
            if flag not in NO_WARNING:
                flagged.setdefault(flag, {})[name] = None
    for flag, names in flagged.items():
        yield f"{run.name}, {flag}: {'all rows' if len(names) == len(every) else ', '.join(names)}"


def _of_checks(run: Run) -> Iterator[str]:
    for check in _checks(run):
        if check.get("found") and (not run.outside or check.get("run") == run.name):
            yield f"{run.name}, RED FLAG {check.get('flag')}: {check.get('detail')}"


def _checks(run: Run) -> Iterator[dict[str, object]]:
    path = run.path / "sanity.json"
    try:
        checks = read_object(path).get("sanity")
    except MissingFile:
        return
    if not isinstance(checks, list) or not all(isinstance(check, dict) for check in checks):
        raise UserError(f"{path}: expected a list of objects under sanity")
    yield from checks
