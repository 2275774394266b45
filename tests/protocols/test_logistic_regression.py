import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from clead.config import LogisticRegressionConfig, OptimizerConfig
from clead.protocols.logistic_regression import fit_linear


def overlapping_classes():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 3
    return torch.randn(120, 4, generator=generator) + 0.8 * torch.eye(3, 4)[labels], labels


def test_it_converges_to_the_maximum_likelihood_of_scikit_learn():
    x, labels = overlapping_classes()
    optimizer = OptimizerConfig(name="adam", lr=0.2, schedule="cosine")
    config = LogisticRegressionConfig(epochs=150, batch_size=120, optimizer=optimizer)
    rival = LogisticRegression(C=np.inf, tol=1e-8).fit(x.numpy(), labels.numpy())
    found = fit_linear(x, labels, 3, config, seed=1)(x).softmax(1)
    np.testing.assert_allclose(found.detach().numpy(), rival.predict_proba(x.numpy()), atol=2e-3)


def test_the_seed_decides_and_the_global_generator_does_not():
    x, labels = overlapping_classes()
    config = LogisticRegressionConfig(epochs=2, batch_size=500)  # more than there are: one step an epoch
    weights = []
    for seed, state in ((1, 0), (1, 7), (2, 0)):
        torch.manual_seed(state)
        weights.append(fit_linear(x, labels, 3, config, seed).weight)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
