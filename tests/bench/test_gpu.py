"""The unattended command: it goes on after a failure, says so in its exit code, and always leaves a tar."""

from __future__ import annotations

import json
import os
import sys
import tarfile
import time

import pytest
import torch

from bench import gpu
from bench.__main__ import parse

pytestmark = pytest.mark.kernels


def python(code):
    return [sys.executable, "-c", code]


@pytest.fixture
def planned(monkeypatch):
    """Replaces the real steps; nothing is built or measured."""

    def plan(*steps):
        monkeypatch.setattr(gpu, "steps", lambda options, out, cuda: list(steps))
        monkeypatch.setattr(gpu, "cuda_here", lambda: False)

    return plan


def unpacked(folder):
    (tar,) = folder.glob("*.tar.gz")
    with tarfile.open(tar) as archive:
        return {
            member.name.split("/", 1)[1]: archive.extractfile(member).read().decode()
            for member in archive.getmembers()
            if member.isfile()
        }


def test_a_failing_step_stops_nothing_and_fails_the_run(planned, tmp_path, capsys):
    planned(
        gpu.Step("first", python("print('out'); import sys; sys.exit('broken')"), 1),
        gpu.Step("absent", ["no-such-program"], 1),
        gpu.Step("device", ["no-such-program"], 1, skip="no CUDA device"),
        gpu.Step("last", python("import os; print(os.environ['PYTHONPATH'])"), 1),
    )
    assert gpu.main(["--out", str(tmp_path)]) == 1
    files = unpacked(tmp_path)
    states = {outcome["step"]: outcome["state"] for outcome in json.loads(files["summary.json"])}
    assert states == {"first": "failed", "absent": "failed", "device": "skipped", "last": "passed"}
    assert "out" in files["first.log"] and "broken" in files["first.log"]
    assert str(gpu.ROOT / "kernels") in files["last.log"]
    assert json.loads(files["versions.json"])["torch"] != "absent"
    assert "failed: first, absent" in capsys.readouterr().out


def test_all_steps_passed(planned, tmp_path):
    planned(gpu.Step("only", python("pass"), 1))
    assert gpu.main(["--out", str(tmp_path)]) == 0


def test_a_step_that_hangs_is_stopped_with_its_children(tmp_path):
    child = "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); p.wait()"
    log = tmp_path / "hangs.log"
    for seconds in (1.5, 15):  # on a busy machine the child may not be there that soon
        started = time.monotonic()
        outcome = gpu.run_step(gpu.Step("hangs", python(child), seconds / 60), tmp_path, lambda line: None)
        assert (outcome["state"], outcome["code"]) == ("failed", 124)
        assert time.monotonic() - started < seconds + 30
        if log.read_text():
            break
    pid = int(log.read_text().split()[0])
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and alive(pid):
        time.sleep(0.05)
    assert not alive(pid)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_no_selected_test_is_a_failure(tmp_path):
    (tmp_path / "test_nothing.py").write_text("def test_x(): pass\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "gpu and kernels", str(tmp_path)]
    outcome = gpu.run_step(gpu.Step("test", command, 1), tmp_path, lambda line: None)
    assert (outcome["state"], outcome["reason"]) == ("failed", "no test was selected")


def test_the_tar_stays_below_its_limit(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "small.json").write_text("[]")
    (out / "noise.log").write_bytes(b"begin" + os.urandom(2**21) + b"end")
    (out / "noise.bin").write_bytes(os.urandom(2**20))
    tar = gpu.pack(out, limit=2**16)
    assert tar.stat().st_size <= 2**16
    with tarfile.open(tar) as archive:
        names = {member.name for member in archive.getmembers()}
        log = archive.extractfile("out/noise.log").read()
    assert "out/small.json" in names and "out/noise.bin" not in names
    assert log.startswith(b"begin") and log.endswith(b"end") and b"bytes left out" in log


def test_the_plan(tmp_path):
    options = gpu.parse(["--minutes", "3"])
    without, with_device = (gpu.steps(options, tmp_path, cuda) for cuda in (False, True))
    assert {step.name for step in without if step.skip} == {
        *("nvidia-smi", "test-gpu", "test-gpu-forms", "test-gpu-small"),
        *("bench-million", "bench-steps", "tune"),
    }
    assert not any(step.skip for step in with_device)
    gpu_tests = next(step for step in with_device if step.name == "test-gpu").command
    assert "gpu and kernels" in gpu_tests and "tests/kernels/test_gpu_contrastive.py" in gpu_tests
    assert not any(name.startswith("tests/data") for name in gpu_tests)
    assert not any("bench" in step.name for step in gpu.steps(gpu.parse(["--minutes", "0"]), tmp_path, True))


def test_measuring_steps_end_within_eight_minutes_and_take_arguments_that_exist(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    plan = [step for step in gpu.steps(gpu.parse(["--minutes", "9"]), tmp_path, True) if "bench" in step.command]
    assert {step.name for step in plan} >= {"bench-loss", "bench-perturb", "bench-similarity", "bench-steps", "tune"}
    for step in plan:
        assert step.minutes <= 8
        if step.name != "tune":
            parse(step.command[3:])


def test_only_the_parts_asked_for_are_measured(tmp_path):
    plan = gpu.steps(gpu.parse(["--parts", "steps"]), tmp_path, True)
    assert [step.name for step in plan if "bench" in step.name] == ["bench-steps"]


def test_a_step_that_does_not_exist_is_refused(tmp_path, capsys):
    assert gpu.main(["--out", str(tmp_path), "--only", "nonsense", "--minutes", "0"]) == 2
    assert "nonsense" in capsys.readouterr().out
