import json
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file


def lines(stage, losses, **terms):
    return [
        {"stage": stage, "epoch": 1, "step": step, "loss": loss, "lr": 0.1, "images_per_s": 5e3}
        | {name: weight * loss for name, weight in terms.items()}
        for step, loss in enumerate(losses, 1)
    ]


def row(model, name, accuracy, eps=None, samples=500, flags=(), **more):
    return {
        "run": "r",
        "model": model,
        "protocol": "linear_eval",
        "bn_branch": "clean",
        "dataset": "digits",
        "split": "test",
        "corruption": None,
        "severity": None,
        "attack": {"fgsm": "fgsm", "pgd20": "pgd", "cw": "cw_linf"}.get(name),
        "norm": None if eps is None else "linf",
        "eps": eps,
        "steps": None,
        "step_size": None,
        "restarts": None,
        "seed": 0,
        "dtype": "float32",
        "name": name,
        "accuracy": accuracy,
        "samples": samples,
        "low": accuracy - 0.03,
        "high": accuracy + 0.03,
        "flags": list(flags),
        "seconds": 1.0,
    } | more


def write_examples(run, channels=1, count=6, size=8, eps=0.15):
    random = np.random.default_rng(0)
    clean = random.uniform(0.2, 0.8, (count, channels, size, size)).astype(np.float32)
    adversarial = (clean + np.float32(eps) * random.choice([-1, 1], clean.shape)).astype(np.float32)
    labels = np.arange(count)
    tensors = {
        "clean": clean,
        "adversarial": adversarial,
        "labels": labels,
        "clean_prediction": labels,
        "adversarial_prediction": (labels + (labels == 2)) % 10,
    }
    metadata = {"attack": "pgd20", "eps": str(eps), "model": "trained"}
    save_file(tensors, run / "examples.safetensors", metadata)
    return tensors


def write_run(run, metrics, method="clead", data="digits"):
    run.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"schema": 1, "state": "done", "stages": []}))
    config = {"schema": 1, "method": method, "recipe": None, "values": {"data": data}}
    (run / "config.json").write_text(json.dumps(config))
    (run / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in metrics))


def write_results(run, rows):
    (run / "results.json").write_text(json.dumps({"schema": 1, "results": rows}))


def write_data(run, figure, tensors, model="trained", **facts):
    """``figures/<figure>.safetensors`` as clead.evaluate writes it."""
    (run / "figures").mkdir(parents=True, exist_ok=True)
    common = {"schema": "1", "figure": figure, "model": model, "method": "clead", "data": "digits, test images"}
    common |= {"classes": json.dumps([str(label) for label in range(10)]), "eps": "0.15"}
    save_file(tensors, run / "figures" / f"{figure}.safetensors", common | facts)


@pytest.fixture
def synthetic():
    """The functions above; test modules cannot import a conftest."""
    return SimpleNamespace(
        lines=lines,
        row=row,
        write_data=write_data,
        write_examples=write_examples,
        write_results=write_results,
        write_run=write_run,
    )


@pytest.fixture
def run(tmp_path):
    """A finished run with both comparisons."""
    folder = tmp_path / "clead-digits-s0"
    pretrain = lines("pretrain", [6.0, 5.0, 4.0, 3.5], pgd=0.6, cw=0.4)
    write_run(folder, pretrain + lines("linear_eval", [2.3, 1.0, 0.5]))
    write_run(folder / "comparisons" / "undefended", lines("pretrain", [2.3, 0.5, 0.1, 0.05]), "ce")
    write_run(folder / "comparisons" / "random", lines("linear_eval", [2.3, 2.0, 1.5]), "ce")
    rows = []
    for model, clean in (("trained", 0.95), ("undefended", 0.97), ("random", 0.8)):
        rows.append(row(model, "clean", clean))
        for eps in (0.1, 0.15):
            rows += [row(model, name, clean * (1 - 4 * eps), eps) for name in ("fgsm", "pgd20", "cw")]
        rows += [row(model, "pgd20", clean * (1 - 4 * eps), eps, flags=["sweep"]) for eps in (0.05, 0.2)]
    write_results(folder, rows)
    write_examples(folder)
    return folder
