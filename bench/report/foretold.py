"""The predictions as if they were the rows of a machine, so that goals can be read off them."""

from __future__ import annotations

from ..rows import Row
from .chips import Chip
from .latest import Key, Latest, number


def machine(rows: list[dict[str, str]], chip: Chip) -> Latest:
    """What ``predicted.csv`` says of ``chip``: our implementation, and the lines to beat."""
    found: dict[Key, Row] = {}
    by_case: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        if row["chip"] == chip.name:
            by_case.setdefault(f"{row['op']}/{row['case']}", []).append(row)
    for case, mine in by_case.items():
        times = [number(row["predicted_us"]) or 0.0 for row in mine]
        if not all(times):
            continue
        ours, executed = 1e-3 * sum(times), sum(number(row["executed"]) or 0.0 for row in mine)
        if executed:
            part = executed / (1e-3 * ours) / chip.products[case.rpartition("-")[2]]
            found[case, "triton", "full", "graph"] = {"p50_ms": ours, "of_products": part}
            found[case, "products", "full", "graph"] = {"p50_ms": 1e-3 * (number(mine[0]["products_us"]) or 0.0)}
        else:
            line = 1e-3 * (number(mine[0]["line_us"]) or 0.0)
            found[case, "native", "full", "graph"] = {"p50_ms": ours, "of_copy": line / ours}
            found[case, "traffic", "full", "graph"] = {"p50_ms": line}
    return Latest(chip.name, 0, found)
