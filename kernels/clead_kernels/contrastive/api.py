"""The front doors of the contrastive family. Each says which pairs are positive; the losses are one formula.

With s_ij the similarity over the temperature, P_i the positives of row i, Q_i its negatives and D_ip the denominator of
a positive, ``loss_i = -mean_{p in P_i} log(exp(s_ip) / D_ip)``; a row without a positive contributes 0 and is counted
in the mean. Common arguments:

- ``temperature``: float in [1e-8, 1e18], or a 0-d tensor, which may require grad.
- ``false_negatives``: a ``FalseNegatives`` rule, or None.
- ``positives_reduction``: ``"mean"`` of the logarithms (L_out), their ``"sum"``, or ``"inside"``: the logarithm of the
  mean (L_in; Khosla et al., arXiv 2004.11362, eq. 3).
- ``denominator``: ``"all"`` pairs, ``"own_positive"`` (exp(s_ip) and the negatives) or the ``"negatives"`` alone
  (decoupled: Yeh et al., arXiv 2110.06848, eq. 6; a row without negatives contributes 0).
- ``spread``: weight, at least 0, of the term ``-sum_{j in Q_i} log(1 - p_ij)``, p_ij = exp(s_ij) / D_i (Ye et al.,
  arXiv 1904.03436, eq. 5); a term of the loss without the options above and below.
- ``debias``: probability in [0, 1) that a negative is a positive (Chuang et al., arXiv 2007.00224, eq. 8; several
  positives are averaged in the correction); needs normalised rows and cosines.
- ``hard_negative_beta``: at least 0; negatives count by exp(beta s_ij) (Robinson et al., arXiv 2010.04592, eq. 4).
- ``metric``: ``"cosine"``, which is the inner product with ``normalize=False``, or ``"euclidean"``: minus the squared
  distance.
- ``normalize``: divide rows by their norms first (a row with a norm below 1e-12 gets no gradient).
- ``weights``: floating-point [M], constants that multiply the rows' losses; ``"mean"`` still divides by M.
- ``grad_candidates``: False makes the candidates constants (stop-gradient keys, queues); where the embeddings meet each
  other, the gradient flows through the anchors only.
- ``reduction``: ``"mean"`` over all rows (0 for an empty batch), ``"sum"`` or ``"none"`` (one value per row).
- ``impl``: which implementation, see ``explain``.

Embeddings are float64, float32, bfloat16 or float16; the loss is float64 for float64 and float32 otherwise, gradients
have the embeddings' dtype. Wrong shapes, devices and values raise ValueError, wrong types and dtypes TypeError, and a
named ``impl`` that cannot do it NotImplementedError.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from .. import _arguments as arguments
from .. import dispatch
from . import call
from .call import Reduction
from .false_negatives import FalseNegatives
from .form import Denominator, Form, Metric, PositivesReduction
from .pairs import Pairs


def info_nce(
    anchors: Tensor,
    candidates: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    positives: Tensor | None = None,
    self_index: Tensor | None = None,
    false_negatives: FalseNegatives | None = None,
    positives_reduction: PositivesReduction = "mean",
    denominator: Denominator = "all",
    spread: float = 0.0,
    debias: float = 0.0,
    hard_negative_beta: float = 0.0,
    metric: Metric = "cosine",
    normalize: bool = True,
    weights: Tensor | None = None,
    grad_candidates: bool = True,
    reduction: Reduction = "mean",
    impl: dispatch.Impl = "auto",
) -> Tensor:
    """InfoNCE: every anchor picks its positive among the candidates (van den Oord et al., arXiv 1807.03748, eq. 4).

    ``loss_i = -log(exp(s_ip) / sum_j exp(s_ij))``, ``s_ij = <anchor_i, candidate_j> / temperature``.

    Args:
        anchors: [M, d].
        candidates: [N, d], same dtype and device; rows beyond M are extra negatives, e.g. a queue.
        temperature: see the module.
        positives: int64 [M], the candidate that is positive for each anchor, -1 = none (such a row contributes 0 and
            is counted in the mean); None = candidate i for anchor i, which needs N >= M.
        self_index: int64 [M], the candidate that is the anchor itself and is left out, -1 = none.
        false_negatives: see the module; ``labels`` for anchors and candidates separately unless M = N.
        positives_reduction: see the module.
        denominator: see the module.
        spread: see the module.
        debias: see the module.
        hard_negative_beta: see the module.
        metric: see the module.
        normalize: see the module.
        weights: see the module.
        grad_candidates: see the module.
        reduction: see the module.
        impl: see the module.

    Returns:
        0-d loss, or [M] for ``reduction="none"``.

    Example:
        >>> loss = info_nce(encoder(x_clean), encoder(x_adv), temperature=0.1)
    """
    arguments.check_rows("anchors", anchors)
    arguments.check_rows("candidates", candidates)
    arguments.check_alike("anchors", anchors, "candidates", candidates)
    rows, columns = anchors.shape[0], candidates.shape[0]
    if positives is None:
        if columns < rows:
            raise ValueError(f"candidates must have at least as many rows as anchors ({rows}), got {columns}")
        pairs = Pairs(positive_offset=0)
    else:
        pairs = Pairs(positive_index=call.check_index("positives", positives, rows, columns, anchors.device))
    if self_index is not None:
        pairs = pairs._replace(self_index=call.check_index("self_index", self_index, rows, columns, anchors.device))
    pairs = pairs.with_false_negatives(false_negatives, (rows, columns), anchors.device)
    form = Form(denominator, positives_reduction, spread, debias, hard_negative_beta, metric).checked(normalize)
    options = call.Options(temperature, normalize, weights, grad_candidates, reduction, impl)
    return call.loss("info_nce", anchors, candidates, pairs, form, options)


def nt_xent(
    embeddings: Tensor,
    *,
    temperature: float | Tensor = 0.5,
    num_views: int = 2,
    false_negatives: FalseNegatives | None = None,
    positives_reduction: PositivesReduction = "mean",
    denominator: Denominator = "all",
    spread: float = 0.0,
    debias: float = 0.0,
    hard_negative_beta: float = 0.0,
    metric: Metric = "cosine",
    normalize: bool = True,
    weights: Tensor | None = None,
    grad_candidates: bool = True,
    reduction: Reduction = "mean",
    impl: dispatch.Impl = "auto",
) -> Tensor:
    """NT-Xent of SimCLR (Chen et al., arXiv 2002.05709, eq. 1), for two to four views of each image.

    ``loss_i = log sum_{j != i} exp(s_ij) - mean_{p in P_i} s_ip``, P_i = the other views of the same image.

    Args:
        embeddings: [num_views * images, d], view-major: row ``v * images + n`` is view v of image n.
        temperature: see the module.
        num_views: 2, 3 or 4.
        false_negatives: see the module; ``labels`` one per row or one per image.
        positives_reduction: see the module.
        denominator: see the module.
        spread: see the module.
        debias: see the module.
        hard_negative_beta: see the module.
        metric: see the module.
        normalize: see the module.
        weights: see the module.
        grad_candidates: see the module.
        reduction: see the module.
        impl: see the module.

    Returns:
        0-d loss, or one value per row for ``reduction="none"``.

    Example:
        >>> loss = nt_xent(torch.cat([projector(view_1), projector(view_2)]), temperature=0.5)
    """
    arguments.check_rows("embeddings", embeddings)
    pairs = Pairs.of_views(embeddings, num_views)
    shape = (embeddings.shape[0], embeddings.shape[0])
    pairs = pairs.with_false_negatives(false_negatives, shape, embeddings.device, views=num_views)
    form = Form(denominator, positives_reduction, spread, debias, hard_negative_beta, metric).checked(normalize)
    options = call.Options(temperature, normalize, weights, grad_candidates, reduction, impl)
    return call.loss("nt_xent", embeddings, None, pairs, form, options)


def sup_con(
    embeddings: Tensor,
    labels: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    candidates: Tensor | None = None,
    candidate_labels: Tensor | None = None,
    self_index: Tensor | None = None,
    false_negatives: FalseNegatives | None = None,
    positives_reduction: PositivesReduction = "mean",
    denominator: Denominator = "all",
    spread: float = 0.0,
    debias: float = 0.0,
    hard_negative_beta: float = 0.0,
    metric: Metric = "cosine",
    normalize: bool = True,
    weights: Tensor | None = None,
    grad_candidates: bool = True,
    reduction: Reduction | Literal["mean_valid"] = "mean",
    impl: dispatch.Impl = "auto",
) -> Tensor:
    """Supervised contrastive loss, L_out (Khosla et al., arXiv 2004.11362, eq. 2): rows of one class are positives.

    ``loss_i = log sum_j exp(s_ij) - mean_{p in P_i} s_ip``, P_i = rows with the label of row i. Without ``candidates``
    the embeddings meet each other and j = i is left out; with them nothing is left out.

    Args:
        embeddings: [M, d].
        labels: integers [M].
        temperature: see the module.
        candidates: [N, d], another set to contrast with, e.g. adversarial views; None = the embeddings themselves.
        candidate_labels: integers [N], required with ``candidates``.
        self_index: int64 [M], the candidate that is the row itself and is left out, -1 = none; only with
            ``candidates``. ASCL's loss (Li et al., 2023, eq. 9) has clean rows among clean and adversarial candidates.
        false_negatives: see the module; only pairs of different labels can be false negatives.
        positives_reduction: see the module.
        denominator: see the module.
        spread: see the module.
        debias: see the module.
        hard_negative_beta: see the module.
        metric: see the module.
        normalize: see the module.
        weights: see the module.
        grad_candidates: see the module.
        reduction: see the module. A row without a positive contributes 0 and is counted in ``"mean"``;
            ``"mean_valid"`` is the mean over rows with a positive (0 if there is none).
        impl: see the module.

    Returns:
        0-d loss, or [M] for ``reduction="none"``.

    Example:
        >>> loss = sup_con(embeddings, labels, temperature=0.1)
    """
    arguments.check_rows("embeddings", embeddings)
    rows, device = embeddings.shape[0], embeddings.device
    groups = arguments.check_integers("labels", labels, [rows], device)
    if candidates is None:
        if candidate_labels is not None:
            raise ValueError("candidate_labels are for candidates, but candidates is None")
        if self_index is not None:
            raise ValueError("self_index is for candidates, but candidates is None")
        columns, pairs = rows, Pairs(self_offset=0, groups=groups)
    else:
        arguments.check_rows("candidates", candidates)
        arguments.check_alike("embeddings", embeddings, "candidates", candidates)
        if candidate_labels is None:
            raise ValueError("candidates need candidate_labels, got None")
        columns = candidates.shape[0]
        candidate_groups = arguments.check_integers("candidate_labels", candidate_labels, [columns], device)
        pairs = Pairs(groups=groups, candidate_groups=candidate_groups)
        if self_index is not None:
            pairs = pairs._replace(self_index=call.check_index("self_index", self_index, rows, columns, device))
    pairs = pairs.with_false_negatives(false_negatives, (rows, columns), device)
    form = Form(denominator, positives_reduction, spread, debias, hard_negative_beta, metric).checked(normalize)
    options = call.Options(temperature, normalize, weights, grad_candidates, reduction, impl)
    return call.loss("sup_con", embeddings, candidates, pairs, form, options)
