"""The levers from the command line: saved with the run, resumed to the bit, refused where they make no sense."""

import json

import pytest
import torch
from rich.console import Console

from clead import train
from clead.attacks import runner
from clead.cli import plans, read_config
from clead.config import SpeedConfig
from clead.engine import checkpoint
from clead.engine.progress import Progress
from clead.errors import UserError
from clead.sources import Sources
from clead.stages import pretraining

SHORT = ["--epochs", "2", "--train-samples", "96", "--batch-size", "32", "--checkpoint-every", "1"]
SHORT += ["--stages", "pretrain", "--compare"]
TINY = [*SHORT, "--attack.steps", "1"]
FAST = ["--speed.precision", "bf16", "--speed.channels-last"]


def weights(run):
    return checkpoint.load(checkpoint.latest(run / "checkpoints")).weights


def losses(run):
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("method", ["acl", "dynacl"])
def test_a_run_in_bfloat16_resumes_to_the_last_bit(method, tmp_path, interrupted_at):
    whole, broken, plain = (tmp_path / name for name in ("whole", "broken", "plain"))
    train.main([method, *TINY, *FAST, "--out", str(whole)])
    assert read_config(whole / "config.json")[2].speed == SpeedConfig("bf16", channels_last=True)
    with interrupted_at(4):
        train.main([method, *TINY, *FAST, "--out", str(broken)])
    train.main([method, "--resume", "--out", str(broken)])
    train.main([method, *TINY, "--out", str(plain)])
    one, other = weights(whole), weights(broken)
    assert all(torch.equal(one[key], other[key]) for key in one) and losses(whole) == losses(broken)
    assert all(value.dtype == torch.float32 and value.is_contiguous() for value in one.values())
    assert losses(whole) != losses(plain) and losses(whole)[0] == pytest.approx(losses(plain)[0], rel=0.02)


def test_another_precision_is_not_resumed(tmp_path):
    out = str(tmp_path / "run")
    train.main(["pgd_at", *TINY, "--epochs", "0", "--out", out])
    with pytest.raises(UserError, match="cannot resume with speed"):
        train.main(["pgd_at", "--resume", "--out", out, *FAST])


def test_an_executor_needs_something_to_run():
    with pytest.raises(UserError, match=r"speed\.executor must be eager without speed\.fold, got graph"):
        train.main(["acl", *TINY, "--speed.no-fold", "--speed.executor", "graph"])


def test_a_run_without_a_compiler_is_the_eager_one_and_says_so_once(tmp_path, monkeypatch):
    def no_compiler(function, sample):
        raise RuntimeError("no working C++ compiler found")

    monkeypatch.setitem(runner._BUILDERS, "compile", no_compiler)
    with pytest.warns(UserWarning) as caught:
        train.main(["pgd_at", *TINY, "--speed.executor", "compile", "--out", str(tmp_path / "run")])
    (said,) = [str(warning.message) for warning in caught]
    assert said.startswith("speed.executor=compile: new batches are attacked eagerly") and "C++ compiler" in said
    train.main(["pgd_at", *TINY, "--out", str(tmp_path / "eager")])
    assert losses(tmp_path / "run") == losses(tmp_path / "eager")


@pytest.mark.slow
def test_a_compiled_run_follows_the_eager_one(tmp_path, recwarn):
    for executor in ("compile", "eager"):
        train.main(["pgd_at", *TINY, "--speed.executor", executor, "--out", str(tmp_path / executor)])
    assert not [warning for warning in recwarn if "speed.executor" in str(warning.message)]
    assert losses(tmp_path / "compile") == pytest.approx(losses(tmp_path / "eager"), rel=1e-3)


def test_parts_and_chunks_of_a_batch(tmp_path):
    flags, out = ["simclr", *SHORT, "--epochs", "1"], str(tmp_path / "run")
    train.main([*flags, "--accumulate", "2", "--cache-batch", "8", "--out", out])
    train.main([*flags, "--out", str(tmp_path / "plain")])
    assert read_config(tmp_path / "run" / "config.json")[2].cache_batch == 8
    assert len(losses(tmp_path / "run")) == 3 and losses(tmp_path / "run") != losses(tmp_path / "plain")
    with pytest.raises(UserError, match="cannot resume with cache_batch 16, the run has 8"):
        train.main(["simclr", "--resume", "--out", out, "--cache-batch", "16"])


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--accumulate", "3"], "accumulate must be a divisor of batch_size = 32, got 3"),
        (["--accumulate", "0"], "accumulate must be a divisor of batch_size = 32, got 0"),
        (["--accumulate", "32"], "accumulate must be at most half of batch_size, got 32"),
        (["--accumulate", "2"], "accumulate must be 1 with dynacl, whose loss moves the momentum encoder, got 2"),
        (["--cache-batch", "2"], "cache_batch must be 0 or at least 3, got 2"),
        (["--cache-batch", "8", "--speed.no-fold"], r"cache_batch must be 0 without speed\.fold or with a"),
        (["--cache-batch", "8", "--speed.executor", "graph"], r"speed\.executor other than eager, got 8"),
    ],
)
def test_parts_and_chunks_that_cannot_be(flags, expected, tmp_path):
    with pytest.raises(UserError, match=expected):
        train.main(["dynacl", *SHORT, *flags, "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_tf32_is_what_was_asked_for(precision, tmp_path):
    backends = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    try:
        flags = [*SHORT, "--epochs", "0", "--speed.precision", precision, "--out", str(tmp_path / "run")]
        train.main(["simclr", *flags])
        assert [backend.allow_tf32 for backend in backends] == [precision == "tf32"] * 2
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


@pytest.mark.slow
def test_bfloat16_trains_as_robust_a_model(tmp_path):
    """Accuracy under PGD-20 after the same short training: two points at most, in the mean over five pairs."""
    flags = ["--epochs", "12", "--compare", "--evaluation.attacks", "pgd20", "--evaluation.eps", "0.1"]
    found = {"fp32": 0.0, "bf16": 0.0}
    for precision in found:
        out = tmp_path / precision
        train.main(["pgd_at", *flags, "--seeds", "0,1,2,3,4", "--speed.precision", precision, "--out", str(out)])
        for seed in range(5):
            rows = json.loads((tmp_path / f"{precision}-s{seed}" / "results.json").read_text())["results"]
            found[precision] += next(r["accuracy"] for r in rows if r["name"] == "pgd20" and r["eps"] == 0.1) / 5
    assert found["fp32"] > 0.5 and abs(found["bf16"] - found["fp32"]) <= 0.02


@pytest.mark.parametrize("flags", [[], ["--speed.channels-last"]])
def test_channels_innermost_everywhere_leave_nothing_to_the_rule_of_layouts(flags, tmp_path):
    (plan,) = plans(["simclr", *SHORT, *flags, "--out", str(tmp_path / "run")])
    session, model = train.prepare(plan, Progress(Console(quiet=True)), "trained", Sources())
    pretraining(session, model)
    weights_innermost = model.encoder.conv2.weight.is_contiguous(memory_format=torch.channels_last)
    assert (model.encoder.by_rule, weights_innermost) == (not flags, bool(flags))
