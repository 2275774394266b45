"""Runs that are killed, stopped, damaged or cramped: the same numbers in the end, or one sentence."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from rich.console import Console

from clead import train
from clead.cli import plans
from clead.engine import checkpoint, loop
from clead.engine.progress import Progress
from clead.errors import RESUMABLE, Stopped, run_command

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}
TINY = ["--epochs", "3", "--batch-size", "64", "--train-samples", "400", "--linear-eval.epochs", "2"]
TINY += ["--evaluation.samples", "40", "--evaluation.attacks", "pgd2", "--checkpoint-minutes", "0.0005"]
CALM = ["--stages", "pretrain", "linear_eval", "--checkpoint-minutes", "0", "--checkpoint-every", "1"]

# Imports once, then forks a command per line of its input and kills it after the seconds given there, or (negative)
# when its metrics have grown by as many bytes.
SERVER = """
import json, os, signal, sys, time
import sklearn.datasets
from clead import train
from clead.errors import run_command

for line in sys.stdin:
    argv, seconds, number = json.loads(line)
    began, child = time.monotonic(), os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
        sys.argv = ["clead.train", *argv]
        run_command(train.main)
    sent, metrics = False, argv[argv.index("--out") + 1] + "/metrics.jsonl"
    size = lambda: os.path.getsize(metrics) if os.path.exists(metrics) else 0
    before = size()
    while not (done := os.waitpid(child, os.WNOHANG))[0]:
        due = time.monotonic() - began >= seconds if seconds >= 0 else size() > before - seconds
        if due and not sent:
            os.kill(child, number)
            sent = True
        time.sleep(0.002)
    print(json.dumps([os.waitstatus_to_exitcode(done[1]), time.monotonic() - began]), flush=True)
"""


@pytest.fixture
def command(tmp_path):
    """Run ``clead.train`` in a new process: (arguments, seconds, signal) -> (exit code, seconds it took)."""
    log = open(tmp_path / "stderr", "w+")  # noqa: SIM115 - closed below
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER], env=ENVIRONMENT, stdin=-1, stdout=-1, stderr=log, text=True, bufsize=1
    )

    def run(argv, seconds=1e9, number=signal.SIGKILL):
        log.seek(0)
        log.truncate()
        server.stdin.write(json.dumps([argv, seconds, int(number)]) + "\n")
        code, took = json.loads(server.stdout.readline())
        log.seek(0)
        assert "Traceback" not in (said := log.read()), said
        return code, took

    yield run
    server.stdin.close()
    server.wait(timeout=300)
    server.stdout.close()
    log.close()


def losses(run):
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [(line["stage"], line["step"], line["loss"]) for line in lines]


def accuracies(run):
    rows = json.loads((run / "results.json").read_text())["results"]
    return sorted((row["model"], row["name"], row["accuracy"]) for row in rows)


def same_weights(run, other):
    a, b = (checkpoint.load(checkpoint.latest(path / "checkpoints")) for path in (run, other))
    assert a.weights.keys() == b.weights.keys()
    return all(torch.equal(a.weights[key], b.weights[key]) for key in a.weights)


@pytest.mark.parametrize(
    ("method", "kills"),
    [
        ("simclr", 3),
        pytest.param("clead", 50, marks=pytest.mark.slow),
        pytest.param("dynacl", 50, marks=pytest.mark.slow),
    ]
    + [pytest.param("ifnd", 50, marks=pytest.mark.slow)],
)
def test_a_run_killed_again_and_again_ends_like_one_left_alone(method, kills, command, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    few = ["--attack.steps", "1"] if method in ("clead", "dynacl") else []
    few += ["--clusters", "20", "10"] if method == "ifnd" else []
    code, seconds = command([method, *TINY, *few, "--out", str(whole)])
    assert code == 0
    moments = random.Random(method)
    killed = 0
    while killed < kills:
        code, _ = command([method, *TINY, *few, "--resume", "--out", str(broken)], moments.uniform(0, seconds))
        assert code in (0, -signal.SIGKILL)
        killed += 1
        if code == 0:  # done: once more from the start
            assert (losses(broken), accuracies(broken)) == (losses(whole), accuracies(whole))
            shutil.rmtree(broken)
    code, _ = command([method, *TINY, *few, "--resume", "--out", str(broken)])
    assert code == 0
    assert (losses(broken), accuracies(broken)) == (losses(whole), accuracies(whole))
    assert same_weights(whole, broken)
    assert list(broken.rglob(".tmp-*")) == []


def test_a_run_told_that_time_is_up_leaves_with_its_own_code(command, tmp_path):
    out = tmp_path / "run"
    argv = ["simclr", "--epochs", "55", "--batch-size", "64", "--stages", "pretrain", "--resume", "--out", str(out)]
    for number in (signal.SIGTERM, signal.SIGUSR1):
        before = checkpoint.latest(out / "checkpoints", "pretrain")
        code, _ = command(argv, -1000, number)
        assert code == RESUMABLE
        steps = [step for _, step, _ in losses(out)]
        after = checkpoint.latest(out / "checkpoints", "pretrain")
        assert after != before and checkpoint.load(after).meta["step"] == steps[-1]
    assert json.loads((out / "run.json").read_text())["state"] == "failed"


# from here on within this process


def start(argv):
    """``clead.train`` without its table and figures."""
    for plan in plans(argv):
        train.run(plan, Progress(Console(width=1000)))


def status(argv):
    """The exit code of the same."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as left:
        patch.setattr(sys, "argv", ["clead.train", *argv])
        run_command(start)
    return left.value.code


