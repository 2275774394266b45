"""Plain-text tables for a terminal: results of a run, and two runs side by side."""

from __future__ import annotations

from collections.abc import Sequence

from .rows import Row

KEY = ("op", "case", "impl", "mode", "device", "threads", "clock")


def render(cells: Sequence[Sequence[str]], left: int = 1) -> str:
    """Aligned columns; the first ``left`` are text and flush left, the others numbers and flush right."""
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = []
    for row in cells:
        padded = [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def milliseconds(value: float | None) -> str:
    """Three significant digits."""
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}" if value >= 1 else f"{value:.3f}"


def results(rows: list[Row]) -> str:
    """One case: a line for each implementation; ``*`` marks what ``impl="auto"`` takes here."""
    modes = [mode for mode in ("forward", "backward") if any(row["mode"] == mode for row in rows)]
    half = rows[0]["dtype"] in ("bf16", "fp16") and any(row["impl"] == "eager_fp32" for row in rows)
    line_name = next((row["impl"] for row in rows if row["kind"] == "line"), "line")
    rated = [name for name in ("of_products", "of_copy") if any(row.get(name) for row in rows)][:1]
    head = ["impl", *(f"{mode} ms" for mode in modes), "full ms", "p20 .. p80", "min", "x eager"]
    head += ["x fp32 eager"] * half + [f"x {line_name}", *map(_words, rated), "peak MB", "value err", "grad err"]
    lines = [head]
    for row in rows:
        if row["mode"] != "full" or row["reason"]:
            continue
        parts = {other["mode"]: other["p50_ms"] for other in rows if other["impl"] == row["impl"]}
        line = [row["impl"] + "*" * bool(row["auto"]), *(milliseconds(parts.get(mode)) for mode in modes)]
        line += [milliseconds(row["p50_ms"]), f"{milliseconds(row['p20_ms'])} .. {milliseconds(row['p80_ms'])}"]
        line.append(milliseconds(row["min_ms"]))
        line += [_ratio(row["ratio_to_eager"])] + [_ratio(row["ratio_to_eager_fp32"])] * half
        line += [_ratio(row["ratio_to_line"]), *(_part(row[name]) for name in rated)]
        line += ["" if row["peak_mb"] is None else f"{row['peak_mb']:.1f}"]
        lines.append(line + [_error(row["value_error"]), _error(row["grad_error"])])
    told: dict[str, list[str]] = {}
    for row in rows:
        if row["mode"] == "full" and (why := row["reason"] or row.get("note")):
            told.setdefault(why, []).append(row["impl"])
    refused = [f"{', '.join(impls)}: {why}" for why, impls in told.items()]
    text = [render(lines)] if len(lines) > 1 else []
    head = f"\n{rows[0]['op']}  {rows[0]['case']}" + f"  clock {rows[0]['clock']}" * (rows[0]["clock"] != "wall")
    return "\n".join([head, *text, *(f"  -- {line}" for line in refused)])


def compare(before: list[Row], after: list[Row]) -> str:
    """Both runs' latest row of each key, and how many times faster the second is.

    A change counts as one if the two intervals p20 .. p80 do not overlap.
    """
    old, new = (_latest(rows) for rows in (before, after))
    both = [key for key in old if key in new]
    cells = [["op", "case", "impl", "mode", "before ms", "after ms", "speed-up", ""]]
    for key in both:
        a, b = old[key], new[key]
        apart = "faster" if b["p80_ms"] < a["p20_ms"] else "SLOWER" if b["p20_ms"] > a["p80_ms"] else "~"
        times = [milliseconds(a["p50_ms"]), milliseconds(b["p50_ms"])]
        cells.append([*map(str, key[:4]), *times, _ratio(a["p50_ms"] / b["p50_ms"]), apart])
    notes = [f"only {where}: {len(rows) - len(both)} rows" for where, rows in (("before", old), ("after", new))]
    if not both:
        return "no row is in both: they differ in " + ", ".join(_differing(before, after))
    changed = [
        name for name in ("torch", "triton", "native", "commit") if _values(before, name) != _values(after, name)
    ]
    told = [f"{name}: {_values(before, name)} -> {_values(after, name)}" for name in changed]
    return "\n".join([render(cells, left=4), "~ = the intervals p20 .. p80 overlap", *notes, *told])


def _latest(rows: list[Row]) -> dict[tuple[str, ...], Row]:
    """The last row of each key that has a number: files are append-only."""
    return {tuple(str(row.get(name, "")) for name in KEY): row for row in rows if row["p50_ms"] is not None}


def _values(rows: list[Row], name: str) -> str:
    return ", ".join(sorted({str(row.get(name, "")) for row in rows}))


def _differing(before: list[Row], after: list[Row]) -> list[str]:
    return [name for name in KEY if not {str(r.get(name)) for r in before} & {str(r.get(name)) for r in after}] or [
        "combination of " + ", ".join(KEY)
    ]


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _part(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _error(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"
