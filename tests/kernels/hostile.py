"""Calls every native CPU op, past the front doors, with what it cannot take: to be run as a process of its own.

Each argument of a good call becomes each hostile value in turn, and then two or three at random. A case must end in an
exception or return; the one that ends the process is the last line on stdout.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import clead_kernels  # noqa: F401 - defines the ops
from clead_kernels.augment.steps import NAMES, STEPS

M, N, D = 6, 8, 3
NUMBERS = (-1, 0, 1, 7, 2**31, 2**62, 2**63 - 1, -(2**63))
FLOATS = (float("nan"), float("inf"), float("-inf"), 0.0, -1.0, 1e-300, 1e-9, 1e20, 1e308)
DTYPES = (torch.uint8, torch.int32, torch.int64, torch.bool, torch.complex64, torch.float8_e5m2)
DTYPES = (*DTYPES, torch.float16, torch.bfloat16, torch.float32, torch.float64)


def good(name: str, variant: int) -> dict[str, Any]:
    """Arguments that the op takes, by name; ``variant`` chooses among the rules of the contrastive ops."""
    a, b, margin = torch.randn(M, D), torch.randn(N, D), torch.arange(M) % 3
    candidates = None if variant % 3 == 2 else b
    others = M if candidates is None else N
    images = torch.rand(3, 2, 4)
    values: dict[str, Any] = {
        "anchors": a,
        "candidates": b if "margin" in name else candidates,
        **{"a": a, "b": b, "queries": a, "bank": b, "x": a, "rows": a.clone(), "grad_rows": a.clone()},
        **{"temperature": 0.5, "bias": -1.0, "normalize": variant != 1, "scale": 2.0, "k": 2, "momentum": 0.9},
        **{"self_offset": -1, "positive_offset": -1, "topk": 0, "attract": variant == 3, "weight": 0.5},
        **{"each_level": variant == 4, "all_rules": variant == 4, "denominator": variant % 3, "inside": variant == 3},
        **{"spread": 0.0, "debias": 0.0, "hard_negative_beta": 0.5 * (variant == 3), "euclidean": variant == 5},
        "both_ways": variant == 6,
        **dict.fromkeys(("positive_index", "self_index", "groups", "candidate_groups", "row_threshold", "threshold")),
        **dict.fromkeys(("clusters", "candidate_clusters", "eps_tensor", "step_tensor", "sparsity_tensor")),
        **{"loss": torch.zeros(M), "num_positives": margin.clone(), "statistics": torch.zeros(16, M)},
        **{"grad_loss": torch.ones(M), "grad_anchors": torch.zeros(M, D), "grad_temperature": torch.zeros(())},
        "grad_candidates": torch.zeros(others, D) if candidates is not None else torch.zeros(0),
        **{"grad_a": torch.zeros(M, D), "grad_b": torch.zeros(N, D), "grad_bias": torch.zeros(())},
        **{"hardest": margin.clone(), "positives": margin.clone(), "radial": torch.zeros(M, dtype=torch.float64)},
        **{"values": torch.zeros(M, 2), "indices": torch.zeros(M, 2, dtype=torch.int64), "grad": torch.zeros(M, D)},
    }
    if variant in (0, 1, 6):
        values["positive_offset"] = 0
    elif variant in (2, 5):
        values |= {"self_offset": 0, "groups": margin}
        values["candidate_groups"] = None if candidates is None else torch.arange(N) % 3
    else:
        values |= {"positive_index": margin, "topk": variant - 3, "row_threshold": torch.zeros(M)}
        values |= {"clusters": torch.zeros(2, M).long(), "candidate_clusters": torch.zeros(2, N).long()}
    if variant == 6:
        values |= {"candidates": torch.randn(M, D), "grad_candidates": torch.zeros(M, D)}
        values |= {
            "grad_loss": torch.ones(2 * M),
            "loss": torch.zeros(2 * M),
            "num_positives": margin.repeat(2),
            "statistics": torch.zeros(16, 2 * M),
        }
    if name.partition("_")[0] in ("pgd", "random", "project", "momentum"):
        pixel = torch.full((3, 1, 1), 0.5)
        values |= {"x_adv": images.clone(), "buffer": images.clone(), "grad": images.clone(), "x": images.clone()}
        values |= {"eps": 0.5, "step_size": 0.1, "sparsity": 0.5, "low": 0.0, "high": 1.0, "targeted": variant == 1}
        values |= {"seed": 1, "step": 2, "sample_ids": torch.arange(3) if variant else None}
        if variant == 2:
            values |= {"eps_tensor": pixel, "step_tensor": pixel.clone(), "sparsity_tensor": pixel.clone()}
    if name.startswith("augment"):
        steps = (["crop", "flip", "brightness"], ["resized_crop", "jitter", "grayscale"], ["affine", "blur"])[variant]
        numbers = torch.rand(sum(len(STEPS[step]) for step in steps), 6, dtype=torch.float64) + 1
        values |= {"images": torch.rand(3, 3, 5, 4), "parameters": numbers, "out": torch.zeros(6, 3, 5, 4)}
        values |= {"steps": [NAMES.index(step) for step in steps], "max_value": 255.0, "clip": True}
    if name.startswith("conv3x3"):
        x, weight, grad = torch.rand(2, 5, 6, 16), torch.rand(32, 16, 3, 3), torch.rand(2, 5, 6, 32)
        values |= {"x": x.permute(0, 3, 1, 2), "weight": weight, "bias": torch.rand(32) if variant else None}
        values |= {"grad": grad.permute(0, 3, 1, 2), "out": torch.rand(2, 5, 6, 32).permute(0, 3, 1, 2)}
        values |= {"turned": variant == 2, "packed": torch.rand(36 * (64 * (32 if variant == 2 else 16) + 16))}
        values |= {"grad_weight": torch.rand(32, 16, 3, 3)}
        if name == "conv3x3_packed_" and variant == 2:
            values |= {"x": values["grad"], "out": torch.rand(2, 5, 6, 16).permute(0, 3, 1, 2), "bias": torch.rand(16)}
    return values


def views(x: Tensor) -> Iterator[tuple[str, Any]]:
    """What no kernel wants in the place of ``x``, or what it must read with care."""
    gone = x.clone()
    gone.untyped_storage().resize_(0)
    one = x.new_zeros(1)
    yield "None", None
    yield "meta", x.to("meta")
    yield "0-d", x.new_zeros(())
    yield "gone", gone
    yield "one more", x[None]
    yield "sparse", x.to_sparse()
    yield "zero", torch._efficientzerotensor(x.shape, dtype=x.dtype)
    yield "empty", x.new_empty((0, *x.shape[1:]))
    yield "no numbers", x.new_empty(2**40, 0)
    yield "many", one.expand(2**40, 3)
    yield "wide", one.expand(1, 2**62)
    yield "levels", one.expand(2**58, M)
    yield "vector", x.new_zeros(2**16)
    yield "huge vector", one.expand(2**62)
    yield "negated", torch._neg_view(x) if x.dtype != torch.bool else x
    yield "backwards", x.flip(0)
    if x.ndim:
        strides = range(1, x.ndim + 1)
        yield "step of 0", x[:1].expand(x.shape)
        yield "one number", x.new_zeros(()).expand(x.shape)
        yield "overlapping", x.new_zeros(64 + x.numel()).as_strided(x.shape, tuple(1 for _ in strides))
        yield "huge strides", x.new_zeros(64).as_strided((1,) * x.ndim, tuple(2**62 - step for step in strides))
        yield "no rows, huge strides", x.as_strided((0,) * x.ndim, tuple(2**62 for _ in strides))
        yield "far columns", x.as_strided((5, 0), (2**61, 1))
        yield "transposed", x.mT.contiguous().mT if x.ndim > 1 else x.repeat_interleave(2)[::2]
        yield "last", x.flatten()[-1:].expand(x.shape)
        yield "shorter", x[:-1]
        yield "longer", torch.cat([x, x])
    for dtype in DTYPES:
        yield str(dtype), x.to(dtype)
    for fill in FLOATS[:-1] if x.is_floating_point() else NUMBERS:
        yield f"of {fill}", torch.full_like(x, fill)


def hostile(name: str, values: dict[str, Any], kind: str) -> list[tuple[str, Any]]:
    """Values for one argument of this type."""
    if kind == "List[int]":
        return [(str(x), x) for x in ([], [0], [-1], [len(NAMES)], [2**62], [*range(len(NAMES))])]
    if "Tensor" not in kind:
        return [(str(x), x) for x in {"float": FLOATS, "float?": FLOATS, "bool": (False, True)}.get(kind, NUMBERS)]
    given = values[name] if values[name] is not None else torch.zeros(M, dtype=torch.int64)
    others = [(f"is {other}", x) for other, x in values.items() if isinstance(x, Tensor) and other != name]
    return [*views(given), *others]


def call(op: Any, values: dict[str, Any], what: str) -> bool:
    """Whether the call raised."""
    sys.stdout.write(what + "\n")
    sys.stdout.flush()
    try:
        op(*(values[argument.name] for argument in op._schema.arguments))
    except Exception:
        return True
    return False


def main(randomly: int) -> None:
    """All single changes, and ``randomly`` combinations for every op and variant."""
    torch.manual_seed(0)
    generator, raised, calls = random.Random(0), 0, 0
    names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("clead::")]
    names = sorted(name[7:] for name in names if torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU"))
    for name in names:
        op = getattr(torch.ops.clead, name).default
        arguments = op._schema.arguments
        kinds = {argument.name: str(argument.type).replace("Optional[Tensor]", "Tensor") for argument in arguments}
        for variant in range(7 if name.startswith("contrastive") else 3):
            good_values = good(name, variant)
            assert not call(op, good_values, f"{name} {variant}"), f"{name} {variant} is refused"
            for argument, kind in kinds.items():
                given = {key: x for key, x in good(name, variant).items() if key in kinds}
                for what, value in hostile(argument, given, kind):
                    raised += call(op, given | {argument: value}, f"{name} {variant}: {argument} {what}")
                    calls += 1
            for _ in range(randomly):
                changed, said = {key: x for key, x in good(name, variant).items() if key in kinds}, ""
                for argument in generator.sample(list(kinds), min(len(kinds), generator.randint(2, 3))):
                    what, changed[argument] = generator.choice(hostile(argument, changed, kinds[argument]))
                    said += f" {argument} {what};"
                raised += call(op, changed, f"{name} {variant}:{said}")
                calls += 1
    print(f"{len(names)} ops, {calls} calls, {raised} refused")


if __name__ == "__main__":
    main(int(sys.argv[1]))
