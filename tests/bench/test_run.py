"""A whole case through the harness: what rows come out, and what keeps a row from having numbers."""

from __future__ import annotations

import ast
import math
import sys
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

import bench.measure as measuring
import bench.run as harness
from bench import baselines, memory, rates, rows, timing
from bench.__main__ import main, parse
from bench.cases import Loss, Perturb, Similarity
from bench.contenders import Contender, contenders
from bench.flops import executed
from bench.gate import Gate
from bench.grids import grid
from bench.run import Options, run
from clead_kernels import dispatch

pytestmark = pytest.mark.kernels

SMALL = Loss("nt_xent", 32, dim=8)


@pytest.fixture
def one_case(monkeypatch):
    """The harness on one tiny case; ``add(contender)`` lets another one take part."""
    extra = []
    monkeypatch.setattr(harness, "grid", lambda quick, cuda, full: [SMALL])
    monkeypatch.setattr(measuring, "contenders", lambda case: [*contenders(case), *extra])
    return extra.append


def by_impl(found, mode="full"):
    return {row["impl"]: row for row in found if row["mode"] == mode}


def go(**options):
    lines = []
    found, sound = run(Options(quick=True, memory=False, **options), lines.append)
    return found, sound, "\n".join(lines)


def test_rows_of_a_case(one_case, tmp_path):
    found, sound, text = go(json=tmp_path / "rows.json", csv=tmp_path)
    assert sound
    assert all(tuple(row) == rows.COLUMNS for row in found)
    full, forward, backward = (by_impl(found, mode) for mode in ("full", "forward", "backward"))
    for impl in ("eager", "careful", "products", "reference"):
        assert full[impl]["p20_ms"] <= full[impl]["p50_ms"] <= full[impl]["p80_ms"]
        assert full[impl]["min_ms"] >= forward[impl]["min_ms"] + backward[impl]["min_ms"] - 1e-9
        ratio = full["eager"]["p50_ms"] / full[impl]["p50_ms"]
        assert full[impl]["ratio_to_eager"] == pytest.approx(ratio)
    assert full["eager"]["ratio_to_eager"] == 1.0
    assert full["compile"]["p50_ms"] is None and "--impl" in full["compile"]["reason"]
    assert full["inf_cl"]["reason"] in ("needs a CUDA device", "not installed: pip install '.[rivals]'")
    assert full["native"]["executed"] == full["eager"]["executed"] * 4 / 6 == full["eager"]["flops"] * 4 / 6
    achieved = full["eager"]["executed"] / full["eager"]["p50_ms"] * 1e3 / full["eager"]["product_rate"]
    assert full["eager"]["of_products"] == pytest.approx(achieved)
    assert full["reference"]["grad_error"] < 1e-6 and full["reference"]["threads"] == 1
    assert [row["p50_ms"] for row in rows.read(tmp_path / "rows.json")] == [row["p50_ms"] for row in found]
    assert len(rows.read(tmp_path / rows.slug(found[0]["device"]) / "nt_xent.csv")) == len(found)
    assert "x eager" in text
    parse(full["reference"]["command"].split()[3:])  # the command of a row is one that the parser takes


def test_every_implementation_of_the_table_takes_part(monkeypatch):
    rows_of = [*dispatch.SUPPORT, dispatch.Support("nt_xent", "triton", devices=("cuda",))]
    monkeypatch.setattr(dispatch, "SUPPORT", tuple(rows_of))
    names = [contender.impl for contender in contenders(SMALL)]
    assert names[0] == "eager" and {"reference", "triton"} <= set(names)
    assert {"native", "reference"} <= {c.impl for c in contenders(Perturb("pgd_step_", (2, 3, 4, 4)))}


def test_what_cannot_run_says_why(one_case, monkeypatch):
    triton = dispatch.Support("nt_xent", "triton", devices=("cuda",))
    monkeypatch.setattr(dispatch, "SUPPORT", (*dispatch.SUPPORT, triton))
    found, sound, text = go()
    assert sound, "to refuse is no failure"
    assert by_impl(found)["triton"]["p50_ms"] is None
    assert "-- triton: impl='triton' cannot run nt_xent on cpu" in text


def test_a_wrong_kernel_gets_no_number_and_fails_the_run(one_case):
    def build(case, inputs):
        right = baselines.bound(baselines.EAGER[case.op], case, inputs)
        return lambda *leaves, **options: right(*leaves, **options) * 1.01

    one_case(Contender("fast_and_wrong", "ours", build))
    found, sound, text = go()
    assert not sound
    assert by_impl(found)["fast_and_wrong"]["p50_ms"] is None
    assert "fast_and_wrong" not in by_impl(found, "forward")
    assert "-- fast_and_wrong: wrong: value" in text