def resume(run):
    """The exit code of resuming."""
    return status(["simclr", "--resume", "--out", str(run)])


def stop_at(monkeypatch, step, number=signal.SIGTERM):
    """Send ourselves a signal in the middle of a step of pre-training."""
    original = loop._step

    def interrupted(task, batch, *rest):
        if task.stage == "pretrain" and batch.step == step:
            os.kill(os.getpid(), number)
        return original(task, batch, *rest)

    monkeypatch.setattr(loop, "_step", interrupted)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """(a finished run, the same stopped in the middle of its second epoch)."""
    whole, out = (tmp_path_factory.mktemp("runs") / name for name in ("whole", "stopped"))
    argv = ["simclr", *TINY, *CALM]
    start([*argv, "--out", str(whole)])
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped) as stop:
        stop_at(patch, 9)
        start([*argv, "--out", str(out)])
    assert stop.value.number == signal.SIGTERM
    return whole, out


def test_a_stopped_run_goes_on_from_the_very_step(stopped, tmp_path):
    whole, out = stopped
    names = sorted(path.name for path in (out / "checkpoints").iterdir())
    assert names == ["pretrain-00000006", "pretrain-00000010"]
    out = shutil.copytree(out, tmp_path / "run")
    assert resume(out) == 0
    assert losses(out) == losses(whole) and same_weights(out, whole)


def test_every_stage_tells_its_wall_clock_time_and_its_speed(stopped):
    lines = [json.loads(line) for line in (stopped[0] / "metrics.jsonl").read_text().splitlines()]
    assert {line["stage"] for line in lines} == {"pretrain", "linear_eval"}
    for stage in ("pretrain", "linear_eval"):
        seconds, rates = (
            [line[key] for line in lines if line["stage"] == stage] for key in ("seconds", "images_per_s")
        )
        assert seconds[0] > 0 and seconds == sorted(seconds) and seconds[-1] < 600
        assert all(rate > 0 for rate in rates[1:])  # the first step has no speed yet


@pytest.mark.parametrize("spoil", ["truncated", "flipped", "gone"])
@pytest.mark.parametrize("part", ["weights.safetensors", "state.pt", "meta.json"])
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before_it(part, spoil, stopped, tmp_path, capsys):
    whole, out = stopped
    out = shutil.copytree(out, tmp_path / "run")
    file = out / "checkpoints" / "pretrain-00000010" / part
    data = file.read_bytes()
    file.unlink()
    if spoil != "gone":
        damaged = data[:-3] if spoil == "truncated" else bytes([data[0] ^ 64]) + data[1:]
        file.write_bytes(damaged)
    assert resume(out) == 0
    assert losses(out) == losses(whole) and same_weights(out, whole)
    said = capsys.readouterr().out
    if part != "meta.json" or spoil != "gone":  # without a meta.json it never was a checkpoint
        assert f"{part}: expected" in said and "; continuing from pretrain-00000006" in said


