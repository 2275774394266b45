import json
import math
from dataclasses import replace

import pytest
import torch

from clead.train import main


def test_the_loss_is_equation_4_with_a_threshold_that_falls_linearly(small, contrastive_row):
    method, model, batch = small("adaptive_fnc", progress=0.25, threshold_start=1.0, threshold_end=0.8)
    views = [method.augment(batch.images, batch.rng("augment", view)) for view in (0, 1)]
    rows = torch.cat([model.embed(view, branch="clean") for view in views]).tolist()
    expected, cancelled = 0.0, 0
    for i in range(12):
        partner, denominator = (i + 6) % 12, []
        for j in range(12):
            dot = sum(p * q for p, q in zip(rows[i], rows[j], strict=True))
            too_similar = dot / math.hypot(*rows[i]) / math.hypot(*rows[j]) > 0.95
            cancelled += too_similar and j not in (i, partner)
            if j == partner or (j != i and not too_similar):
                denominator.append(j)
        expected += contrastive_row(rows[i], rows, [partner], denominator, method.config.temperature) / 12
    assert 0 < cancelled < 120  # else the test says nothing
    assert method.training_loss(model, batch)["nt_xent"].item() == pytest.approx(expected, rel=1e-10)


def test_the_numbers_logged_count_pairs_and_judge_them_by_the_labels(small):
    # At cosine -1 every negative is cancelled: 10 per row of 12. Images 0 and 3, 1 and 4, 2 and 5 share a class, so
    # that each row has 2 rightful ones.
    method, model, batch = small("adaptive_fnc", threshold_start=-1.0)
    metrics = {}
    method.training_loss(model, replace(batch, metrics=metrics))
    values = {name: value.item() for name, value in metrics.items()}
    assert values == {"cancelled_pairs": 10.0, "cancelled_precision": 0.2, "cancelled_recall": 1.0}


def test_a_run_logs_them_beside_the_loss(tmp_path):
    arguments = "--epochs 2 --train-samples 256 --stages pretrain --threshold-start 0.5 --threshold-end -1"
    main(["adaptive_fnc", *arguments.split(), "--out", str(tmp_path / "run")])
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    pairs = [line["metrics"]["cancelled_pairs"] for line in lines]
    # At cosine -1 all but the partner would go; the last of four steps is three quarters of the way there.
    assert pairs == sorted(pairs) and pairs[0] < pairs[-1] <= 254
    # Undefined numbers (no pair cancelled, so no precision) are left out: JSON has no NaN.
    assert all(math.isfinite(value) for line in lines for value in line["metrics"].values())
    assert all("cancelled_pairs" not in line for line in lines)