def test_a_crash_is_told(one_case):
    def build(case, inputs):
        raise RuntimeError("no kernel image is available\nand more")

    one_case(Contender("crashing", "ours", build))
    one_case(Contender("crashing rival", "rival", build))
    found, sound, _ = go()
    assert not sound
    assert by_impl(found)["crashing"]["reason"] == "failed: RuntimeError: no kernel image is available"


def test_what_does_not_fit_is_not_tried(one_case, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda device: 10_000.0)
    found, sound, _ = go()
    assert sound
    assert all(row["p50_ms"] is None for row in found if row["impl"] in ("eager", "careful"))
    assert "GiB" in by_impl(found)["eager"]["reason"]


def test_cases_that_no_time_is_left_for_are_named(one_case, monkeypatch):
    monkeypatch.setattr(harness.time, "monotonic", iter(range(0, 10**9, 30)).__next__)
    monkeypatch.setattr(harness, "grid", lambda quick, cuda, full: [SMALL] * 5)
    _, _, text = go(minutes=0.75, impls=("reference",))
    assert "out of time, not run: nt_xent/" in text


class FakeStream:
    wait_stream = staticmethod(lambda other: None)


def test_graphs_of_copies_and_what_cannot_be_captured(one_case, monkeypatch):
    """The CUDA clock on a fake device: replays call the stages again, and a failing capture is told, not hidden."""

    def capture(pool, stages):
        if len(captured) == 2:  # the second contender's first stage
            captured.append(0)
            raise RuntimeError("operation not permitted when stream is capturing")
        captured.append(len(stages))
        return lambda: [stage() for stage in stages]

    captured, modes = [], [0]
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "current_stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(timing, "_capture", capture)
    monkeypatch.setattr(timing, "DeviceClock", timing.WallClock)
    monkeypatch.setattr(memory, "available", lambda device: 2.0**34)
    interleave = timing.interleave

    def interleaved(*arguments, **options):  # everything runs; the times are the same on a busy machine
        return {impl: [[1.0, 2.0] for _ in found] for impl, found in interleave(*arguments, **options).items()}

    monkeypatch.setattr(timing, "interleave", interleaved)
    found, sound, text = go(clocks=("wall", "graph"), impls=("reference", "careful"))
    assert sound
    graphs = {row["impl"]: row for row in found if row["mode"] == "full" and row["command"].endswith("--clock graph")}
    walls = {row["impl"]: row for row in found if row["mode"] == "full" and row["clock"] == "wall"}
    assert captured[:2] == [measuring.COPIES] * 2
    assert modes[1::2] == ["error"] * (len(modes) // 2) and not any(modes[::2])  # what waits is found before
    assert graphs["eager"]["clock"] == "graph" and graphs["careful"]["clock"] == "device"
    assert "stream is capturing" in graphs["careful"]["note"] and "-- careful: no graph: RuntimeError" in text
    # Sixteen copies in a sample: the row is the share of one.
    assert graphs["eager"]["p50_ms"] == pytest.approx(walls["eager"]["p50_ms"] / measuring.COPIES)
    assert graphs["careful"]["p50_ms"] == pytest.approx(walls["careful"]["p50_ms"])


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["--threads", "0"], ["--minutes", "-1"], ["--clock", "device", "--device", "cpu"], ["--clock", "x"]],
)
def test_bad_arguments_are_refused(arguments):
    with pytest.raises(SystemExit) as stop:
        parse(arguments)
    assert stop.value.code == 2


def test_a_case_that_does_not_exist_is_refused(capsys):
    assert main(["--case", "nothing like it", "--device", "cpu"]) == 2
    assert "no case of" in capsys.readouterr().err


def test_peak_memory_of_a_known_allocation():
    """similarity's eager form holds the scores and their quotient at once: 2 x 16 MB."""
    peak = memory.peak_extra(Similarity("similarity", 2048, 2048, dim=8), "eager", "cpu", threads=1)
    assert 32 <= peak <= 40
    less = memory.peak_extra(Similarity("similarity_topk", 64, 2048, dim=8, k=2), "eager", "cpu", threads=1)
    assert less < 8


def test_who_finds_no_memory_beside_the_graphs_gets_a_reason_and_the_others_numbers(monkeypatch):
    options = Options(impls=("careful", "native"), quick=True, memory=False)
    setting = measuring.Setting(options, {"native": ""}, rates.Rates(1e9, {"fp32": 1e9}, None))
    case = Loss("nt_xent", 64, dim=8)
    gate = Gate(case, "cpu", seeds=1)
    entries = [measuring._enter(one, case, gate, options) for one in measuring._chosen(case, options)]

    def full():
        raise torch.OutOfMemoryError("tried to allocate 52 GiB\nmore")

    def graphed(entry, case, gate):
        if entry.contender.impl == "careful":
            entry.work.stages = [full]
            return entry.work, "no graph: for a test"
        return entry.work, ""

    monkeypatch.setattr(measuring, "_graphed", graphed)
    monkeypatch.setattr(measuring.timing, "DeviceClock", timing.WallClock)
    found = measuring._timed(case, setting, entries, gate, "graph", 0.01)
    (refused,) = [row for row in found if row["impl"] == "careful"]
    assert refused["reason"] == "no memory beside the graphs of the others: tried to allocate 52 GiB"
    assert refused["p50_ms"] is None and all(row["p50_ms"] for row in found if row["impl"] == "native")


