"""The command: ``python -m clead.doctor [--repro FILE]``."""

from __future__ import annotations

from pathlib import Path

from clead.doctor.install import Finding, examine
from clead.errors import ArgumentParser
from clead.own_modules import HELP as IMPORT_HELP
from clead.own_modules import import_own


def main(argv: list[str]) -> None:
    """Exit code 0 where all is well, 1 where something that clead needs is broken or the step is not finite."""
    parser = ArgumentParser(prog="python -m clead.doctor", description="What is wrong, and how to mend it.")
    parser.add_argument("--repro", type=Path, metavar="FILE", help="replay the step of a nonfinite-….safetensors")
    parser.add_argument("--import", dest="modules", metavar="MODULE,…", help=IMPORT_HELP)
    arguments = parser.parse_args(argv)
    if arguments.repro is not None:
        from clead.doctor.repro import replay  # needs a sound installation, which the rest of the doctor does not

        import_own(argv)
        lines, finite = replay(arguments.repro)
        print("\n".join(lines))
        raise SystemExit(0 if finite else 1)
    findings = examine()
    for finding in findings:
        print(describe(finding))
    broken = [finding for finding in findings if finding.state == "broken"]
    print(f"{len(broken)} of {len(findings)} checks failed" if broken else "clead is ready")
    raise SystemExit(1 if broken else 0)


def describe(finding: Finding) -> str:
    """A finding in one line, and what mends it in a second."""
    mark = {"fine": "ok     ", "note": "note   ", "broken": "BROKEN "}[finding.state]
    return f"{mark}{finding.what}" + (f"\n       mend it with: {finding.mend}" if finding.mend else "")
