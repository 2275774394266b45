"""The quick cases under pytest-benchmark: ``pytest bench/test_bench_ops.py``, with its own storage and comparison.

The same contenders, inputs and gate as ``python -m bench``; turns are not interleaved, so trust its ratios less.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.baselines import Unavailable
from bench.cases import Case
from bench.contenders import Contender, contenders
from bench.gate import Gate
from bench.grids import grid

pytest.importorskip("pytest_benchmark")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ENTRIES = [(case, contender) for case in grid(quick=True, cuda=DEVICE == "cuda") for contender in contenders(case)]


@pytest.mark.parametrize(
    ("case", "contender"), ENTRIES, ids=[f"{case.op}/{case.name}-{contender.impl}" for case, contender in ENTRIES]
)
def test_op(benchmark: Any, case: Case, contender: Contender) -> None:
    benchmark.group = f"{case.op}/{case.name}"
    if contender.compiled:
        pytest.skip("compiling takes longer than all the rest: python -m bench --impl compile")
    gate = Gate(case, DEVICE, seeds=1)
    try:
        gate.judge(next(c for c in contenders(case) if c.impl == "eager"))
        verdict, work = gate.judge(contender)
    except Unavailable as error:
        pytest.skip(str(error))
    assert verdict.reason is None

    def stages() -> None:
        for stage in work.stages:
            stage()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(stages, setup=work.reset, rounds=5, warmup_rounds=1)
