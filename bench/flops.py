"""Floating-point operations that an implementation executes, where they are known."""

from __future__ import annotations

from .cases import Case, Loss, Perturb, Similarity

# Products of M x N x d, in units of 2 M N d operations: forward, backward. Rows that meet each other compute half the
# pairs where a form uses the symmetry; two sets are recomputed once for both gradients (native) or for each (Triton).
_ALONE = {"native": (0.5, 1.5), "triton": (1.0, 2.0)}
_TWO_SETS = {"native": (1.0, 3.0), "triton": (1.0, 4.0)}
_HELD = (1.0, 2.0)
_HOLDING = ("eager", "eager_fp32", "eager_tf32", "careful", "compile", "compile_graph", "products", "reference")


def executed(case: Case, impl: str, mode: str) -> float | None:
    """Operations of the matrix products that ``impl`` runs, None where nobody counted."""
    if isinstance(case, Perturb):
        return 0.0
    if isinstance(case, Similarity):
        return case.flops(mode)
    forward, backward = _factors(case, impl) or (None, None)
    if forward is None or backward is None:
        return None
    both = {"forward": forward, "backward": backward, "full": forward + backward}
    return 2.0 * both[mode] * case.pairs * case.dim


def _factors(case: Loss, impl: str) -> tuple[float, float] | None:
    if impl in _HOLDING:
        return _HELD
    if case.op == "instance_margin":  # one candidate a row has a gradient
        return (1.0, 0.0) if impl in _TWO_SETS else None
    found = (_ALONE if case.alone else _TWO_SETS).get(impl)
    if found and case.op == "clip_loss" and impl != "native":  # which has both directions of a pair at once
        return 2 * found[0], 2 * found[1]
    return found
