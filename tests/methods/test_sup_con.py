import pytest
import torch


def test_the_loss_is_equation_2(small, contrastive_row):
    method, model, batch = small("sup_con", labels=[0, 0, 1, 2, 1, 1])
    views = [method.augment(batch.images, batch.rng("augment", view)) for view in (0, 1)]
    rows = torch.cat([model.embed(view, branch="clean") for view in views]).tolist()
    labels = [0, 0, 1, 2, 1, 1] * 2
    expected = 0.0
    for i in range(12):
        others = [j for j in range(12) if j != i]
        positives = [j for j in others if labels[j] == labels[i]]
        expected += contrastive_row(rows[i], rows, positives, others, method.config.temperature) / 12
    assert method.training_loss(model, batch)["sup_con"].item() == pytest.approx(expected, rel=1e-10)
