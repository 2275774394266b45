"""The contrastive family on a CUDA device in Triton, against float64 on the same device from the rounded inputs."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from clead_kernels import FalseNegatives, clip_loss, info_nce, nt_xent, sup_con
from clead_kernels._shares import processors, share_out
from clead_kernels.contrastive import small

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.kernels,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning"),  # that it is a prototype
]
pytest.importorskip("triton")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ROWS, COLUMNS = 258, 301
SEEDS = range(5)


@pytest.fixture(autouse=True)
def path(request, monkeypatch):
    """The kernels for any number of rows, where a test does not ask for those for few; or all tiles "shared" out."""
    param = getattr(request, "param", "any")
    if param != "few":
        monkeypatch.setattr(small, "MAX_ROWS", 0)
    if param == "shared":
        request.getfixturevalue("shared_out")


def eager(a, b, positive, excluded, temperature, log_weight=0.0):
    a, b = F.normalize(a, dim=1), F.normalize(b, dim=1)
    logits = a @ b.T / temperature
    denominator = (logits + log_weight).masked_fill(excluded, -math.inf).logsumexp(1)
    count = positive.sum(1)
    return torch.where(count > 0, denominator - (logits * positive).sum(1) / count.clamp_min(1), 0.0)


def exact(a, b, positive, excluded, temperature, log_weight=0.0):
    """``eager`` from logits minus the mean positive one: at low temperatures its difference cancels even in float64."""
    a, b = F.normalize(a, dim=1), F.normalize(b, dim=1)
    logits = a @ b.T / temperature
    count = positive.sum(1)
    logits = logits - ((logits * positive).sum(1) / count.clamp_min(1))[:, None]
    over_negatives = (logits + log_weight).masked_fill(positive | excluded, -math.inf).logsumexp(1)
    # A single positive is its own mean, and its logit now a constant.
    over_positives = torch.where(count > 1, logits.masked_fill(~positive, -200.0).logsumexp(1), 0.0)
    loss = torch.logaddexp(over_negatives - over_positives, torch.zeros_like(over_negatives)) + over_positives
    return torch.where(count > 0, loss, 0.0)


def index(device="cuda"):
    return (torch.arange(ROWS, device=device) * 37 % COLUMNS).masked_fill(
        torch.arange(ROWS, device=device) % 11 == 0, -1
    )


def doors():
    """Door -> (call, positives, excluded pairs, whether both sets take part)."""
    rows, columns = torch.arange(ROWS, device="cuda"), torch.arange(COLUMNS, device="cuda")
    itself, none = rows[:, None] == rows, torch.zeros(ROWS, COLUMNS, dtype=torch.bool, device="cuda")
    labels, others = rows * 7 % 5, columns * 3 % 6

    def views(count):
        image = rows % (ROWS // count)
        return (image[:, None] == image) & ~itself

    return {
        "nt_xent": (lambda a, b, **k: nt_xent(a, **k), views(2), itself, False),
        "nt_xent, 3 views": (lambda a, b, **k: nt_xent(a, num_views=3, **k), views(3), itself, False),
        "sup_con": (lambda a, b, **k: sup_con(a, labels, **k), (labels[:, None] == labels) & ~itself, itself, False),
        "sup_con across sets": (
            lambda a, b, **k: sup_con(a, labels, candidates=b, candidate_labels=others, **k),
            labels[:, None] == others,
            none,
            True,
        ),
        "info_nce": (lambda a, b, **k: info_nce(a, b, **k), rows[:, None] == columns, none, True),
        "info_nce by index": (
            lambda a, b, **k: info_nce(a, b, positives=index(), **k),
            index()[:, None] == columns,
            none,
            True,
        ),
    }


def data(dtype, seed, width=128):
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(count, width, generator=generator) for count in (ROWS, COLUMNS))
    b[:ROWS] += a  # positives at a cosine of about 0.7
    return a.to("cuda", dtype), b.to("cuda", dtype)


def measure(rows_of, a, b, dtype):
    """Per-row losses and the gradients of their weighted sum w.r.t. the sets that take part, in float64."""
    a, b = a.detach().to(dtype).requires_grad_(), b.detach().to(dtype).requires_grad_()
    rows = rows_of(a, b)
    weights = (torch.arange(len(rows), device="cuda") % 5 + 1).to(rows.dtype) / 4
    grads = torch.autograd.grad(rows, (a, b), weights, allow_unused=True)
    return [rows.detach().double(), *(grad.double() for grad in grads if grad is not None)]


def errors(rows_of, truth_of, plain, a, b, dtype):
    """(ours, eager's) errors against float64, each a list of (Frobenius, largest element relative to the largest)."""

    def against(truth, got):
        assert all(x.isfinite().all() for x in got)
        return [
            (float((x - y).norm() / y.norm()), float((x - y).abs().max() / y.abs().max()))
            for x, y in zip(got, truth, strict=True)
        ]

    truth = measure(truth_of, a, b, torch.float64)
    return against(truth, measure(rows_of, a, b, dtype)), against(truth, measure(plain, a, b, dtype))


def assert_within_the_bar(samples, dtype):
    """The mean error over the seeds: 1.5 times eager's, or 8 units of round-off; no element beyond twice that."""
    ours, theirs = (torch.tensor([sample[i] for sample in samples]).mean(0) for i in (0, 1))
    for i, (ours_of, theirs_of) in enumerate(zip(ours, theirs, strict=True)):
        u = torch.finfo(torch.float32 if i == 0 else dtype).eps / 2
        assert ours_of[0] <= max(1.5 * theirs_of[0], 8 * u), (i, ours_of, theirs_of)
        assert ours_of[1] <= max(2 * theirs_of[1], 16 * u), (i, ours_of, theirs_of)


NAMES = ["nt_xent", "nt_xent, 3 views", "sup_con", "sup_con across sets", "info_nce", "info_nce by index"]


@pytest.mark.parametrize("path", ["any", "few"], indirect=True)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [0.005, 0.02, 0.1, 0.5, 10.0])
@pytest.mark.parametrize("door", NAMES)
def test_numbers(door, temperature, dtype):
    call, positive, excluded, both = doors()[door]
    samples = [
        errors(
            lambda a, b: call(a, b, temperature=temperature, reduction="none", impl="triton"),
            lambda a, b: exact(a, b if both else a, positive, excluded, temperature),
            lambda a, b: eager(a, b if both else a, positive, excluded, temperature),
            *data(dtype, seed),
            dtype,
        )
        for seed in SEEDS
    ]
    assert_within_the_bar(samples, dtype)


