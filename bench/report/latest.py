"""Rows of one machine, looked up: files are append-only, and the last row of a kind counts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .. import rows
from ..rows import Row

Key = tuple[str, str, str, str]
"""op/case, impl, mode, clock."""


@dataclass(frozen=True)
class Latest:
    """The last rows of one device and number of threads."""

    name: str
    threads: int
    found: dict[Key, Row]

    def row(self, case: str, impl: str, mode: str = "full", clock: str = "wall") -> Row | None:
        """None where there is no row; a row may hold a reason instead of a time."""
        return self.found.get((case, impl, mode, clock))

    def time(self, case: str, impl: str, mode: str = "full", clock: str = "wall") -> float | None:
        """Median in milliseconds."""
        row = self.row(case, impl, mode, clock)
        return None if row is None else row["p50_ms"]

    def ours(self, case: str, clock: str = "wall") -> Row | None:
        """The row of what ``impl="auto"`` took."""
        mine = [row for (of, _, mode, by), row in self.found.items() if (of, mode, by) == (case, "full", clock)]
        return next((row for row in mine if str(row["auto"]) == "True" and row["p50_ms"] is not None), None)

    def cases(self, clock: str = "wall") -> list[str]:
        """All op/case with a time of ours."""
        return [case for case in dict.fromkeys(key[0] for key in self.found) if self.ours(case, clock)]

    def impls(self) -> list[str]:
        return list(dict.fromkeys(key[1] for key in self.found))


def load(folder: Path) -> list[Latest]:
    """One for every device folder and number of threads in it, the most threads first."""
    found = []
    for place in sorted(path for path in folder.iterdir() if path.is_dir() and list(path.glob("*.csv"))):
        by_threads: dict[int, dict[Key, Row]] = {}
        for row in rows.read(place):
            if row["op"] != "step":
                key = (f"{row['op']}/{row['case']}", str(row["impl"]), str(row["mode"]), str(row["clock"]))
                by_threads.setdefault(int(row["threads"]), {})[key] = row
        found += [Latest(place.name, threads, by_threads[threads]) for threads in sorted(by_threads, reverse=True)]
    return found


def number(value: object) -> float | None:
    """A cell as a number."""
    return None if value in ("", None) else float(str(value))
