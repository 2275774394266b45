"""The unattended command: it goes on after a failure, says so in its exit code, and always leaves a tar."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import time

import pytest
import torch

from bench import gpu
from bench.__main__ import main as bench
from bench.__main__ import parse
from bench.gpu_plan import NO_TIME
from bench.report import goals

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
    assert gpu.main(["--out", str(tmp_path / "out"), "--tar", str(tmp_path / "back")]) == 1
    assert not list((tmp_path / "out").glob("*.tar*"))
    files = unpacked(tmp_path / "back")
    states = {outcome["step"]: outcome["state"] for outcome in json.loads(files["summary.json"])}
    assert states == {"first": "failed", "absent": "failed", "device": "skipped", "last": "passed"}
    assert "out" in files["first.log"] and "broken" in files["first.log"]
    assert str(gpu.ROOT / "kernels") in files["last.log"]
    assert json.loads(files["versions.json"])["torch"] != "absent"
    assert "failed: first, absent" in capsys.readouterr().out


def test_all_steps_passed(planned, tmp_path):
    planned(gpu.Step("only", python("pass"), 1))
    assert gpu.main(["--out", str(tmp_path)]) == 0


def test_a_run_ends_in_time_and_says_how_to_go_on(planned, tmp_path, capsys):
    planned(
        gpu.Step("short", python("pass"), 1, least=0.0),
        gpu.Step("long", python("pass"), 1, least=0.9),
        gpu.Step("cut", python("import time; time.sleep(60)"), 1, least=0.0),
    )
    assert gpu.main(["--out", str(tmp_path), "--within", "0.2"]) == 1
    states = {outcome["step"]: outcome for outcome in json.loads(unpacked(tmp_path)["summary.json"])}
    assert states["short"]["state"] == "passed" and states["long"]["reason"] == NO_TIME
    assert states["cut"]["reason"] == "stopped after 0.2 minutes"
    assert "make gpu ARGS='--only build long'" in capsys.readouterr().out


def test_a_measuring_step_is_told_how_long_it_has():
    step = gpu.Step("bench", ["bench"], 5, measures=True, least=2)
    assert step.within(9).command == ["bench", "--minutes", "3.5"] and step.within(9).minutes == 5
    assert step.within(3).command == ["bench", "--minutes", "1.5"] and step.within(3).minutes == 3
    assert step.within(1).skip == NO_TIME and step.within(1).command == ["bench"]


def test_what_there_is_comes_back_after_every_step_and_when_the_run_is_ended(tmp_path):
    """Two steps, of which the second never ends: a tar is there before, and SIGTERM leaves the last one."""
    code = f"""
import sys
from bench import gpu
step = lambda name, code: gpu.Step(name, [sys.executable, "-c", code], 1)
wait = "import time; print('waiting', flush=True); time.sleep(60)"
gpu.steps = lambda *_: [step("first", "print('out')"), step("second", wait)]
gpu.cuda_here = lambda: False
gpu.signal.signal(gpu.signal.SIGTERM, lambda *_: sys.exit("stopped"))
gpu.main(["--out", {str(tmp_path)!r}])
"""
    run = subprocess.Popen([sys.executable, "-c", code], cwd=gpu.ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not any("waiting" in log.read_text() for log in tmp_path.rglob("second.log")):
        time.sleep(0.1)
    assert set(unpacked(tmp_path)) >= {"first.log", "summary.json", "versions.json"}
    run.terminate()
    assert run.wait(30) == 1
    assert "waiting" in unpacked(tmp_path)["second.log"]


def test_results_of_several_runs_are_put_together(planned, tmp_path, capsys):
    """Two runs write the same files: nothing of the first is lost, and nothing counts twice."""
    write = (
        "import pathlib, sys; folder = max(pathlib.Path(sys.argv[1]).glob('clead-*')) / 'results' / 'chip';"
        "folder.mkdir(parents=True); (folder / 'nt_xent.csv').write_text('case,ms\\n' + sys.argv[2] + '\\n')"
    )
    tars = []
    for run, row in enumerate(("n512,1", "n1024,2")):
        out = tmp_path / str(run)
        planned(gpu.Step("measure", [*python(write), str(out), row], 1))
        assert gpu.main(["--out", str(out)]) == 0
        tars += out.glob("*.tar.gz")
        assert f"python -m bench gather {tars[-1].name}" in capsys.readouterr().out
    here = tmp_path / "results"
    for _ in range(2):
        assert bench(["gather", *map(str, tars), "--csv", str(here)]) == 0
        assert (here / "chip" / "nt_xent.csv").read_text() == "case,ms\nn512,1\nn1024,2\n"
    (here / "chip" / "nt_xent.csv").write_text("other\n")
    assert bench(["gather", str(tars[0]), "--csv", str(here)]) == 2
    assert "has other columns" in capsys.readouterr().err
    assert bench(["gather", str(here / "chip" / "nt_xent.csv"), "--csv", str(here)]) == 2
    assert "is no tar of bench.gpu" in capsys.readouterr().err


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
        *("bench-goals", "bench-million-nt_xent", "bench-million-sup_con", "bench-steps", "tune"),
    }
    assert not any(step.skip for step in with_device)
    names = [step.name for step in with_device]
    assert names[:6] == ["nvidia-smi", "build", "explain", "test-gpu-small", "test-gpu", "bench-quick"]
    assert names[6:8] == ["bench-goals", "bench-loss"]
    gpu_tests = next(step for step in with_device if step.name == "test-gpu").command
    assert "gpu and kernels" in gpu_tests and "tests/kernels/test_gpu_contrastive.py" in gpu_tests
    assert not any(name.startswith("tests/data") for name in gpu_tests)
    assert not any("bench" in step.name for step in gpu.steps(gpu.parse(["--minutes", "0"]), tmp_path, True))


def test_measuring_steps_take_arguments_that_exist(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    plan = [step for step in gpu.steps(gpu.parse([]), tmp_path, True) if step.measures]
    assert {step.name for step in plan} >= {"bench-loss", "bench-perturb", "bench-similarity", "bench-steps", "tune"}
    for step in plan:
        command = step.within(9.3).command
        assert "--minutes" in command and step.minutes < 9.3
        if step.name == "bench-goals":
            goals.parse(command[4:])
        elif step.name != "tune":
            parse(command[3:])


def test_training_needs_wheels_and_takes_the_tests_that_the_others_do_not(tmp_path):
    (tmp_path / "x.whl").touch()
    plan = {step.name: step for step in gpu.steps(gpu.parse(["--wheels", str(tmp_path)]), tmp_path, True)}
    training = plan["test-training"]
    assert "tests/test_stages.py" in training.command and "tests/kernels/test_gpu_similarity.py" not in training.command
    site = plan["wheels"].command[plan["wheels"].command.index("--target") + 1]
    assert site in training.environment["PYTHONPATH"] and site in plan["bench-steps"].environment["PYTHONPATH"]


def test_only_the_parts_asked_for_are_measured(tmp_path):
    plan = gpu.steps(gpu.parse(["--parts", "steps"]), tmp_path, True)
    assert [step.name for step in plan if "bench" in step.name] == ["bench-steps"]


def test_a_step_that_does_not_exist_is_refused(tmp_path, capsys):
    assert gpu.main(["--out", str(tmp_path), "--only", "nonsense", "--minutes", "0"]) == 2
    assert "nonsense" in capsys.readouterr().out
