"""One unattended command for a CUDA machine: build, test, measure, and pack everything into one tar.

It runs from a plain copy of the repository with a Python that has torch, triton, numpy, pytest, ninja and pybind11,
and nvcc; nothing is installed and nothing is fetched. Every step runs whatever became of the others, and the tar, which
is there anew after each of them, holds what there is. Where the minutes of ``--within`` end first, the last lines say
how to go on. Without a CUDA device only the steps that need none are run.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from . import ROOT
from .gpu_plan import NO_TIME, Step, search_path, steps

LIMIT = 16 * 2**20
LOG_LIMIT = 2**19
SHOWN = 30
"""Lines of the log of a failed step that are printed."""
PACKAGES = ("torch", "triton", "numpy", "pytest", "ninja", "pybind11", "setuptools", "pytest-benchmark", "hypothesis")


def run_step(step: Step, out: Path, say: Callable[[str], None]) -> dict[str, object]:
    """Run one step with its output in ``out/<name>.log``; the outcome for the summary."""
    if step.skip:
        say(f"{step.name:14} skipped: {step.skip}")
        return {"step": step.name, "state": "skipped", "reason": step.skip}
    say(f"{step.name:14} {' '.join(' '.join(step.command).split())[:150]}")
    started = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": search_path(), "PYTHONUNBUFFERED": "1"} | step.environment
    log = out / f"{step.name}.log"
    code, reason = _call(step, environment, log)
    seconds = round(time.monotonic() - started, 1)
    state = "passed" if code == 0 else "failed"
    say(f"{'':14} {state} in {seconds} s{f': {reason}' if reason else ''}")
    shown = SHOWN if code else 1 if "pytest" in step.command else 0
    for line in log.read_text(errors="replace").splitlines()[-shown:] if shown else ():
        say(f"{'':14} | {line[:200]}")
    return {
        "step": step.name,
        "state": state,
        "code": code,
        "reason": reason,
        "seconds": seconds,
        "command": step.command,
    }


def _call(step: Step, environment: dict[str, str], log: Path) -> tuple[int, str]:
    with log.open("wb") as file:
        try:
            process = subprocess.Popen(
                step.command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, process_group=0
            )
        except OSError as error:
            file.write(f"{error}\n".encode())
            return 127, str(error)
        try:
            code = process.wait(60 * step.minutes)
        except subprocess.TimeoutExpired:
            # Compilers and measuring children are in its process group and would run on.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return 124, f"stopped after {step.minutes:.1f} minutes"
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    if code == 5 and "pytest" in step.command:
        return code, "no test was selected"
    return code, "" if code == 0 else f"exit code {code}"


def versions(options: argparse.Namespace) -> dict[str, str]:
    """What this machine has."""
    found = {"python": platform.python_version(), "machine": platform.platform(), "commit": options.commit}
    found["date"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    for tool in ("nvcc", "g++"):
        path = shutil.which(tool, path=f"{os.environ.get('CUDA_HOME', '/usr/local/cuda')}/bin:{os.environ['PATH']}")
        said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout if path else ""
        found[tool] = " ".join(said.splitlines()[-2:] if tool == "nvcc" else said.splitlines()[:1]) or "absent"
    return found


def pack(out: Path, folder: Path | None = None, limit: int = LIMIT) -> Path:
    """``out`` as one compressed tar of at most ``limit`` bytes, beside it or in ``folder``, in one piece."""
    made = _packed(out, limit)
    tar = (folder or out.parent) / made.name.removesuffix(".new")
    tar.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(made, tar)
    return tar


def _packed(out: Path, limit: int) -> Path:
    """Long logs lose their middle first."""
    tar = out.with_name(out.name + ".tar.gz.new")
    for keep in (LOG_LIMIT, LOG_LIMIT // 16, LOG_LIMIT // 256):
        for log in sorted(out.rglob("*.log")):
            _shorten(log, keep)
        with tarfile.open(tar, "w:gz") as archive:
            archive.add(out, arcname=out.name)
        if tar.stat().st_size <= limit:
            return tar
    files = sorted((file for file in out.rglob("*") if file.is_file()), key=lambda file: -file.stat().st_size)
    while files and tar.stat().st_size > limit:
        largest = files.pop(0)
        with (out / "left-out.txt").open("a") as note:
            note.write(f"{largest.relative_to(out)}: {largest.stat().st_size} bytes\n")
        largest.unlink()
        with tarfile.open(tar, "w:gz") as archive:
            archive.add(out, arcname=out.name)
    return tar


def _shorten(log: Path, keep: int) -> None:
    text = log.read_bytes()
    if len(text) > keep:
        cut = f"\n\n[... {len(text) - keep} bytes left out ...]\n\n".encode()
        log.write_bytes(text[: keep // 2] + cut + text[-(keep // 2) :])


def cuda_here() -> bool:
    """Whether torch sees a device; asked in a child, so that this process never holds one."""
    asked = [sys.executable, "-c", "import torch; raise SystemExit(not torch.cuda.is_available())"]
    return subprocess.run(asked, check=False, stderr=subprocess.DEVNULL).returncode == 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m bench.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("gpu-out"), help="folder of all files (%(default)s)")
    parser.add_argument("--tar", type=Path, metavar="DIR", help="folder of the tar; that of --out")
    parser.add_argument("--within", type=float, default=9.3, help="minutes in all (%(default)s); 0 = no end")
    parser.add_argument("--minutes", type=float, default=3, help="of each measuring step (%(default)s); 0 = none")
    parser.add_argument("--parts", nargs="*", default=[], help="parts of the benchmark; all")
    parser.add_argument("--only", nargs="*", default=[], metavar="STEP", help="run only these steps")
    parser.add_argument("--wheels", type=Path, metavar="DIR", help="install these wheels aside, run the training tests")
    parser.add_argument("--commit", default=os.environ.get("CLEAD_COMMIT", "unknown"), help="of a copy without .git")
    options = parser.parse_args(arguments)
    if options.wheels and not list(options.wheels.glob("*.whl")):
        parser.error(f"--wheels {options.wheels}: there is no wheel in it")
    if options.within < 0 or options.minutes < 0:
        parser.error("--within and --minutes must be at least 0")
    return options


def main(arguments: list[str] | None = None) -> int:
    """0 = all steps passed, 1 = one failed."""
    options = parse(arguments)
    end = time.monotonic() + 60 * (options.within or math.inf)
    os.environ["CLEAD_COMMIT"] = options.commit
    cuda = cuda_here()
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    out = (options.out / f"clead-{'gpu' if cuda else 'cpu'}-{stamp}").resolve()
    out.mkdir(parents=True)

    def say(line: str) -> None:
        print(line, flush=True)

    (out / "versions.json").write_text(json.dumps(versions(options), indent=1) + "\n")
    if not cuda:
        say("no CUDA device: only the steps that need none")
    planned = steps(options, out, cuda)
    if unknown := set(options.only) - {step.name for step in planned}:
        say(f"error: no such step: {', '.join(sorted(unknown))}")
        return 2
    outcomes: list[dict[str, object]] = []
    try:
        for step in planned:
            outcomes.append(run_step(step.within((end - time.monotonic()) / 60), out, say))
            (out / "summary.json").write_text(json.dumps(outcomes, indent=1) + "\n")
            if outcomes[-1]["state"] != "skipped":
                pack(out, options.tar)
    finally:
        tar = pack(out, options.tar)
        say(f"{tar} ({tar.stat().st_size / 2**20:.2f} MiB)")
    for line in closing(outcomes, out, tar, options.wheels):
        say(line)
    return int(any(outcome["state"] == "failed" for outcome in outcomes))


def closing(outcomes: list[dict[str, object]], out: Path, tar: Path, wheels: Path | None) -> list[str]:
    """What to do now."""
    failed = [str(outcome["step"]) for outcome in outcomes if outcome["state"] == "failed"]
    left = [str(outcome["step"]) for outcome in outcomes if outcome.get("reason") == NO_TIME]
    passed = "all steps that were run passed" if left else "all steps passed"
    lines = [f"failed: {', '.join(failed)}; NAME.log in the tar says why" if failed else passed]
    if left:
        first, again = (f"--wheels {wheels} ", ["wheels"]) if wheels else ("", [])
        again = list(dict.fromkeys(["build", *again, *left]))
        lines.append(f"no time for the rest, which goes on by: make gpu ARGS='{first}--only {' '.join(again)}'")
    if (out / "results").exists():
        lines += [
            f"to commit: python -m bench gather {tar.name}; python -m bench report;",
            "  the winners of tune-*.csv into the tables of Triton shapes; python -m clead_kernels.triton_resources;",
            "  the rows of clead_kernels/dispatch.py into the order that was measured; and out of the READMEs what",
            "  git grep -iE 'not yet run on a GPU|never run' finds",
        ]
    return lines


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that the tar is still written
    sys.exit(main())
