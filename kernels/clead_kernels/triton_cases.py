"""Which Triton kernels are compiled without a GPU, with which constants and tile shapes: everything shipped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ._triton_rows import Config
from .augment import triton as augmentation
from .augment.steps import NAMES
from .augment.triton_kernels import augment_kernel, mean_kernel
from .contrastive.triton_backward import backward_kernel
from .contrastive.triton_configs import FORMS, HARDEST, SEARCH, SEARCH_MANY, SECOND, TABLE, config
from .contrastive.triton_division import CLOSE, GATHER, MERGE
from .contrastive.triton_forward import close_kernel, forward_kernel
from .contrastive.triton_gradient import gather_kernel
from .contrastive.triton_own import own_close_kernel, own_kernel
from .contrastive.triton_search_kernels import cut_kernel, cut_merge_kernel, hardest_kernel
from .contrastive.triton_small_backward import small_backward_kernel
from .contrastive.triton_small_configs import TABLE as SMALL_TABLE
from .contrastive.triton_small_forward import small_forward_kernel
from .contrastive.triton_spread import spread_close_kernel, spread_kernel
from .similarity import triton_configs as similarity_configs
from .similarity.triton_kernels import similarity_backward_kernel, similarity_kernel, topk_kernel, topk_merge_kernel

KERNELS = {
    "forward": forward_kernel,
    "backward": backward_kernel,
    "small_forward": small_forward_kernel,
    "small_backward": small_backward_kernel,
    "own": own_kernel,
    "spread": spread_kernel,
    "close": close_kernel,
    "own_close": own_close_kernel,
    "spread_close": spread_close_kernel,
    "gather": gather_kernel,
    "cut": cut_kernel,
    "cut_merge": cut_merge_kernel,
    "hardest": hardest_kernel,
    "similarity": similarity_kernel,
    "similarity_backward": similarity_backward_kernel,
    "topk": topk_kernel,
    "topk_merge": topk_merge_kernel,
    "augment": augment_kernel,
    "augment_mean": mean_kernel,
}
TYPES = {"bfloat16": "*bf16", "float16": "*fp16", "float32": "*fp32"}
_RULES = {"THRESHOLD": 2, "ALL_RULES": False, "TREATMENT": "weight", "BOUNDED": False, "ON_DEVICE": True}
_RULES |= {"clusters": True}
_PLAIN_DOTS = {"NORMALIZE": False, "UNIT": False, "BOUNDED": False, "THRESHOLD": 1, "TREATMENT": "eliminate"}
_SELF = {"SELF": True, "OFFSET": False, "MULTIPLE": True, "groups": True}
_DIAGONAL = {"SELF": False, "OFFSET": True, "MULTIPLE": False}
_DEAREST = {**_SELF, **_RULES, "LEVELS": 2, "SLOPE": True}
_INDEX = {"SELF": False, "OFFSET": False, "MULTIPLE": False, "index": True}
_ONCE = {"SETS": "one", "REDUCTION": "mean", "SUM_POSITIVES": False}
_VIEWS = {**_ONCE, "SELF": True, "POSITIVES": "place", "MULTIPLE": False}
_LABELS = {**_ONCE, "SELF": True, "POSITIVES": "groups", "MULTIPLE": True, "groups": True}
_PLACES = {**_ONCE, "SELF": False, "POSITIVES": "place", "MULTIPLE": False, "SETS": "two"}
_COLORED = ("resized_crop", "flip", "jitter", "grayscale")
_ORDERS = {"colours last": _COLORED, "colours first": (*_COLORED[2:], "flip", "resized_crop"), "affine": ("affine",)}
# (kernel, whether rules or an offset per row are compiled in, what it computes) -> flags: the plain forms, and with
# everything the dearest ones.
VARIANTS: dict[tuple[str, str, str], dict[str, Any]] = {
    ("forward", "plain", "self"): {**_SELF, "SLOPE": False},
    ("forward", "plain", "diagonal"): {**_DIAGONAL, "SLOPE": False},
    ("forward", "rules", "self"): {**_SELF, **_RULES, "SLOPE": True},
    ("forward", "rules", "self, clusters"): {**_SELF, "SLOPE": False, "TREATMENT": "eliminate", "clusters": True},
    ("forward", "rules", "self, not normalised"): {**_SELF, **_PLAIN_DOTS, "SLOPE": True},
    ("backward", "plain", "self"): {**_SELF, "SIDES": "both"},
    ("backward", "plain", "anchors, diagonal"): {**_DIAGONAL, "SIDES": "own"},
    ("backward", "plain", "candidates, diagonal"): {**_DIAGONAL, "SIDES": "other"},
    ("backward", "rules", "self"): {**_SELF, **_RULES, "SIDES": "both"},
    ("backward", "rules", "self, attract"): {**_SELF, **_RULES, "SIDES": "both", "TREATMENT": "attract"},
    ("backward", "rules", "candidates, index"): {**_INDEX, **_RULES, "SIDES": "other"},
    ("small_forward", "plain", "two views"): {**_VIEWS, "SLOPE": False},
    ("small_forward", "rules", "labels"): {**_LABELS, **_RULES, "SLOPE": True, "row_weights": True},
    ("small_backward", "plain", "two views"): _VIEWS,
    ("small_backward", "plain", "both sets"): {**_PLACES, "grad_candidates": True},
    ("small_backward", "rules", "labels"): {**_LABELS, **_RULES, "TREATMENT": "attract", "grad_temperature": True},
    ("small_backward", "rules", "both sets"): {**_PLACES, **_RULES, "grad_candidates": True, "REDUCTION": "none"},
    ("forward", "forms", "self, inside"): {**_DEAREST, "FORM": "inside"},
    ("backward", "forms", "self, own inside"): {**_DEAREST, "SIDES": "both", "FORM": "own inside"},
    ("backward", "forms", "self, spread"): {**_DEAREST, "SIDES": "both", "FORM": "spread"},
    ("own", "rules", "inside"): {**_DEAREST, "FORM": "own inside"},
    ("spread", "rules", "self"): {**_DEAREST, "FORM": "spread"},
    ("close", "plain", "self"): {**_SELF, "SLOPE": False},
    ("close", "rules", "inside"): {**_DEAREST, "FORM": "inside"},
    ("own_close", "rules", "inside"): {**_DEAREST, "FORM": "own inside"},
    ("spread_close", "rules", "self"): _DEAREST,
    ("gather", "plain", "normalised"): {},
    **{
        (kernel, "rules", f"up to k = {k - 1}"): {**_SELF, "THRESHOLD": 2, "K": k}
        for kernel in ("cut", "cut_merge")
        for k, _ in SEARCH
    },
    ("hardest", "plain", "index"): {"index": True},
    ("similarity", "plain", "temperature on the device"): {"ON_DEVICE": True},
    ("similarity_backward", "plain", "of a"): {"ON_DEVICE": True, "grad_other_stride": 1},
    ("similarity_backward", "plain", "of b"): {"ON_DEVICE": True, "grad_own_stride": 1},
    **{
        (kernel, "plain", f"up to k = {k}"): {"K": k}
        for kernel in ("topk", "topk_merge")
        for k, dtype in similarity_configs.TOPK
        if dtype == "float32"
    },
    **{
        (kernel, "plain", variant): {**augmentation.constants([NAMES.index(name) for name in names]), **flags}
        for kernel, flags in (("augment", {"CLIP": True}), ("augment_mean", {}))
        for variant, names in _ORDERS.items()
    },
}


def cases() -> Iterator[tuple[str, str, str, int, str, Config]]:
    """(kernel, masks, variant, padded width, dtype, shape) of everything shipped, of other forms at some widths."""
    small = {("small_" + key[0], *key[1:]): shapes for key, shapes in SMALL_TABLE.items()}
    for (kernel, masks, width, dtype), shapes in (TABLE | small).items():
        for shape in dict.fromkeys(shapes):
            for of_kernel, of_masks, variant in VARIANTS:
                if (of_kernel, of_masks) == (kernel, masks):
                    yield kernel, masks, variant, width, dtype, shape
    for kernel, masks, variant in VARIANTS:
        if masks == "forms":
            common = [(kernel, 128, dtype) for dtype in TYPES]
            for _, width, dtype in dict.fromkeys([*common, *(key for key in FORMS if key[0] == kernel)]):
                kind, cpu = getattr(torch, dtype), torch.device("cpu")
                for shape in dict.fromkeys(config(kernel, masks, width, kind, n, n, cpu) for n in (1, 2**20)):
                    yield kernel, masks, variant, width, dtype, shape
    for (width, dtype), shape in SECOND.items():
        yield "spread", "rules", "self", width, dtype, shape
        if width == 128:
            yield "own", "rules", "inside", width, dtype, shape
        yield "gather", "plain", "normalised", width, dtype, GATHER[width]
    for kernel, masks, variant in VARIANTS:
        if kernel.endswith("close"):
            yield kernel, masks, variant, 128, "float32", CLOSE
    for (k, dtype), shape in SEARCH.items():
        for one in filter(None, (shape, SEARCH_MANY.get((k, dtype)))):
            yield "cut", "rules", f"up to k = {k - 1}", 128, dtype, one
        if dtype == "float32":
            yield "cut_merge", "rules", f"up to k = {k - 1}", 128, dtype, MERGE
    for dtype, shape in HARDEST.items():
        yield "hardest", "plain", "index", 128, dtype, shape
    for dtype, shape in similarity_configs.FORWARD.items():
        yield "similarity", "plain", "temperature on the device", 128, dtype, shape
    for (width, dtype), shape in similarity_configs.BACKWARD.items():
        yield "similarity_backward", "plain", "of a", width, dtype, shape
        yield "similarity_backward", "plain", "of b", width, dtype, shape
    for (k, dtype), shape in similarity_configs.TOPK.items():
        for one in filter(None, (shape, similarity_configs.TOPK_MANY.get((k, dtype)))):
            yield "topk", "plain", f"up to k = {k}", 128, dtype, one
        if dtype == "float32":
            yield "topk_merge", "plain", f"up to k = {k}", 128, dtype, similarity_configs.MERGE
    for variant, names in _ORDERS.items():
        for kernel in ("augment", "augment_mean") if "jitter" in names else ("augment",):
            yield kernel, "plain", variant, 3 if "jitter" in names else 1, "float32", augmentation.SHAPE