def test_inputs_are_the_same_numbers_in_every_dtype_and_every_time():
    for case in (Loss("sup_con", 20, dtype="bf16", classes=4), Perturb("pgd_step_", (2, 3, 4, 4), dtype="bf16")):
        half, wide = case.inputs("cpu", 1), case.inputs("cpu", 1, dtype="fp32")
        assert all(torch.equal(a.float(), b) for a, b in zip(half.leaves, wide.leaves, strict=True))
        assert not torch.equal(case.inputs("cpu", 2).leaves[0], half.leaves[0])


def test_cosines_of_the_data_keep_away_from_the_threshold():
    case = Loss("nt_xent", 512, classes=10, rule="threshold")
    x = torch.nn.functional.normalize(case.inputs("cpu", 0).leaves[0].detach().double(), dim=1)
    assert ((x @ x.T - 0.5).abs() > 32 * torch.finfo(torch.float32).eps).all()


@pytest.mark.parametrize("cuda", [False, True])
@pytest.mark.parametrize("quick", [False, True])
def test_cases_have_names_of_their_own_and_sizes(quick, cuda):
    cases = grid(quick, cuda)
    names = [f"{case.op}/{case.name}" for case in cases]
    assert len(set(names)) == len(names)
    assert max(Counter(case.part for case in cases).values()) <= 60
    assert all(case.bytes("full") > 0 and math.isfinite(case.flops("full")) for case in cases)
    assert {case.op for case in cases} == set(dispatch.OPS) - {"augment", "conv3x3"}  # which bench.steps has


@pytest.mark.parametrize(
    ("case", "impl", "products"),
    [
        (Loss("nt_xent", 10, dim=4), "native", 2),  # half the pairs: forward 1/2, backward 3/2
        (Loss("nt_xent", 10, dim=4), "triton", 3),
        (Loss("info_nce", 10, dim=4, columns=30), "native", 4),
        (Loss("info_nce", 10, dim=4, columns=30), "triton", 5),
        (Loss("clip_loss", 10, dim=4), "native", 4),
        (Loss("clip_loss", 10, dim=4), "eager", 3),
        (Loss("instance_margin", 10, dim=4), "native", 1),
        (Similarity("similarity_topk", 10, 20, dim=4, k=2), "native", 1),
    ],
)
def test_executed_operations_by_hand(case, impl, products):
    assert executed(case, impl, "full") == products * 2 * case.pairs * 4
    assert executed(case, "inf_cl", "full") is None or isinstance(case, Similarity)


def test_the_full_grid_has_the_written_one_and_what_was_asked_for():
    cases = grid(False, True, full=True)
    assert set(grid(False, True)) <= set(cases) and len(set(cases)) == len(cases)
    losses = [case for case in cases if isinstance(case, Loss)]
    assert {case.rows for case in losses} >= {512, 1000, 1048576} and {case.dim for case in losses} >= {64, 100, 1024}
    assert {case.dtype for case in losses} == {"fp32", "bf16", "fp16"}
    assert {case.temperature for case in losses} >= {0.07, 0.1, 0.5}
    assert {case.classes for case in losses if case.op == "sup_con"} == {10, 100, 1000}
    images = {case.shape[1:] for case in cases if isinstance(case, Perturb) and case.norm == "l1"}
    assert images >= {(3, 32, 32), (3, 64, 64), (3, 224, 224)}
    banks = {(case.rows, case.columns) for case in cases if isinstance(case, Similarity) and case.k}
    assert banks >= {(10000, 50000), (50000, 1281167)}
    few = harness.chosen(Options(device="cuda", full=True, most=4096))
    assert max(case.pairs for case in few) == 4096**2 and len(few) < len(cases)


def test_bench_needs_torch_and_numpy_only():
    allowed = {"bench", "clead_kernels", "numpy", "torch", *sys.stdlib_module_names}
    more = {
        "rivals.py": {"inf_cl", "cut_cross_entropy", "liger_kernel", "pytorch_metric_learning", "eagerpy", "foolbox"}
    }
    for file in Path(harness.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            for name in names:
                some = {"pytest"} if file.name.startswith("test_") else more.get(file.name, set())
                assert name.split(".")[0] in allowed | some, file
