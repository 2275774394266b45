"""A step in parts, against the sums it stands for."""

import pytest
import torch

from clead.engine.gradients import add_gradients
from clead.methods import Batch
from clead_kernels import nt_xent

SIZE = 12


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(SIZE, 1, 2, 2, dtype=torch.float64, generator=generator)
    other = Batch(images + 1, torch.full((SIZE,), -1), torch.arange(SIZE) + 100, 3, 0)
    return Batch(images, torch.arange(SIZE) % 3, torch.arange(SIZE) + 50, 3, 0, 0.25, other, {})


@pytest.fixture
def weights():
    return torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()


@pytest.mark.parametrize("parts", [1, 2, 6])
def test_means_over_images_add_up(batch, weights, parts):
    def loss(seen):
        assert (seen.step, seen.progress) == (3, 0.25) and len(seen.images) == SIZE // parts
        assert torch.equal(seen.labels, (seen.sample_ids - 50) % 3)
        assert torch.equal(seen.unlabeled.sample_ids - 100, seen.sample_ids - 50)
        logits, far = seen.images.flatten(1) @ weights, seen.unlabeled.images.flatten(1) @ weights
        seen.metrics["hits"] = (logits.argmax(1) == seen.labels).double().mean()
        return {"ce": torch.nn.functional.cross_entropy(logits, seen.labels), "decay": far.square().mean()}

    weights.grad = torch.ones_like(weights)  # what is there stays
    terms = add_gradients(loss, batch, parts)
    x, far = batch.images.flatten(1), batch.unlabeled.images.flatten(1)
    off = (x @ weights).softmax(1).detach()
    hits = (off.argmax(1) == batch.labels).double().mean()
    ce = -off.gather(1, batch.labels[:, None]).log().mean()
    off[torch.arange(SIZE), batch.labels] -= 1
    expected = x.mT @ off / SIZE + 2 * far.mT @ (far @ weights.detach()) / (3 * SIZE)
    torch.testing.assert_close(weights.grad - 1, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(terms["ce"], ce, rtol=1e-12, atol=0)
    assert set(terms) == {"ce", "decay"} and not any(term.requires_grad for term in terms.values())
    torch.testing.assert_close(batch.metrics, {"hits": hits})


def test_images_are_compared_within_a_part_only(batch, weights):
    def loss(seen):
        return {"nt_xent": nt_xent(seen.images.flatten(1) @ weights, temperature=0.5)}

    found = add_gradients(loss, batch, 3)["nt_xent"]
    z = torch.nn.functional.normalize(batch.images.flatten(1) @ weights.detach())
    rows = []
    for part in z.split(4):
        for i in range(4):
            others = [float((part[i] @ part[j] / 0.5).exp()) for j in range(4) if j != i]
            positive = float((part[i] @ part[(i + 2) % 4] / 0.5).exp())
            rows.append(-torch.tensor(positive / sum(others), dtype=torch.float64).log())
    torch.testing.assert_close(found, torch.stack(rows).mean(), rtol=1e-12, atol=0)
