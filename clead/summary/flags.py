"""What casts doubt on numbers: red flags of rows and of the checks in sanity.json, and runs that are not finished."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from clead.errors import UserError
from clead.figures.files import MissingFile, read_object
from clead.figures.style import format_eps
from clead.summary.runs import Group, Run

NO_WARNING = {"sweep", "headline", "cifar10c_style"}


def flags_of(groups: Sequence[Group]) -> list[str]:
    """One sentence per flag and run."""
    return [sentence for group in groups for run in group.runs for sentence in _flags(run)]


def _flags(run: Run) -> Iterator[str]:
    if run.state != "done":
        yield f"{run.name} is not finished: its state is {run.state}"
    if not run.rows:
        yield f"{run.name} has no results yet"
    flagged: dict[str, dict[str, None]] = {}
    for row in run.rows:
        eps = row.get("eps")
        name = f"{row['name']} {format_eps(eps)}" if eps is not None else str(row["name"])
        for flag in row.get("flags") or ():
            if flag not in NO_WARNING:
                flagged.setdefault(str(flag), {})[name] = None
    for flag, names in flagged.items():
        yield f"{run.name}, {flag}: {', '.join(names)}"
    checks = list(_checks(run))
    for check in checks:
        if check.get("found"):
            yield f"{run.name}, RED FLAG {check.get('flag')}: {check.get('detail')}"
    attacked = any(row.get("attack") and row.get("eps") for row in run.rows)
    if attacked and not any("headline" in (row.get("flags") or ()) for row in run.rows):
        yield f"{run.name} has no headline: a claim of robustness takes autoattack, or apgd_ce and apgd_t"


def _checks(run: Run) -> Iterator[dict[str, object]]:
    path = run.path / "sanity.json"
    try:
        checks = read_object(path).get("sanity")
    except MissingFile:
        return
    if not isinstance(checks, list) or not all(isinstance(check, dict) for check in checks):
        raise UserError(f"{path}: expected a list of objects under sanity")
    yield from checks
