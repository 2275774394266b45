"""The grids: which cases a run has, at most 60 a part, and with ``--full`` everything asked of the kernels."""

from __future__ import annotations

from itertools import product

from .cases import RULES, Case, Loss, Perturb, Similarity

PARTS = ("loss", "perturb", "similarity")
HALVES = ("bf16", "fp16")
IMAGES = ((512, 3, 32, 32), (256, 3, 64, 64), (64, 3, 224, 224))
"""CIFAR, Tiny-ImageNet and ImageNet: 6, 13 and 39 MB in float32."""


def grid(quick: bool, cuda: bool, full: bool = False) -> list[Case]:
    """The cases; a run that is cut short has the first of them: the cheap ones, in ``--quick`` the telling ones.

    The parts take turns, each by size, so that a short run has something of all of them.
    """
    if quick:
        return _quick()
    written = [*_losses(cuda), *_perturbations(cuda), *_similarities(cuda)]
    cases = list(dict.fromkeys([*written, *_full()] if full else written))
    cases = sorted(cases, key=lambda case: (case.flops("full"), case.bytes("full")))
    parts = [[case for case in cases if case.part == part] for part in PARTS]
    turns = [(rank / len(part), case) for part in parts for rank, case in enumerate(part)]
    return [case for _, case in sorted(turns, key=lambda turn: turn[0])]


def _quick() -> list[Case]:
    return [
        Loss("nt_xent", 1024),
        Perturb("pgd_step_", (512, 3, 32, 32)),
        Perturb("pgd_step_", (512, 3, 32, 32), "l2"),
        Loss("nt_xent", 1024, dtype="bf16"),
        Similarity("similarity_topk", 256, 8192, k=10),
        Loss("sup_con", 1000, classes=10, temperature=0.1),
        Loss("info_nce", 256, columns=2048, temperature=0.1),
        Loss("nt_xent", 512, temperature=0.1, classes=10, rule="threshold"),
        Similarity("similarity", 512, 512),
        Loss("clip_loss", 512, temperature=0.07),
        Loss("sigmoid_loss", 512, temperature=0.1),
        Loss("instance_margin", 512),
        Perturb("project_", (128, 3, 32, 32), "l2"),
        Perturb("pgd_step_", (128, 3, 32, 32), "l1"),
        Perturb("random_start_", (128, 3, 32, 32)),
    ]


def _losses(cuda: bool) -> list[Case]:
    sizes = (512, 1000, 1024, 4096, 8192, 16384, *((65536, 262144, 1048576) if cuda else ()))
    cases: list[Case] = [Loss("nt_xent", n, dtype="bf16") for n in sizes]
    # float32 without tensor cores is another machine: a million rows would take it minutes.
    cases += [Loss("nt_xent", n) for n in sizes if n <= 65536]
    cases += [Loss("nt_xent", n, dtype="fp16") for n in (1024, 16384)] if cuda else []
    cases += [Loss("nt_xent", 4096, dim=dim, dtype=dtype) for dim in (64, 512) for dtype in ("fp32", "bf16")]
    cases += [Loss("nt_xent", 16384, dim=dim, dtype="bf16") for dim in (256, 512, 1024)] if cuda else []
    cases += [Loss("nt_xent", 4096, temperature=t, dtype="bf16") for t in (0.07, 0.1)]
    for n in (4096, 16384) if cuda else (4096,):
        cases += [masked(n), *(masked(n, rule) for rule in RULES)]
    # The sizes of the goals; of one million rows, as of NT-Xent's, the memory.
    cases += [Loss("sup_con", n, temperature=0.1, dtype="bf16", classes=100) for n in (1024, 16384, 1048576) if cuda]
    cases += [Loss("sup_con", n, temperature=0.1, classes=100) for n in (1024, 8192, 16384) if not cuda]
    large = 65536 if cuda else 8192
    for dtype in ("fp32", "bf16"):
        cases += [Loss("nt_xent", n, temperature=0.1, dtype=dtype, classes=100, rule="threshold") for n in (1024, 4096)]
        cases += [Loss("sup_con", 4096, temperature=0.1, dtype=dtype, classes=classes) for classes in (10, 100, 1000)]
        cases += [
            Loss("info_nce", 4096, temperature=0.1, dtype=dtype),
            Loss("info_nce", 512, columns=65536, temperature=0.1, dtype=dtype),
            Loss("clip_loss", 4096, temperature=0.07, dtype=dtype),
            Loss("sigmoid_loss", 4096, temperature=0.1, dtype=dtype),
        ]
    cases += [
        Loss("nt_xent", large, temperature=0.1, dtype="bf16", classes=100, rule="threshold"),
        Loss("sup_con", large, temperature=0.1, dtype="bf16", classes=100),
        Loss("clip_loss", 16384, temperature=0.07, dtype="bf16"),
        Loss("instance_margin", 4096),  # in bfloat16 eager takes another one for the most similar candidate
    ]
    # Added memory without the 4 GB matrix; on a CPU eager needs minutes and more memory than most have.
    return cases if cuda else [*cases, Loss("nt_xent", 32768)]


