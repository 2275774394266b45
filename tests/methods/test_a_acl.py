import math

import pytest


@pytest.mark.parametrize("source", ["clean", "self"])
def test_both_streams_lose_the_false_negatives(small, nt_xent_loops, check_attack, source):
    method, model, batch = small("a_acl", mask_source=source, threshold_start=0.985)
    views, tau = method.views(batch), method.config.temperature
    x_adv = method.adversaries(model, views, batch, method.cancelled(model, views, batch))

    def left_out(rows):
        found = set()
        for i in range(12):
            for j in range(12):
                dot = sum(p * q for p, q in zip(rows[i], rows[j], strict=True))
                if i % 6 != j % 6 and dot / math.hypot(*rows[i]) / math.hypot(*rows[j]) > 0.985:
                    found |= {(i, j)} if source == "self" else {(a, b) for a in (i, i - 6) for b in (j, j - 6)}
        return {(i % 12, j % 12) for i, j in found}

    def embed(x, branch):
        return model.embed(x, branch=branch).tolist()

    def loss(rows):
        return sum(nt_xent_loops(rows, tau, 2, left_out(rows if source == "self" else clean))) / 12

    clean = embed(views, "clean")
    assert 0 < len(left_out(clean)) < 120 and len(left_out(clean)) % (4 if source == "clean" else 2) == 0
    terms = {name: term.item() for name, term in method.training_loss(model, batch).items()}
    assert terms == pytest.approx({"clean": loss(clean) / 2, "adv": loss(embed(x_adv, "adv")) / 2}, rel=1e-10)
    check_attack(lambda x: loss(embed(x, "adv")), views, x_adv, eps=0.15)