@pytest.mark.parametrize("path", ["shared"], indirect=True)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [0.005, 0.1])
@pytest.mark.parametrize("door", NAMES)
def test_numbers_of_shares(door, temperature, dtype):
    test_numbers(door, temperature, dtype)


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_few_rows_against_many(dtype, swapped):
    """A queue: the bar, and twice the same bits, although many programs work for the same rows."""
    counts = (50_000, 100) if swapped else (100, 50_000)
    assert share_out(100, 50_000, 32, 64, 4, processors(torch.device("cuda", torch.cuda.current_device())))[1] > 1
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(count, 64, generator=generator).to("cuda", dtype) for count in counts)
    positives = torch.arange(counts[0], device="cuda") * 7 % counts[1]
    positive = positives[:, None] == torch.arange(counts[1], device="cuda")

    def ours(a, b):
        return info_nce(a, b, positives=positives, temperature=0.1, reduction="none", impl="triton")

    def plain(form):
        return lambda a, b: form(a, b, positive, positive & False, 0.1)

    assert_within_the_bar([errors(ours, plain(exact), plain(eager), a, b, dtype)], dtype)
    first, second = measure(ours, a, b, dtype), measure(ours, a, b, dtype)
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    anchors = a.detach().clone().requires_grad_()
    (alone,) = torch.autograd.grad(ours(anchors, b), anchors, (torch.arange(len(a), device="cuda") % 5 + 1).float() / 4)
    assert torch.equal(alone.double(), first[1])  # constant candidates: the anchors' gradient as it is