def test_a_checkpoint_of_a_newer_version_is_kept_and_an_older_one_is_offered(stopped, tmp_path, capsys):
    out = shutil.copytree(stopped[1], tmp_path / "run")
    file = out / "checkpoints" / "pretrain-00000010" / "meta.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schema": 2}))
    assert resume(out) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "expected schema 1, found 2: a newer clead wrote it; update clead, or move pretrain-00000010 away" in line
    assert "to continue from pretrain-00000006" in line
    file.parent.rename(tmp_path / "newer")
    assert resume(out) == 0


def test_another_version_of_torch_is_no_longer_promised_the_same_bits(stopped, tmp_path, capsys):
    out = shutil.copytree(stopped[1], tmp_path / "run")
    file = out / "checkpoints" / "pretrain-00000010" / "meta.json"
    meta = json.loads(file.read_text())
    meta["environment"]["torch"] = "2.11.0"
    file.write_text(json.dumps(meta))
    assert resume(out) == 0
    expected = f"their last bits from those of an uninterrupted run: torch was 2.11.0 and is {torch.__version__}"
    assert expected in capsys.readouterr().out


def test_a_damaged_model_offers_the_one_before_it(stopped, tmp_path):
    import clead

    out = shutil.copytree(stopped[1], tmp_path / "run")
    file = out / "checkpoints" / "pretrain-00000010" / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"the checkpoint before it is whole: .*pretrain-00000006$"):
        clead.load(out)


def flips(file, count):
    """The content of a file with one bit flipped, at ``count`` places."""
    data = file.read_bytes()
    for place in random.Random(file.name).sample(range(len(data)), min(count, len(data))):
        yield data[:place] + bytes([data[place] ^ (1 << place % 8)]) + data[place + 1 :]


@pytest.mark.slow
def test_a_bit_flipped_in_any_file_never_ends_in_a_traceback(stopped, tmp_path, capsys):
    whole, out = stopped
    for file in sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file() and path.name != ".lock"):
        for damaged in flips(out / file, 5):
            run = shutil.copytree(out, tmp_path / "run")
            (run / file).write_bytes(damaged)
            code = resume(run)
            said = capsys.readouterr().err.strip().splitlines()
            assert (code, said) == (0, []) or (code == 2 and len(said) == 1 and str(file.name) in said[0]), (file, said)
            if file.parts[0] == "checkpoints" and file.name != "meta.json":
                assert code == 0 and losses(run) == losses(whole) and same_weights(run, whole)
            shutil.rmtree(run)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte, where we may mount one."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = os.geteuid() == 0 and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", path], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("mounting a small file system is not permitted")
    yield path
    subprocess.run(["umount", path], check=True)


def test_a_disk_that_fills_up_leaves_a_run_that_goes_on(small_disk, stopped, capsys):
    whole, _ = stopped
    out = small_disk / "run"
    assert status(["simclr", *TINY, *CALM, "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and line.endswith("No space left on device")
    assert list(out.rglob(".tmp-*")) == []
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    assert resume(out) == 0
    assert losses(out) == losses(whole) and same_weights(out, whole)


def test_a_read_only_folder_is_one_sentence(stopped, tmp_path, capsys):
    if os.geteuid() != 0:
        out = shutil.copytree(stopped[1], tmp_path / "run")
        (out / ".lock").chmod(0o444)
        out.chmod(0o555)
        assert resume(out) == 2
    else:  # whom permissions do not stop
        assert resume(Path("/proc/clead")) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: /")


def test_training_outside_of_the_main_thread(stopped, tmp_path):
    out = shutil.copytree(stopped[1], tmp_path / "run")
    thread = threading.Thread(target=start, args=[["simclr", "--resume", "--out", str(out)]])
    thread.start()
    thread.join()
    assert losses(out) == losses(stopped[0])


@pytest.fixture
def algorithms():
    """Lets torch choose its algorithms again afterwards."""
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_deterministic_trainings_agree_to_the_last_bit(device, algorithms, tmp_path):
    for name in ("one", "two"):
        start(["simclr", *TINY, *CALM, "--deterministic", "--device", device, "--out", str(tmp_path / name)])
        assert torch.are_deterministic_algorithms_enabled()
    assert losses(tmp_path / "one") == losses(tmp_path / "two")
    assert same_weights(tmp_path / "one", tmp_path / "two")
