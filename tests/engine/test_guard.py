"""Losses and gradients that are not finite: stopped with what it takes to see why, or left out and counted."""

import json
import math
import re

import pytest
import torch
from rich.console import Console

from clead.config import OptimizerConfig
from clead.engine import guard
from clead.engine.checkpoint import latest, load
from clead.engine.guard import Guard, statistics
from clead.engine.loop import Fit, _batch_of, fit
from clead.engine.progress import Progress
from clead.engine.run import RunFolder
from clead.errors import UserError


class Line(torch.nn.Module):
    """A line behind a batch norm, whose statistics a bad batch would spoil."""

    def __init__(self):
        super().__init__()
        self.norm, self.linear = torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 1)

    def forward(self, x):
        return self.linear(self.norm(x))


def task_of(bad=(), momentum=0.0, epochs=4, gradient_only=False, **changes):
    """Steps numbered from 0; those of ``bad`` see a NaN."""
    torch.manual_seed(0)
    x, model = torch.randn(40, 3), Line()

    def loss(batch):
        images = batch.images
        if batch.step in bad and not gradient_only:
            images = images * math.nan
        value = (model(images) - batch.labels[:, None]).square().mean()
        if batch.step in bad and gradient_only:
            value = value + (model.linear.weight * 0).sum().sqrt() * 0  # 0 · ∞: only its gradient is NaN
        return {"mse": value, "other": value.detach() * 0}

    return Fit(
        stage="pretrain",
        model=model,
        trained=model,
        loss=loss,
        images=x.__getitem__,
        labels=torch.arange(40) % 2,
        epochs=epochs,
        batch_size=10,
        optimizer=OptimizerConfig(lr=0.05, schedule="constant", momentum=momentum),
        seed=0,
        checkpoint_every=1,
        meta={},
        **changes,
    )


def train(path, **changes):
    task = task_of(**changes)
    with RunFolder.create(path, resume=True, overwrite=False) as folder:
        fit(task, folder, Progress(Console(quiet=True)))
    return task.model.state_dict()


@pytest.mark.parametrize("gradient_only", [False, True])
def test_a_bad_step_stops_before_the_weights_know(gradient_only, tmp_path):
    found = r"the gradient of linear\.weight must be finite, found none, 3 of 3 not finite"
    found = found if gradient_only else r"the loss term 'mse' must be finite, got nan"
    with pytest.raises(UserError, match=rf"^pretrain, step 7: {found} .*images are -.* … .* on average") as stop:
        train(tmp_path / "run", bad=(6,), gradient_only=gradient_only)
    (file,) = (tmp_path / "run").glob("nonfinite-pretrain-7.safetensors")
    assert f"python -m clead.doctor --repro {file}" in str(stop.value)
    saved = load(latest(tmp_path / "run" / "checkpoints"))
    assert saved.meta["step"] == 4 and all(value.isfinite().all() for value in saved.weights.values())
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_the_file_holds_the_weights_and_the_batch_of_that_step(tmp_path):
    from safetensors.torch import load_file

    with pytest.raises(UserError):
        train(tmp_path / "run", bad=(6,))
    tensors = load_file(tmp_path / "run" / "nonfinite-pretrain-7.safetensors")
    # The weights after six steps, from a run of six steps that saves them: 1 epoch is 4 steps, so by hand.
    model = task_of().model
    task = task_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(6):
        batch = _batch_of(task, step)
        optimizer.zero_grad()
        (model.train()(batch.images) - batch.labels[:, None]).square().mean().backward()
        optimizer.step()
    assert all(
        torch.equal(tensors[f"model.{key}"], value) for key, value in model.state_dict().items() if "num" not in key
    )
    assert torch.equal(tensors["batch.images"], _batch_of(task, 6).images)