@pytest.mark.parametrize(
    ("path", "dtype"), [*(("any", dtype) for dtype in DTYPES), ("few", torch.bfloat16)], indirect=["path"]
)
@pytest.mark.parametrize("treatment", ["eliminate", "weight", "attract"])
@pytest.mark.parametrize("rule", ["number", "per row", "clusters", "either", "both"])
@pytest.mark.parametrize("door", ["nt_xent", "info_nce by index"])
def test_false_negatives(door, rule, treatment, dtype):
    samples = []
    for seed in range(40):
        sample = one_sample(door, rule, treatment, dtype, seed)
        samples += [] if sample is None else [sample]
        if len(samples) == len(SEEDS):
            break
    assert len(samples) == len(SEEDS)
    assert_within_the_bar(samples, dtype)


def one_sample(door, rule, treatment, dtype, seed):
    """``errors`` with a rule on false negatives; None where rounding could decide on which side of it a cosine is."""
    call, positive, excluded, both = doors()[door]
    a, b = data(dtype, seed)
    other = b if both else a
    cosine = F.normalize(a.double()) @ F.normalize(other.double()).T
    clusters, others = (torch.arange(count, device="cuda") % 6 - 1 for count in (ROWS, len(other)))
    found, given = [], {"combine": "and" if rule == "both" else "or", "treatment": treatment}
    if treatment == "weight":
        given["weight"] = 0.3
    if rule != "clusters":
        cut = torch.linspace(-0.1, 0.2, ROWS, device="cuda") if rule in ("per row", "both") else torch.tensor(0.1)
        given["threshold"] = cut if cut.ndim else 0.1
        cut = cut.to("cuda", torch.float64).reshape(-1, 1)
        if (cosine - cut).abs().min() < 1e-6:
            return None
        found.append(cosine > cut)
    if rule in ("clusters", "either", "both"):
        given["labels"] = (clusters, others) if both else clusters
        found.append((clusters[:, None] == others) & (clusters >= 0)[:, None])
    false = (torch.stack(found).all(0) if rule == "both" else torch.stack(found).any(0)) & ~positive & ~excluded
    assert false.sum() > 50
    log_weight = false * (math.log(0.3) if treatment == "weight" else 0.0)
    more_positive = positive | false if treatment == "attract" else positive
    more_excluded = excluded | false if treatment == "eliminate" else excluded

    def plain(form):
        return lambda a, b: form(a, b if both else a, more_positive, more_excluded, 0.1, log_weight.to(a.dtype))

    def ours(a, b):
        return call(a, b, temperature=0.1, reduction="none", impl="triton", false_negatives=FalseNegatives(**given))

    return errors(ours, plain(exact), plain(eager), a, b, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 2, 7, 64, 127, 129, 300, 512])
def test_widths_and_both_directions(width, dtype):
    """Also the gradient of a temperature on the device."""
    a, b = data(dtype, 0, width)
    b = b[:ROWS].contiguous()
    diagonal = torch.eye(ROWS, dtype=torch.bool, device="cuda")

    def plain(a, b, t):
        return (eager(a, b, diagonal, diagonal & False, t) + eager(b, a, diagonal, diagonal & False, t)) / 2

    def run(call, dtype):
        t = torch.tensor(0.2, dtype=torch.float64, device="cuda", requires_grad=True)
        x, y = a.to(dtype).requires_grad_(), b.to(dtype).requires_grad_()
        loss = call(x, y, t)
        return [loss.detach().double(), *(g.double() for g in torch.autograd.grad(loss.sum(), (x, y, t)))]

    truth = run(plain, torch.float64)
    got = run(lambda a, b, t: clip_loss(a, b, temperature=t, reduction="none", impl="triton"), dtype)
    bars = [1e-6, *2 * [8 * torch.finfo(dtype).eps / 2 + 1e-6], 2e-5]
    for i, (x, y, bar) in enumerate(zip(got, truth, bars, strict=True)):
        assert float((x - y).norm()) <= bar * (1000 if width == 1 and i in (1, 2) else max(float(y.norm()), 1e-3)), i


@pytest.mark.parametrize("rows", [2, 127, 2049, 9001])
def test_ragged_rows(rows):
    a = torch.randn(rows, 33, generator=torch.Generator().manual_seed(rows)).cuda()
    itself = torch.eye(rows, dtype=torch.bool, device="cuda")
    labels = torch.arange(rows, device="cuda") % 100
    positive = (labels[:, None] == labels) & ~itself

    def run(call, x):
        x = x.detach().requires_grad_()
        loss = call(x)
        return loss.detach().double(), torch.autograd.grad(loss.sum(), x)[0].double()

    truth = run(lambda x: eager(x, x, positive, itself, 0.1), a.double())
    got = run(lambda x: sup_con(x, labels, temperature=0.1, reduction="none", impl="triton"), a)
    for x, y in zip(got, truth, strict=True):
        assert float((x - y).norm()) <= 2e-6 * max(float(y.norm()), 1e-3)


