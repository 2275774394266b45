"""``python -m bench``: time the operators against their rivals, or compare two files of results."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path

import torch

from . import rows, table
from .grids import PARTS
from .run import Options, run

RESULTS = Path(__file__).parent / "results"
CLOCKS = ("wall", "device", "graph")
"""What a caller waits; what the device takes, by events; the same by CUDA graphs over inputs that no cache holds."""


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m bench", description=__doc__, epilog=f"also: {', '.join(COMMANDS)}")
    parser.add_argument(
        "parts", nargs="*", choices=[*PARTS, "steps", []], metavar="PART", help=f"{', '.join(PARTS)}: all; or steps"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, no compiler: under a minute")
    parser.add_argument("--full", action="store_true", help="the full grid: hours")
    parser.add_argument("--rows", type=int, metavar="N", help="no case with more than N x N pairs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    parser.add_argument(
        "--csv", type=Path, nargs="?", const=RESULTS, metavar="DIR", help="append to DIR/<device>/<op>.csv (%(const)s)"
    )
    parser.add_argument("--impl", action="append", default=[], metavar="NAME[,NAME]", help="only these, and eager")
    parser.add_argument("--skip", action="append", default=[], metavar="NAME[,NAME]", help="not these")
    parser.add_argument("--case", default="", metavar="TEXT", help="only cases with TEXT in their op/case")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), metavar="N")
    parser.add_argument("--minutes", type=float, metavar="M", help="start no case after that")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--clock", default=None, metavar="NAME[,NAME]", help=f"of {', '.join(CLOCKS)}; CUDA's default: wall,graph"
    )
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory")
    parser.add_argument("--compare", type=Path, nargs=2, metavar=("BEFORE", "AFTER"), help="CSV or JSON files")
    options = parser.parse_args(arguments)
    if "steps" in options.parts and len(options.parts) > 1:
        parser.error("steps, which are timed by themselves, cannot be combined with other parts")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here")
    options.clocks = tuple((options.clock or ("wall,graph" if options.device == "cuda" else "wall")).split(","))
    if unknown := set(options.clocks) - set(CLOCKS):
        parser.error(f"--clock takes {', '.join(CLOCKS)}, got {', '.join(sorted(unknown))}")
    if options.device == "cpu" and options.clocks != ("wall",):
        parser.error("--clock device and graph need --device cuda")
    if options.threads < 1 or (options.minutes is not None and options.minutes <= 0):
        parser.error("--threads and --minutes must be positive")
    return options


COMMANDS = {"report": "tables", "goals": "goals", "predict": "predicted", "tune": "tune", "gather": "gathered"}
"""Commands beside measuring, and where they live."""


def main(arguments: list[str] | None = None) -> int:
    """0 = measured; 1 = one of our implementations was wrong or failed; 2 = bad arguments."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if arguments and arguments[0] in COMMANDS:
            module = import_module(f".report.{COMMANDS[arguments[0]]}", __package__)
            return int(module.main(arguments[1:]))
        options = parse(arguments)
        if options.compare:
            print(table.compare(*(rows.read(path) for path in options.compare)))
            return 0
        measure = run
        if options.parts == ["steps"]:
            from .steps.run import run as measure  # needs all of clead, the operators need torch and numpy only
        _, sound = measure(
            Options(
                parts=tuple(options.parts) or PARTS,
                quick=options.quick,
                device=options.device,
                clocks=options.clocks,
                full=options.full,
                most=options.rows,
                threads=options.threads,
                minutes=options.minutes,
                impls=_names(options.impl),
                skip=_names(options.skip),
                cases=options.case,
                json=options.json,
                csv=options.csv,
                memory=not options.no_memory,
            ),
            say=lambda line: print(line, flush=True),
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not sound:
        print("\nerror: one of our implementations is wrong or failed, see its reason above", file=sys.stderr)
    return 0 if sound else 1


def _names(given: list[str]) -> tuple[str, ...]:
    return tuple(name for names in given for name in names.split(",") if name)


if __name__ == "__main__":
    sys.exit(main())
