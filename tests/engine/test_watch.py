"""Warnings: collapse and falling validation accuracy, each once."""

import copy
from types import SimpleNamespace

import pytest
import torch

from clead.engine.watch import Watch


def watch_of(projector, said):
    model = torch.nn.Module()
    model.heads = torch.nn.ModuleDict({"projector": projector})
    return Watch(SimpleNamespace(stage="pretrain", model=model), said.append), model


def test_embeddings_of_logged_steps_are_looked_at():
    said = []
    watch, model = watch_of(torch.nn.Identity(), said)
    head = model.heads["projector"]
    watch.arm(False)
    head(torch.randn(8, 4))
    assert watch.spread(0) == {}
    watch.arm(True)
    # The corners of a cross-polytope: every coordinate is 1, -1, and six zeros in eight rows.
    head(torch.cat([torch.eye(4), -torch.eye(4)]))
    expected = (2 / 7) ** 0.5 * 2
    assert watch.spread(0)["embedding_spread"] == pytest.approx(expected) and said == []
    head(torch.ones(8, 4) + 1e-4 * torch.randn(8, 4))
    for step in (6, 7):
        assert watch.spread(step)["embedding_spread"] < 1e-3
    assert len(said) == 1 and said[0].startswith("warning: pretrain, step 7: all images get nearly the same embedding")
    watch.close()
    watch.arm(True)
    head(torch.randn(8, 4))
    assert watch.spread(0) == {}


def test_a_copied_model_does_not_copy_what_watches_it():
    watch, model = watch_of(torch.nn.Linear(3, 3), [])
    watch._task.data = SimpleNamespace(__deepcopy__=lambda memo: pytest.fail("copied"))
    copy.deepcopy(model)


def test_an_attack_that_is_resisted_only_at_its_end_is_told_once():
    said = []
    watch, _ = watch_of(torch.nn.Identity(), said)
    for step, half in ((0, 0.55), (20, 0.3), (40, 0.2)):
        watch.one_step(step, {"adv_accuracy": 0.6, "halfway_accuracy": half})
    watch.one_step(60, {"other": 0.0})
    assert said == [
        "warning: pretrain, step 21: accuracy is 60.0% on attacked images, but 30.0% half way to them: "
        "catastrophic overfitting, see PGD's accuracy"
    ]


def test_falling_accuracy_is_told_once():
    said = []
    watch, _ = watch_of(torch.nn.Identity(), said)
    for epoch, score in ((2, 0.58), (3, 0.5), (4, 0.4)):
        watch.overfitting(epoch, score, 1, 0.6)
    assert said == [
        "warning: pretrain, epoch 3: held-out accuracy is 50.0%, down from 60.0% after epoch 1; "
        "the weights of that epoch are kept"
    ]