def gradient(x, temperature=0.1):
    return torch.autograd.grad(nt_xent(x, temperature=temperature, impl="triton"), x)[0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_bitwise_equal_twice(dtype):
    x = data(dtype, 0)[0].requires_grad_()
    assert torch.equal(gradient(x), gradient(x))


def test_nothing_waits_for_the_device():
    x, b = (y.requires_grad_() for y in data(torch.bfloat16, 0))
    temperature = torch.tensor(0.1, device="cuda", requires_grad=True)
    rule = FalseNegatives(threshold=torch.tensor(0.3, device="cuda"))

    def once():
        loss = info_nce(x, b, temperature=temperature, false_negatives=rule, impl="triton")
        loss = loss + nt_xent(x, temperature=temperature, impl="triton")
        torch.autograd.grad(loss, (x, b, temperature))

    once()  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        once()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("learnable", [False, True])
def test_a_cuda_graph_of_forward_and_backward(learnable):
    x = data(torch.bfloat16, 0)[0].requires_grad_()
    temperature = torch.tensor(0.1, device="cuda") if learnable else 0.1
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        gradient(x, temperature)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = gradient(x, temperature)
    with torch.no_grad():
        x.copy_(data(torch.bfloat16, 1)[0])
    graph.replay()
    assert torch.equal(captured, gradient(x, temperature))


def test_autocast_does_not_touch_it():
    a = data(torch.float32, 0)[0]
    plain = nt_xent(a, impl="triton")
    with torch.autocast("cuda", torch.bfloat16):
        assert torch.equal(nt_xent(a, impl="triton"), plain)


def test_non_contiguous_inputs():
    a = data(torch.float32, 0)[0]
    wide = torch.stack([a, torch.zeros_like(a)], 2).flatten(1)
    for view in (wide[:, ::2], a.T.contiguous().T):
        assert not view.is_contiguous()
        assert torch.equal(nt_xent(view, impl="triton"), nt_xent(a, impl="triton"))


def test_zero_rows():
    a = data(torch.float16, 0)[0]
    a[3] = 0
    a.requires_grad_()
    found = gradient(a)
    assert (found[3] == 0).all() and found.isfinite().all()


def test_more_than_2_to_the_31_pairs():
    rows = 46_402
    x = torch.randn(rows, 8, generator=torch.Generator().manual_seed(0)).cuda().requires_grad_()
    loss = nt_xent(x, temperature=0.2, reduction="none", impl="triton")
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    some = torch.randperm(rows, generator=torch.Generator().manual_seed(1))[:64].cuda()
    partner = (some + rows // 2) % rows
    z = F.normalize(x.detach().double())
    logits = z[some] @ z.T / 0.2
    logits[torch.arange(64, device="cuda"), some] = -math.inf
    truth = logits.logsumexp(1) - (z[some] * z[partner]).sum(1) / 0.2
    assert float((loss.detach()[some].double() - truth).norm() / truth.norm()) < 1e-6
    # d loss / d z of row i: its own softmax, and its place in the softmax of every other row.
    share = torch.empty_like(logits)
    for start in range(0, rows, 4096):
        block = torch.arange(start, min(start + 4096, rows), device="cuda")
        all_logits = z[block] @ z.T / 0.2
        all_logits[torch.arange(len(block), device="cuda"), block] = -math.inf
        share[:, block] = (all_logits[:, some] - all_logits.logsumexp(1, keepdim=True)).exp().T
    grad_unit = ((logits.softmax(1) + share) @ z - 2 * z[partner]) / 0.2
    row = x.detach()[some].double()
    radial = (grad_unit * z[some]).sum(1, keepdim=True)
    expected = (grad_unit - z[some] * radial) / row.norm(dim=1, keepdim=True)
    assert float((gradient[some].double() - expected).norm() / expected.norm()) < 1e-5
