import pytest


def test_the_loss_is_equation_5_in_one_direction(small, contrastive_row):
    method, model, batch = small("plain")
    q, p = (
        model.embed(method.augment(batch.images, batch.rng("augment", view)), branch="clean").tolist()
        for view in (0, 1)
    )
    tau = method.config.temperature
    expected = sum(contrastive_row(q[i], p, [i], range(6), tau) for i in range(6)) / 6
    assert method.training_loss(model, batch)["info_nce"].item() == pytest.approx(expected, rel=1e-10)
    other_way = sum(contrastive_row(p[i], q, [i], range(6), tau) for i in range(6)) / 6
    assert abs(other_way - expected) > 1e-6 * expected  # else the direction would not be tested
