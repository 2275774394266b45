"""Calls of the contrastive family as Hypothesis draws them, and the loops that say what each should give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from clead_kernels import FalseNegatives, clip_loss, info_nce, instance_margin, nt_xent, sigmoid_loss, sup_con
from tests.kernels import loops

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
DOORS = ("info_nce", "nt_xent", "sup_con", "sup_con, candidates", "clip_loss", "instance_margin", "sigmoid_loss")
PLAIN = {
    "denominator": "all",
    "positives_reduction": "mean",
    "spread": 0.0,
    "debias": 0.0,
    "hard_negative_beta": 0.0,
    "metric": "cosine",
}
DATA = ("normal", "close", "clustered", "lengths", "degenerate", "duplicates")


@dataclass
class Case:
    """One call, as drawn; the numbers of its tensors come from ``seed``."""

    door: str
    m: int
    n: int
    d: int
    views: int
    dtype: torch.dtype
    temperature: float
    learnable: bool
    normalize: bool
    data: str
    form: dict
    rule: dict | None
    weighted: bool
    constant: bool
    by_index: bool
    excluded: bool
    reduction: str
    upstream: float
    bias: float
    seed: int

    def weights(self) -> Tensor:
        """Of the rows, in float32."""
        return self.numbers(15, self.m).abs().float()

    def numbers(self, purpose: int, *shape: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * 64 + purpose)
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    def whole(self, purpose: int, low: int, high: int, size: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * 64 + purpose)
        return torch.randint(low, high, (size,), generator=generator)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    door = draw(st.sampled_from(DOORS))
    contrast, pairs = door in DOORS[:5], door in ("info_nce", "sigmoid_loss", "instance_margin")
    size = st.integers(1, 12) | st.sampled_from([1, 2, 7, 16, 17, 33, 65])
    m, d, views = draw(size), draw(st.integers(1, 9) | st.sampled_from([16, 31, 64, 129])), draw(st.integers(2, 4))
    by_index = door in ("info_nce", "instance_margin") and draw(st.booleans())
    m = m * views if door == "nt_xent" else m
    n = m if door in ("nt_xent", "sup_con", "clip_loss") else draw(size) + (m if pairs and not by_index else 0)
    normalize = draw(st.booleans()) if draw(st.booleans()) else True
    data = draw(st.sampled_from(DATA if normalize else ("normal", "close", "clustered", "duplicates")))
    form = dict(PLAIN)
    if contrast and draw(st.booleans()):
        form["denominator"] = draw(st.sampled_from(["all", "own_positive", "negatives"]))
        if door != "clip_loss":
            form["positives_reduction"] = draw(st.sampled_from(["mean", "sum", "inside"]))
            form["metric"] = draw(st.sampled_from(["cosine", "cosine", "euclidean"]))
            if form == PLAIN | {"metric": form["metric"]}:
                form["spread"] = draw(st.sampled_from([0.0, 0.5, 2.0]))
            if not form["spread"]:
                form["hard_negative_beta"] = draw(st.sampled_from([0.0, 0.0, 0.5, 1.0]))
                debias = st.sampled_from([0.0, 0.0, 0.05, 0.5])
                form["debias"] = draw(debias) if normalize and form["metric"] == "cosine" else 0.0
    low, high = (0.05, 2.0) if form["debias"] or form["hard_negative_beta"] else (0.005, 10.0)
    reductions = ["none", "mean", "sum"] + (["mean_valid"] if door.startswith("sup_con") else [])
    return Case(
        door, m, n, d, views,
        dtype=draw(st.sampled_from(FLOATS)),
        temperature=draw(st.sampled_from([low, 0.07, 0.5, 1.0, high]) | st.floats(low, high)),
        learnable=draw(st.booleans()),
        normalize=normalize,
        data=data,
        form=form,
        rule=draw(rules()) if contrast and draw(st.booleans()) else None,
        weighted=door != "instance_margin" and draw(st.booleans()),
        constant=contrast and draw(st.booleans()),
        by_index=by_index,
        excluded=door in ("info_nce", "sup_con, candidates") and draw(st.booleans()),
        reduction="none" if door == "instance_margin" else draw(st.sampled_from(reductions)),
        upstream=draw(st.sampled_from([1.0, -1.0, 1e-3, 1024.0])),
        bias=draw(st.sampled_from([-10.0, 0.0, 3.0])),
        seed=draw(st.integers(0, 2**32)),
    )  # fmt: skip


@st.composite
def rules(draw: st.DrawFn) -> dict:
    treatment = draw(st.sampled_from(["eliminate", "attract", "weight"]))
    chosen = draw(st.lists(st.sampled_from(["threshold", "topk", "labels"]), min_size=1, max_size=3, unique=True))
    weight = draw(st.sampled_from([0.0, 0.3, 1.0, 4.0])) if treatment == "weight" else 1.0
    rule = {"treatment": treatment, "weight": weight, "combine": draw(st.sampled_from(["or", "and"]))}
    if "threshold" in chosen:
        rule["threshold"] = draw(st.floats(-1, 1) | st.sampled_from(["scalar tensor", "rows"]))
    if "topk" in chosen:
        rule["topk"] = draw(st.integers(1, 8) | st.just(100))
    if "labels" in chosen:
        rule["labels"] = draw(st.sampled_from(["one", "per image", "pair"]))
        rule["granularities"], rule["levels"] = draw(st.integers(1, 3)), draw(st.sampled_from(["any", "each"]))
    return rule


def rows_of(case: Case) -> tuple[Tensor, Tensor]:
    """Anchors and candidates, in the dtype of the case."""
    a, b = case.numbers(0, case.m, case.d), case.numbers(1, case.n, case.d)
    both = min(case.m, case.n)
    if case.data == "close":
        b[:both] = a[:both] + 0.1 * b[:both]
    elif case.data == "clustered":
        centres = case.numbers(2, 3, case.d)
        a, b = (centres[torch.arange(len(x)) % 3] + 0.2 * x for x in (a, b))
    elif case.data == "lengths":
        a, b = (x * 10.0 ** (2 * case.numbers(3, len(x), 1)).clamp(-3, 3) for x in (a, b))
    elif case.data == "degenerate":
        a[::5], b[1::4] = 0.0, 0.0
        if case.dtype != torch.float16:
            a[1::5] *= 1e-14
            b[::7] *= 1e-9
    elif case.data == "duplicates":
        a[1::2], b[:both] = a[:1], a[:both]
    return a.to(case.dtype), b.to(case.dtype)


def rule_of(case: Case) -> FalseNegatives | None:
    if case.rule is None:
        return None
    rule = dict(case.rule)
    if rule.get("threshold") == "scalar tensor":
        rule["threshold"] = case.numbers(4, 1)[0].clamp(-1, 1)
    elif rule.get("threshold") == "rows":
        rule["threshold"] = case.numbers(4, case.m).clamp(-1, 1)
    if "labels" in rule:
        kind, levels = rule["labels"], rule.pop("granularities")
        single = kind != "pair" and case.m == case.n
        per_image = single and kind == "per image" and case.door == "nt_xent"
        length = case.m // case.views if per_image else case.m
        of_rows, of_columns = (
            torch.stack([case.whole(purpose + level, -1, 4, size) for level in range(levels)])
            for purpose, size in ((5, length), (8, case.n))
        )
        of_rows, of_columns = (of_rows[0], of_columns[0]) if levels == 1 else (of_rows, of_columns)
        rule["labels"] = of_rows if single else (of_rows, of_columns)
    return FalseNegatives(**rule)


def spelled_out(case: Case, rule: FalseNegatives | None) -> FalseNegatives | None:
    """``rule`` with labels per image repeated for all views."""
    if rule is None or not isinstance(rule.labels, Tensor) or rule.labels.shape[-1] == case.m:
        return rule
    return FalseNegatives(**(vars(rule) | {"labels": torch.cat([rule.labels] * case.views, -1)}))


@dataclass
class Call:
    """``ours(a, b, temperature, bias, impl)``, and ``truth(a, b, temperature, bias)``: loops, to be averaged."""

    ours: Callable[..., Tensor]
    truth: Callable[..., list[loops.Loop]]


def call_of(case: Case) -> Call:
    rule, form = rule_of(case), case.form
    spelled = spelled_out(case, rule)
    labels, others = case.whole(11, 0, max(2, case.m // 3), case.m), case.whole(12, 0, max(2, case.m // 3), case.n)
    index = case.whole(13, -1, case.n, case.m)
    self_index = case.whole(14, -1, case.n, case.m) if case.excluded else None
    itself = (lambda i, j: j == self_index[i]) if case.excluded else (lambda i, j: False)
    common = {"normalize": case.normalize}
    if case.weighted:
        common["weights"] = case.weights()
    if case.door != "instance_margin":
        common["reduction"] = case.reduction
    if case.door == "sigmoid_loss":
        return Call(
            lambda a, b, t, bias, impl: sigmoid_loss(a, b, temperature=t, bias=bias, impl=impl, **common),
            lambda a, b, t, bias: [loops.sigmoid(a, b, t, bias, case.normalize)],
        )
    if case.door == "instance_margin":
        wanted = index.tolist() if case.by_index else list(range(case.m))
        given = index if case.by_index else None
        return Call(
            lambda a, b, t, bias, impl: instance_margin(a, b, temperature=t, positives=given, impl=impl, **common),
            lambda a, b, t, bias: [loops.margin(a, b, t, wanted, case.normalize)],
        )
    options = common | {"false_negatives": rule, "grad_candidates": not case.constant}
    options |= {"denominator": form["denominator"]} if case.door == "clip_loss" else form
    constant = (lambda x: x.detach()) if case.constant else (lambda x: x)

    def loop(a, b, t, positive, itself, rule=spelled):
        return loops.contrast(a, constant(b), t, positive, itself, rule=rule, normalize=case.normalize, **form)

    if case.door == "info_nce":
        positive = (lambda i, j: j == index[i]) if case.by_index else (lambda i, j: j == i)
        options |= {"positives": index if case.by_index else None, "self_index": self_index}
        return Call(
            lambda a, b, t, bias, impl: info_nce(a, b, temperature=t, impl=impl, **options),
            lambda a, b, t, bias: [loop(a, b, t, positive, itself)],
        )
    if case.door == "nt_xent":
        images = case.m // case.views
        return Call(
            lambda a, b, t, bias, impl: nt_xent(a, temperature=t, num_views=case.views, impl=impl, **options),
            lambda a, b, t, bias: [loop(a, a, t, lambda i, j: i % images == j % images, lambda i, j: i == j)],
        )
    if case.door == "sup_con":
        return Call(
            lambda a, b, t, bias, impl: sup_con(a, labels, temperature=t, impl=impl, **options),
            lambda a, b, t, bias: [loop(a, a, t, lambda i, j: bool(labels[i] == labels[j]), lambda i, j: i == j)],
        )
    if case.door == "clip_loss":
        back = spelled
        if spelled is not None and isinstance(spelled.labels, tuple):
            back = FalseNegatives(**(vars(spelled) | {"labels": spelled.labels[::-1]}))
        same = (lambda i, j: i == j, lambda i, j: False)
        return Call(
            lambda a, b, t, bias, impl: clip_loss(a, b, temperature=t, impl=impl, **options),
            lambda a, b, t, bias: [loop(a, b, t, *same), loop(b, a, t, *same, rule=back)],
        )
    options |= {"candidates": None, "candidate_labels": others, "self_index": self_index}
    return Call(
        lambda a, b, t, bias, impl: sup_con(a, labels, temperature=t, impl=impl, **(options | {"candidates": b})),
        lambda a, b, t, bias: [loop(a, b, t, lambda i, j: bool(labels[i] == others[j]), itself)],
    )
