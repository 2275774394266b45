import math

import torch
from sklearn.neighbors import KNeighborsClassifier

from clead.config import KNNConfig
from clead.data import Dataset
from clead.models import BatchNormConfig, Model, Projector, build_encoder, initialise
from clead.protocols import knn, knn_predict


def points(count, seed, dim=5):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dim, dtype=torch.float64, generator=generator)


def test_predictions_equal_loops():
    queries, bank, labels = points(30, 0), points(40, 1), torch.arange(40) % 3
    expected = []
    for q in queries.tolist():
        cosines = [
            sum(a * b for a, b in zip(q, row, strict=True)) / math.hypot(*q) / math.hypot(*row) for row in bank.tolist()
        ]
        votes = [0.0] * 3
        for index in sorted(range(40), key=lambda i: -cosines[i])[:7]:
            votes[index % 3] += math.exp(cosines[index] / 0.5)
        expected.append(votes.index(max(votes)))
    found = knn_predict(queries, bank, labels, k=7, temperature=0.5, num_classes=3, batch_size=8)
    assert found.tolist() == expected
    assert len(set(expected)) == 3


def test_predictions_equal_those_of_scikit_learn():
    queries, bank, labels = points(200, 2), points(150, 3), torch.arange(150) % 4
    rival = KNeighborsClassifier(
        n_neighbors=20,
        metric="cosine",
        weights=lambda distances: torch.exp((1 - torch.tensor(distances)) / 0.1).numpy(),
    ).fit(bank.numpy(), labels.numpy())
    found = knn_predict(queries, bank, labels, k=20, temperature=0.1, num_classes=4)
    assert found.tolist() == rival.predict(queries.numpy()).tolist()


def test_a_tiny_temperature_is_the_nearest_neighbour_and_no_overflow():
    queries, bank, labels = points(50, 4).float(), points(60, 5).float(), torch.arange(60) % 5
    nearest = (torch.nn.functional.normalize(queries) @ torch.nn.functional.normalize(bank).T).argmax(1)
    found = knn_predict(queries, bank, labels, k=200, temperature=1e-4, num_classes=5)
    assert torch.equal(found, labels[nearest])


def test_the_row_says_what_was_measured():
    encoder = build_encoder("digits_cnn", in_channels=1, mean=(0.3,), std=(0.4,), bn=BatchNormConfig())
    model = Model(encoder, {"projector": Projector(encoder.feature_dim, 16, 16)})
    initialise(model, seed=0)
    for weight in model.heads["projector"].parameters():
        weight.data.zero_()  # all embeddings are alike
    images = torch.randint(0, 17, (40, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    data = Dataset("toy", images, torch.arange(40) % 10, tuple("0123456789"), 16)
    key = {"run": "r", "model": "trained", "dataset": "toy", "split": "train"}
    # Every query is in the bank, and one neighbour is asked for.
    for on, accuracy in (("features", 1.0), ("embeddings", 0.1)):
        row = knn(model, data, data, KNNConfig(on=(on,), k=1), on, branch="clean", impl="auto", key=key)
        assert (row["protocol"], row["name"], row["samples"], row["accuracy"]) == (f"knn_{on}", "clean", 40, accuracy)