def test_skipping_leaves_the_step_out_and_counts_it(tmp_path):
    """Without momentum a zero gradient is no step: as if the loop had run without it, statistics included."""
    weights = train(tmp_path / "run", bad=(6, 9), on_nonfinite="skip")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] is None for line in lines] == [step in (6, 9) for step in range(16)]
    counts = [line.get("metrics", {}).get("skipped_steps", 0) for line in lines]
    assert counts == [0] * 6 + [1] * 3 + [2] * 7

    task = task_of()
    optimizer = torch.optim.SGD(task.model.parameters(), lr=0.05)
    for step in set(range(16)) - {6, 9}:
        batch = _batch_of(task, step)
        optimizer.zero_grad()
        (task.model.train()(batch.images) - batch.labels[:, None]).square().mean().backward()
        optimizer.step()
    assert all(torch.equal(weights[key], value) for key, value in task.model.state_dict().items() if "num" not in key)


def test_the_count_survives_an_interruption(tmp_path):
    train(tmp_path / "whole", bad=(1, 9), on_nonfinite="skip")
    train(tmp_path / "run", bad=(1, 9), on_nonfinite="skip", epochs=2)
    assert load(latest(tmp_path / "run" / "checkpoints")).state["skipped"] == 1
    train(tmp_path / "run", bad=(1, 9), on_nonfinite="skip")
    assert load(latest(tmp_path / "run" / "checkpoints")).state["skipped"] == 2


def test_a_run_that_only_skips_stops(tmp_path, monkeypatch):
    monkeypatch.setattr(guard, "MOST_IN_A_ROW", 3)
    train(tmp_path / "now and then", bad=(4, 5, 7, 8), on_nonfinite="skip")
    with pytest.raises(UserError, match=r"^pretrain, 3 steps in a row were left out, the first of them step 8: the"):
        train(tmp_path / "always", bad=(2, 7, 8, 9), on_nonfinite="skip")


def test_a_gpu_is_asked_only_where_the_loss_is_read_and_keeps_its_weights_until_then(monkeypatch):
    """The code for a GPU, on the CPU: nothing is read back in ``after``, and the first bad step is remembered."""
    task = task_of()
    watch = Guard(task)
    watch.reads_at_once = False
    refuse = pytest.MonkeyPatch()
    for step, value in enumerate((1.0, math.nan, 1.0, math.inf, 1.0)):
        watch.before()
        loss = (task.model(torch.full((4, 3), value) + torch.randn(4, 3)) ** 2).mean()
        task.model.zero_grad()
        loss.backward()
        refuse.setattr(torch.Tensor, "__bool__", lambda self: pytest.fail("reads a value back"))
        refuse.setattr(torch.Tensor, "item", lambda self: pytest.fail("reads a value back"))
        watch.after(step, loss)
        refuse.undo()
        gradients = [weight.grad for weight in task.model.parameters()]
        assert all(bool((gradient == 0).all()) is not math.isfinite(value) for gradient in gradients[2:3])
        assert all(value.isfinite().all() for value in task.model.state_dict().values())
    assert (watch.skipped, int(watch._first)) == (2, 2)


def test_statistics_are_those_of_the_finite_elements():
    assert statistics(torch.tensor([1.0, -3.0, math.nan, math.inf])) == "-3 … 1, 2 on average, 2 of 4 not finite"
    assert statistics(torch.tensor([math.nan])) == "none, 1 of 1 not finite"
    assert re.fullmatch("0.25 … 0.5, 0.375 on average", statistics(torch.tensor([0.25, 0.5])))


def test_a_bad_last_step_of_an_epoch_is_done_once_more_in_train_mode(tmp_path):
    """A GPU's is read when the epoch was scored, which leaves the model in eval mode."""
    task = task_of(bad=(3,))
    guarded, modes = Guard(task), []
    task.model.register_forward_hook(lambda module, *_: modes.append(module.training))
    guarded.before()
    guarded.after(3, torch.tensor(math.nan))
    task.model.eval()
    with pytest.raises(UserError, match="^pretrain, step 4: the loss term 'mse' must be finite, got nan"):
        guarded.check(RunFolder(tmp_path), lambda step: _batch_of(task, step))
    assert modes == [True]
