"""Pictures of the results: time, speed-up and memory against N, and every implementation under the machine's roof."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .latest import Latest, load, number

SHOWN = ("eager", "careful", "compile", "compile_graph", "linear_cross_entropy", "inf_cl", "cut_cross_entropy", "liger")


def write(folder: Path) -> list[Path]:
    """PNG files in each device's folder; none where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        print("no plots: matplotlib is not installed")
        return []
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    made = []
    for machine in load(folder):
        clock = "graph" if machine.cases("graph") else "wall"
        place, suffix = folder / machine.name, f"{machine.threads}-threads"
        for dtype in ("fp32", "bf16", "fp16"):
            if len(_sizes(machine, dtype, clock)) > 1:
                made.append(place / f"nt_xent-{dtype}-{suffix}.png")
                _against_rows(plt, machine, dtype, clock, made[-1])
        if any(number(row.get("product_rate")) for row in machine.found.values()):
            made.append(place / f"roofline-{suffix}.png")
            _roofline(plt, machine, clock, made[-1])
    return made


def _sizes(machine: Latest, dtype: str, clock: str) -> dict[int, str]:
    """NT-Xent cases that differ in their rows only."""
    found = {}
    for case in machine.cases(clock):
        row = machine.ours(case, clock)
        if row and row["dtype"] == dtype and case == f"nt_xent/n{row['rows']}-d128-t0.5-{dtype}":
            found[int(row["rows"])] = case
    return dict(sorted(found.items()))


def _against_rows(plt: Any, machine: Latest, dtype: str, clock: str, path: Path) -> None:
    sizes = _sizes(machine, dtype, clock)
    figure, (time, speed, memory) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    own = {str(row["impl"]) for case in sizes.values() if (row := machine.ours(case, clock))}
    for impl in (*SHOWN, "products", *sorted(own)):
        rows = {n: row for n, case in sizes.items() if (row := machine.row(case, impl, clock=clock))}
        times = {n: row["p50_ms"] for n, row in rows.items() if row["p50_ms"]}
        if not times:
            continue
        style = {"label": impl, "marker": ".", "linewidth": 2.5 if impl in own else 1.2}
        style |= {"linestyle": "--", "color": "grey"} if impl == "products" else {}
        time.plot(list(times), list(times.values()), **style)
        eager = {n: t for n in times if (t := machine.time(sizes[n], "eager", clock=clock))}
        speed.plot(list(eager), [eager[n] / times[n] for n in eager], **style)
        peaks = {n: peak for n in times if (peak := number(rows[n]["peak_mb"]))}
        memory.plot(list(peaks), list(peaks.values()), **style)
    for axis, title in ((time, "milliseconds"), (speed, "times faster than eager"), (memory, "MB added at the peak")):
        axis.set(xscale="log", yscale="log", xlabel="rows", title=title)
        axis.grid(alpha=0.3)
    time.legend(fontsize=8)
    figure.suptitle(f"NT-Xent, forward and backward, d = 128, {dtype}: {machine.name}, clock {clock}")
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def _roofline(plt: Any, machine: Latest, clock: str, path: Path) -> None:
    figure, axis = plt.subplots(figsize=(7, 5), layout="constrained")
    roofs: dict[tuple[str, float], float] = {}
    for case in machine.cases(clock):
        row = machine.ours(case, clock)
        assert row is not None
        done, moved, rate, copy = (number(row.get(name)) for name in ("executed", "bytes", "product_rate", "copy_rate"))
        if done and moved and rate and copy:
            roofs[str(row["dtype"]), rate] = copy
            axis.scatter(done / moved, 1e3 * done / row["p50_ms"], s=18, label=row["op"], color=_colour(str(row["op"])))
    for (dtype, rate), copy in roofs.items():
        ridge = rate / copy
        points = [ridge / 100, ridge, max(1e5, ridge * 10)]
        axis.plot(points, [min(copy * x, rate) for x in points], linewidth=1, label=f"roof, {dtype}")
    handles, labels = axis.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    axis.legend(unique.values(), unique.keys(), fontsize=8)
    axis.set(xscale="log", yscale="log", xlabel="executed operations a byte", ylabel="operations a second")
    axis.set_title(f"{machine.name}, {machine.threads} threads, clock {clock}")
    axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def _colour(op: str) -> str:
    return f"C{sum(map(ord, op)) % 10}"
