"""TRADES, MART and fast adversarial training: what their attacks raise, and what they leave alone."""

import torch
import torch.nn.functional as F
from test_every_method import batch, make

from clead.losses import kl_divergence


def best_random(loss, x, eps, tries=10):
    generator = torch.Generator().manual_seed(7)
    noises = [(x + eps * torch.randn(x.shape, generator=generator).sign()).clamp(0, 1) for _ in range(tries)]
    with torch.no_grad():
        return max(loss(noise).item() for noise in noises)


def test_trades_attack_raises_the_divergence():
    method, model = make("trades")
    model.eval()
    b = batch()
    x = method.augment(b.images, b.rng("augment"))
    x_adv = method.diverge(model, x, b)
    assert ((x_adv - x).abs() <= 0.15 + 1e-7).all() and ((x_adv >= 0) & (x_adv <= 1)).all()
    with torch.no_grad():
        clean = model.logits(x, branch="clean")

    def divergence(images):
        return kl_divergence(model.logits(images, branch="clean"), clean).mean()

    assert divergence(x_adv) > max(0.0, best_random(divergence, x, 0.15))


def test_mart_and_fast_at_train_on_attacked_images():
    for name, term in (("mart", "bce"), ("fast_at", "ce_adv")):
        method, model = make(name)
        model.eval()
        b = batch()
        x = method.augment(b.images, b.rng("augment"))

        def clean_loss(images, method=method, model=model, b=b, term=term):
            logits = model.logits(images, branch="clean")
            if term == "ce_adv":
                return F.cross_entropy(logits, b.labels)
            p = logits.softmax(1)
            others = p.scatter(1, b.labels[:, None], 0.0).amax(1)
            return -(p.gather(1, b.labels[:, None])[:, 0].log() + (1 - others).log()).mean()

        with torch.no_grad():
            found = method.training_loss(model, b)[term]
            assert found > max(clean_loss(x), best_random(clean_loss, x, 0.15))


def test_attacks_leave_the_running_statistics_alone():
    for name in ("trades", "mart", "fast_at"):
        method, model = make(name)
        model.train()
        before = {key: value.clone() for key, value in model.state_dict().items() if "running_" in key}
        seen = []
        original = model.logits
        model.logits = lambda x, branch, original=original, seen=seen: (seen.append(len(x)), original(x, branch))[1]
        method.training_loss(model, batch())
        del model.logits
        state = model.state_dict()
        changed = [key for key, value in before.items() if not torch.equal(state[key], value)]
        # One forward pass in train mode moves every statistic once, by the momentum.
        assert len(changed) == len(before) and len(seen) > 1
        tracked = [value for key, value in state.items() if key.endswith("num_batches_tracked")]
        assert all(value == 1 for value in tracked)
