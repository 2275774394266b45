"""Results that came back in tars of ``bench.gpu``, added to those that are here: several runs write the same files."""

from __future__ import annotations

import argparse
import re
import tarfile
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "results"


def gather(tar: Path, folder: Path) -> list[Path]:
    """Append the rows of every CSV in the tar's ``results`` that ``folder`` does not have yet; the files that grew.

    Raises:
        ValueError: a file here has other columns.
        OSError: the tar cannot be read.
    """
    grown = []
    with tarfile.open(tar) as archive:
        for member in archive.getmembers():
            found = re.fullmatch(r"[^/]+/results/((?:[\w-]+/)?[\w-]+\.csv)", member.name)
            file = archive.extractfile(member) if found else None
            if found is None or file is None:
                continue
            path = folder / found[1]
            head, *lines = file.read().decode().splitlines(keepends=True) or [""]
            if not head:  # of a step that was killed
                continue
            here = path.read_text().splitlines(keepends=True) if path.exists() else [head]
            if here[0] != head:
                raise ValueError(f"{path} has other columns than {member.name} of {tar}")
            known = set(here)
            if new := [line for line in lines if line not in known]:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("".join(here + new))
                grown.append(path)
    return grown


def main(arguments: list[str]) -> int:
    """Add and say what grew."""
    parser = argparse.ArgumentParser("python -m bench gather", description=__doc__)
    parser.add_argument("tars", type=Path, nargs="+", metavar="TAR")
    parser.add_argument("--csv", type=Path, default=RESULTS, metavar="DIR", help="the results (%(default)s)")
    options = parser.parse_args(arguments)
    for tar in options.tars:
        try:
            for path in gather(tar, options.csv):
                print(path)
        except tarfile.TarError as error:
            raise ValueError(f"{tar} is no tar of bench.gpu: {error}") from error
    return 0