def masked(rows: int, rule: str = "") -> Loss:
    """NT-Xent in bfloat16 with a rule; of the top-k rule 14 negatives a row."""
    classes = 0 if not rule else rows // 16 if rule == "topk" else 100
    return Loss("nt_xent", rows, temperature=0.1, dtype="bf16", classes=classes, rule=rule)


def _perturbations(cuda: bool) -> list[Case]:
    shapes = IMAGES if cuda else (*IMAGES[:2], (16, *IMAGES[2][1:]))
    cases: list[Case] = []
    for norm in ("linf", "l2", "l1"):
        cases += [Perturb("pgd_step_", shape, norm, dtype) for shape in shapes for dtype in ("fp32", "bf16")]
        cases += [Perturb("project_", shapes[0], norm, dtype) for dtype in ("fp32", "bf16")]
    cases += [Perturb("random_start_", shapes[0], norm, dtype) for norm in ("linf", "l2") for dtype in ("fp32", "bf16")]
    # From 64 MB up nothing but the copy bandwidth counts.
    cases += [Perturb("pgd_step_", (4096, 3, 64, 64), norm) for norm in ("linf", "l2", "l1")] if cuda else []
    return cases


def _similarities(cuda: bool) -> list[Case]:
    cases: list[Case] = []
    for dtype in ("fp32", "bf16"):
        cases += [
            Similarity("similarity", 4096, 4096, dtype=dtype),
            Similarity("similarity_topk", 1000, 50000, dtype=dtype, k=10),
        ]
    # kNN on CIFAR and on ImageNet; on a CPU the second takes minutes, and --full has it.
    cases += [Similarity("similarity_topk", 10000, 50000, dtype="bf16", k=k) for k in (20, 200)]
    cases += [Similarity("similarity_topk", 50000, 1281167, dim=512, dtype="bf16", k=20)] if cuda else []
    return cases


def _full() -> list[Case]:
    """All of it, for a machine and a night; what does not fit says so."""
    sizes = (512, 1000, 1024, 1536, 2048, 4096, 8192, 16384, 32768, 65536, 131072, 262144, 524288, 1048576)
    widths, kinds = (64, 100, 128, 256, 512, 768, 1024), ("fp32", *HALVES)
    cases: list[Case] = [Loss("nt_xent", n, dtype=dtype) for n, dtype in product(sizes, kinds)]
    cases += [Loss("nt_xent", n, dim=d, dtype=dtype) for n, d, dtype in product((1000, 4096, 16384), widths, kinds)]
    for n, t, dtype in product((1000, 1024, 4096, 16384, 65536), (0.07, 0.1, 0.5), kinds):
        cases.append(Loss("nt_xent", n, temperature=t, dtype=dtype))
        cases.append(Loss("nt_xent", n, temperature=t, dtype=dtype, classes=100, rule="threshold"))
        classes = [count for count in (10, 100, 1000) if 2 * count <= n]  # two images of each at least
        cases += [Loss("sup_con", n, temperature=t, dtype=dtype, classes=count) for count in classes]
        cases += [Loss(op, n, temperature=t, dtype=dtype) for op in ("info_nce", "clip_loss", "sigmoid_loss")]
    cases += [Loss("info_nce", 512, columns=65536, dim=d, temperature=0.1, dtype=k) for d, k in product(widths, kinds)]
    for op, norm, shape, dtype in product(("pgd_step_", "project_"), ("linf", "l2", "l1"), IMAGES, kinds):
        cases.append(Perturb(op, shape, norm, dtype))
    cases += [Perturb("random_start_", shape, norm, k) for shape, norm, k in product(IMAGES, ("linf", "l2"), kinds)]
    for dim, dtype, k in product((128, 512), kinds, (1, 20, 200)):
        cases += [Similarity("similarity_topk", n, m, dim, dtype, k) for n, m in ((10000, 50000), (50000, 1281167))]
    return cases
