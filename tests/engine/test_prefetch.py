"""Batches fetched in the background: the same training, really at the same time, and nothing left behind."""

import threading

import pytest
import torch
from rich.console import Console

from clead.config import OptimizerConfig
from clead.engine.loop import Fit, Unlabeled, batches, fit
from clead.engine.prefetch import ahead
from clead.engine.progress import Progress
from clead.engine.run import RunFolder
from clead.methods import Batch

CPU = torch.device("cpu")
X = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))


class Store:
    """Images that tell which batch is being fetched, and may fail on one."""

    def __init__(self, fail_at=None):
        self.begun = [threading.Event() for _ in range(8)]
        self.threads, self.fail_at = [], fail_at

    def __call__(self, samples):
        number = len(self.threads)
        self.threads.append(threading.current_thread())
        self.begun[number].set()
        if number == self.fail_at:
            raise OSError("the disk is gone")
        return X[samples]


def task(store, prefetch, loss=None, **changes):
    model = torch.nn.Linear(3, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.1, 0.2, -0.3]]))
        model.bias.zero_()

    def squares(batch):
        if loss is not None:
            loss(batch)
        return {"mse": (model(batch.images) - batch.labels[:, None]).square().mean()}

    values = {
        **{"stage": "full_finetune", "model": model, "trained": model, "loss": squares, "images": store},
        **{"labels": torch.arange(40) % 2, "epochs": 2, "batch_size": 10, "seed": 0, "meta": {}},
        **{"optimizer": OptimizerConfig(lr=0.05, schedule="constant"), "checkpoint_every": 1, "prefetch": prefetch},
    }
    return Fit(**values | changes)


def train(path, one):
    with RunFolder.create(path, resume=True, overwrite=False) as folder:
        fit(one, folder, Progress(Console(quiet=True)))
    return one.model.weight.detach()


def fetching():
    return [thread for thread in threading.enumerate() if thread.name.startswith("clead-prefetch")]


@pytest.mark.parametrize("prefetch", [1, 2, 64])
def test_training_is_bitwise_the_same_with_any_number_ahead(tmp_path, prefetch):
    assert torch.equal(
        train(tmp_path / "ahead", task(Store(), prefetch)), train(tmp_path / "plain", task(Store(), prefetch=0))
    )
    assert not fetching()


def test_batches_are_the_same_with_another_data_set_beside_them():
    other = Unlabeled(X.neg().__getitem__, 30)
    found = [list(batches(task(Store(), prefetch, unlabeled=other), 2)) for prefetch in (0, 2)]
    assert [step for step, _ in found[0]] == [2, 3, 4, 5, 6, 7] == [step for step, _ in found[1]]
    for (_, plain), (_, fetched) in zip(*found, strict=True):
        for one, other in ((plain, fetched), (plain.unlabeled, fetched.unlabeled)):
            assert torch.equal(one.images, other.images) and torch.equal(one.sample_ids, other.sample_ids)
            assert torch.equal(one.labels, other.labels) and one.step == other.step


def test_unlabelled_samples_come_once_per_epoch_of_their_own():
    other = Unlabeled(X.repeat(2, 1).__getitem__, 31)
    seen = [batch.unlabeled.sample_ids.tolist() for _, batch in batches(task(Store(), 0, unlabeled=other), 0)]
    first, second = sum(seen[:3], []), sum(seen[3:6], [])
    assert len(set(first)) == len(set(second)) == 30 and first != second


def test_the_next_batch_is_fetched_while_a_step_runs_also_over_the_end_of_an_epoch(tmp_path):
    store = Store()

    def loss(batch):
        if batch.step < 7:  # without a thread this would wait for ever
            assert store.begun[batch.step + 1].wait(timeout=20)

    train(tmp_path / "run", task(store, 1, loss))
    assert len(set(store.threads)) == 1 and store.threads[0].name.startswith("clead-prefetch")


@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_epoch_begins_after_the_one_before_was_scored_whatever_is_fetched_by_then(tmp_path, prefetch):
    store, seen = Store(), []
    model = torch.nn.Linear(3, 1)

    def score():
        ahead_of_it = 4 * (1 + sum(one == "score" for one in seen)) + prefetch
        assert not model.training and all(begun.wait(timeout=20) for begun in store.begun[:ahead_of_it])
        assert len(store.threads) == min(ahead_of_it, 8)
        seen.append("score")
        return 0.0

    def loss(batch):
        assert model.training
        seen.append(batch.step)
        return {"mean": model(batch.images).mean()}

    changes = {"model": model, "trained": model, "loss": loss, "score": score}
    train(tmp_path / "run", task(store, prefetch, start_epoch=lambda epoch: seen.append(f"epoch {epoch}"), **changes))
    assert seen == ["epoch 0", 0, 1, 2, 3, "score", "epoch 1", 4, 5, 6, 7, "score"] and not fetching()


@pytest.mark.parametrize("place", ["score", "start_epoch"])
def test_a_failure_between_epochs_leaves_no_thread(tmp_path, place):
    def fail(epoch=1):
        if epoch:
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        train(tmp_path / "run", task(Store(), 2, **{place: fail}))
    assert not fetching()


def test_no_more_than_asked_for_is_fetched_before_its_turn():
    store = Store()
    steps = batches(task(store, 2), 0)
    next(steps)
    assert store.begun[2].wait(timeout=20)
    steps.close()
    assert len(store.threads) == 3 and not fetching()


def test_without_any_ahead_there_is_no_thread(tmp_path):
    store = Store()
    train(tmp_path / "run", task(store, prefetch=0))
    assert set(store.threads) == {threading.current_thread()}


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_a_failure_comes_where_its_batch_would_have(tmp_path, prefetch):
    seen = []
    with pytest.raises(OSError, match="the disk is gone"):
        train(tmp_path / "run", task(Store(fail_at=2), prefetch, lambda batch: seen.append(batch.step)))
    assert seen == [0, 1] and not fetching()


def test_an_interrupted_run_leaves_no_thread_and_resumes_to_the_same_weights(tmp_path):
    def interrupt(batch):
        if batch.step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", task(Store(), 2, interrupt))
    assert not fetching()
    whole = train(tmp_path / "whole", task(Store(), prefetch=0))
    resumed = Store()
    assert torch.equal(train(tmp_path / "run", task(resumed, 2)), whole)
    assert len(resumed.threads) == 4  # from the checkpoint after the first epoch on


@pytest.mark.gpu
def test_batches_of_a_gpu_are_complete_when_they_are_used():
    images = torch.randint(0, 256, (64, 3, 224, 224), dtype=torch.uint8)
    samples = torch.arange(64, device="cuda")

    def make(step):
        ids = samples[step % 4 * 16 :][:16]
        pixels = images[ids.cpu()].pin_memory().to("cuda", non_blocking=True).float()
        return Batch(pixels, ids % 10, ids, step, seed=0)

    for batch in ahead(make, range(40), 3, torch.device("cuda", 0)):
        expected = images[batch.sample_ids.cpu()].float()
        assert torch.equal(batch.images.cpu(), expected)
