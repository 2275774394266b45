"""``python -m bench.steps.augment``: two views of a batch, by every implementation, by kornia."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from clead.augment import find_augmentation
from clead.rng import Rng
from clead_kernels import dispatch

from .. import rows, table, timing

SHAPES = {"digits": (1, 8), "crop_flip": (3, 32), "rrc_flip": (3, 32), "simclr": (3, 32), "rocl": (3, 32)}


@dataclass
class Once:
    """One thing to time."""

    stages: list[timing.Stage]
    reset: timing.Stage = lambda: None


def forms(name: str, batch: int, device: str) -> dict[str, Callable[[], object]]:
    """By name, what makes two views of ``batch`` images."""
    channels, size = SHAPES[name]
    images = torch.rand(batch, channels, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    one = Rng.create(0, "augment", torch.arange(batch, device=device))
    augmentation, both = find_augmentation(name), one.cat(one.view(1))
    found: dict[str, Callable[[], object]] = {}
    for impl in dict.fromkeys(row.impl for row in dispatch.SUPPORT if row.op == "augment"):
        try:
            dispatch.resolve("augment", impl, device=device, dtype=torch.float32)
        except NotImplementedError:
            continue
        found[impl] = partial(replace(augmentation, impl=impl), images, both)
    if name == "simclr":
        found |= _kornia(images)
    out = torch.empty(2 * batch, channels, size, size, device=device)
    found["traffic"] = lambda: torch.mul(images.expand(2, -1, -1, -1, -1), 2.0, out=out.view(2, *images.shape))
    return found


def _kornia(images: Tensor) -> dict[str, Callable[[], object]]:
    """kornia's own transforms of the same names and strengths; it draws other numbers, and shuffles the jitter."""
    try:
        import kornia.augmentation as K
    except ImportError:
        return {}
    chain = K.AugmentationSequential(
        K.RandomResizedCrop(tuple(images.shape[2:]), scale=(0.08, 1.0)),
        K.RandomHorizontalFlip(),
        K.ColorJitter(0.8, 0.8, 0.8, 0.2, p=0.8),
        K.RandomGrayscale(p=0.2),
        data_keys=["input"],
    )
    return {"kornia": lambda: torch.cat([chain(images), chain(images)])}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser("python -m bench.steps.augment", description=__doc__)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=5.0, help="for each case")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: of the processor, on a busy machine"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    environment = rows.environment(options.device, options.threads)
    print("  ".join(f"{name} {environment[name]}" for name in ("device", "threads", "isa", "torch", "commit", "load")))
    now = time.process_time if options.clock == "cpu" else time.perf_counter
    clock = timing.WallClock(now, torch.cuda.synchronize if options.device == "cuda" else lambda: None)
    for name in SHAPES:
        runs = {form: Once([call]) for form, call in forms(name, options.batch, options.device).items()}
        times = timing.interleave(runs, clock, seconds=options.seconds)
        found = {form: timing.summarize([sum(stages) for stages in samples]) for form, samples in times.items()}
        lines = [[f"{name} b{options.batch}", "ms", "min", "x reference (min)"]]
        for form, summary in found.items():
            ratio = f"{found['reference'].min / summary.min:.1f}"
            lines.append([form, table.milliseconds(summary.p50), table.milliseconds(summary.min), ratio])
        print("\n" + table.render(lines), flush=True)


if __name__ == "__main__":
    main()
