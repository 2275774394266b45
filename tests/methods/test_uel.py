import math

import pytest
import torch

from clead.losses import uel_loss


def uel_by_loops(rows, temperature):
    """Eq. 7 to 9 for lists of rows."""
    count, total = len(rows), 0.0
    unit = [[value / math.hypot(*row) for value in row] for row in rows]
    for i in range(count):
        s = [sum(p * q for p, q in zip(unit[i], other, strict=True)) / temperature for other in unit]
        partner = (i + count // 2) % count
        normaliser = sum(math.exp(s[j]) for j in range(count) if j != i)
        share = {j: math.exp(s[j]) / normaliser for j in range(count) if j != i}
        total -= math.log(share[partner]) + sum(math.log(1 - share[j]) for j in share if j != partner)
    return total / count


def test_the_loss_equals_loops(small):
    method, model, batch = small("uel")
    views = [method.augment(batch.images, batch.rng("augment", view)) for view in (0, 1)]
    rows = torch.cat([model.embed(view, branch="clean") for view in views]).tolist()
    expected = uel_by_loops(rows, method.config.temperature)
    assert method.training_loss(model, batch)["uel"].item() == pytest.approx(expected, rel=1e-9)


def test_by_hand():
    # Two images at 0 and 90 degrees, views equal: cosines 1 and 0, 0. Every row: P = e^2 / (e^2 + 2) for the partner.
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(2, 1).double()
    e = math.exp(2)
    expected = math.log((e + 2) / e) - 2 * math.log(1 - 1 / (e + 2))
    assert uel_loss(rows, temperature=0.5).item() == pytest.approx(expected, rel=1e-12)


def test_keys_carry_no_gradient():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(8, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    (grad,) = torch.autograd.grad(uel_loss(rows, temperature=0.3), rows)
    # Central differences in one row as an anchor, while the keys stay: s_ij for j != i uses the old rows only.
    step, keys = 1e-6, rows.detach().tolist()
    for i, k in ((0, 1), (5, 3)):
        values = []
        for sign in (1, -1):
            moved = list(keys[i])
            moved[k] += sign * step
            values.append(_row(i, moved, keys, 0.3))
        assert grad[i, k].item() == pytest.approx((values[0] - values[1]) / (2 * step) / 8, rel=1e-6, abs=1e-9)


def _row(i, anchor, keys, temperature):
    """The term of row i with ``anchor`` in its place as an anchor only."""
    s = [
        sum(p * q for p, q in zip(anchor, key, strict=True)) / math.hypot(*anchor) / math.hypot(*key) / temperature
        for key in keys
    ]
    others = [j for j in range(len(keys)) if j != i]
    normaliser, partner = sum(math.exp(s[j]) for j in others), (i + len(keys) // 2) % len(keys)
    spread = sum(math.log(1 - math.exp(s[j]) / normaliser) for j in others if j != partner)
    return math.log(normaliser) - s[partner] - spread
