import json
import math
from dataclasses import replace

import pytest
import torch

from clead.cli import config_values, read_config
from clead.errors import UserError
from clead.recipes import RECIPES


@pytest.mark.parametrize("treatment", ["eliminate", "attract"])
@pytest.mark.parametrize(
    ("threshold", "topk", "combine"),
    [(0.95, 3, "or"), (0.95, 3, "and"), (0.95, None, "or"), (None, 3, "and")],
)
def test_the_loss_equals_loops(small, contrastive_row, threshold, topk, combine, treatment):
    method, model, batch = small("fnc", threshold=threshold, topk=topk, combine=combine, treatment=treatment)
    views = [method.augment(batch.images, batch.rng("augment", view)) for view in (0, 1)]
    rows = torch.cat([model.embed(view, branch="clean") for view in views]).tolist()
    unit = [[value / math.hypot(*row) for value in row] for row in rows]
    expected, found = 0.0, 0
    for i in range(12):
        partner, others = (i + 6) % 12, [j for j in range(12) if j != i]
        negatives = [j for j in others if j != partner]
        cosine = {j: sum(p * q for p, q in zip(unit[i], unit[j], strict=True)) for j in negatives}
        above = {j for j in negatives if threshold is not None and cosine[j] > threshold}
        nearest = set(sorted(negatives, key=lambda j: -cosine[j])[: topk or 0])
        both = combine == "and" and threshold is not None and topk is not None
        false = above & nearest if both else above | nearest
        found += len(false)
        if treatment == "attract":
            row = contrastive_row(rows[i], rows, [partner, *false], others, method.config.temperature)
        else:
            kept = [j for j in others if j not in false]
            row = contrastive_row(rows[i], rows, [partner], kept, method.config.temperature)
        expected += row / 12
    assert 0 < found < 120
    assert method.training_loss(model, batch)["nt_xent"].item() == pytest.approx(expected, rel=1e-10)


def test_a_rule_can_be_switched_off_but_not_both(tmp_path):
    config = replace(RECIPES["fnc_digits"].config, topk=None)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"schema": 1, "method": "fnc", "recipe": "r", "values": config_values(config)}))
    assert read_config(file)[2] == config
    with pytest.raises(UserError, match="threshold or topk must be given, got neither"):
        replace(config, threshold=None)
