"""Tables, plots, goals and predictions: made from rows, and what stands in the READMEs is what the rows say."""

from __future__ import annotations

import csv
import re

import pytest

from bench import rows
from bench.__main__ import main
from bench.contenders import contenders
from bench.grids import grid
from bench.report import foretold, goals, latest, plots, predicted, tables, tune
from bench.report.chips import CHIPS, resident

pytestmark = pytest.mark.kernels

CASE = goals.nt_xent(4096, "fp32")


def row(impl, p50, case=CASE, **more):
    op, name = case.split("/")
    values = dict.fromkeys(rows.COLUMNS) | {"op": op, "case": name, "impl": impl, "mode": "full", "device": "Chip"}
    values |= {"p50_ms": p50, "p20_ms": p50, "p80_ms": p50, "min_ms": p50, "threads": 2, "clock": "wall"}
    values |= {"kind": "ours" if impl == "native" else "rival", "auto": impl == "native", "dtype": "fp32", "reason": ""}
    values |= {"rows": int(re.search(r"n(\d+)", name)[1]), "isa": "AVX512", "peak_mb": 2.0 * p50}
    return values | more


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Rows of one machine: at 4,096 eager takes 60, ours 8 (once 9), the products 20."""
    found = [row("eager", 60.0), row("careful", 30.0), row("native", 9.0), row("native", 8.0)]
    found += [row("products", 20.0, kind="line"), row("compile", 7.0), row("native", 1.0, goals.nt_xent(1024, "fp32"))]
    rows.append_csv(tmp_path, found)
    (tmp_path / "predicted.csv").write_text(",".join(predicted.FIELDS) + "\n")
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    return tmp_path


def test_the_readmes_are_what_the_generator_makes():
    assert not tables.outdated(), "run: python -m bench report"
    assert "<!-- bench:results -->" in (tables.ROOT / "bench" / "README.md").read_text()


def test_a_table_of_known_rows(results):
    (machine,) = latest.load(results)
    lines = tables.measured(machine).splitlines()
    cells = dict(
        zip(*([cell.strip() for cell in line.strip("|").split("|")] for line in (lines[0], lines[2])), strict=True)
    )
    assert cells["case"] == f"`{CASE}`" and cells["eager ms"] == "60" and cells["ours ms"] == "8 (native)"
    assert cells["x eager"] == "7.50" and cells["x line"] == "2.50" and cells["MB"] == "16.0"
    assert tables.worst(machine).splitlines()[2] == f"| `{CASE}` | compile | 0.88 |"  # a loss is shown, and first
    text = "a\n<!-- bench:summary -->\nold\n<!-- /bench:summary -->\nb"
    made = tables.filled(text, tables.blocks())
    assert "old" not in made and "4,096 rows, fp32" in made and made.endswith("-->\nb")
    assert tables.filled(made, tables.blocks()) == made


def test_a_table_of_steps(results):
    assert tables.steps(results) == "No rows yet."
    rows.append_csv(results, [row("plain", 9.0, "step/acl-n1"), row("fold", 6.0, "step/acl-n1", ratio_to_eager=1.5)])
    lines = tables.steps(results).splitlines()
    assert lines[-1] == "| chip, 2 threads | `acl-n1` | fold | 6 | 1.50 |  | 12.0 |" and "plain | 9 |" in lines[-2]
    assert [machine.cases() for machine in latest.load(results)] == [[CASE, goals.nt_xent(1024, "fp32")]]


def test_goals_of_known_rows(results, capsys):
    assert main(["goals", "--csv", str(results), "--device", "cpu", "--threads", "2"]) == 0
    lines = [re.split(r"  +", line) for line in capsys.readouterr().out.splitlines()]
    assert [CASE, "eager fp32", ">= 6 x", "7.5 x", "yes"] in lines
    assert [CASE, "three products", ">= 1.7 x", "2.5 x", "yes"] in lines
    assert any(line[0] == goals.nt_xent(8192, "fp32") and line[-1] == "not measured" for line in lines)
    rows.append_csv(results, [row("native", 12.0)])
    main(["goals", "--csv", str(results), "--device", "cpu", "--threads", "2"])
    assert "5 x" in (text := capsys.readouterr().out) and "NO" in text


def test_hardware_that_is_not_here_is_no_goal_missed(results):
    case = goals.nt_xent(4096, "bf16")
    rows.append_csv(results, [row("native", 8.0, case), row("eager", 9.0, case)])
    (machine,) = latest.load(results)
    assert {line[-1] for line in goals.lines(machine, goals.cpu_goals()) if line[0] == case} == {"needs AMX, not here"}


def test_cases_of_goals_exist_and_so_do_those_who_run_them():
    for cuda, asked in ((False, goals.cpu_goals()), (True, goals.cuda_goals())):
        cases = {f"{case.op}/{case.name}": case for case in grid(False, cuda)}
        for name, impls in goals.wanted(asked).items():
            assert set(impls) <= {contender.impl for contender in contenders(cases[name])}, name


def test_what_the_goals_want_is_measured_once_and_in_time(monkeypatch, tmp_path, capsys):
    asked = []

    def run(options, say):
        asked.append(options)
        return [], options.cases != asked[0].cases  # the first is found wrong

    monkeypatch.setattr(goals, "run", run)
    monkeypatch.setattr(goals, "load", lambda folder: [])
    arguments = ["goals", "--measure", "--device", "cpu", "--minutes", "10", "--rows", "8192", "--csv", str(tmp_path)]
    assert main(arguments) == 1
    assert {(one.csv, one.clocks) for one in asked} == {(tmp_path, ("wall",))}
    cases = [one.cases for one in asked]
    assert len(set(cases)) == len(cases) == 6 and goals.nt_xent(16384, "fp32") not in cases
    assert {one.impls for one in asked if one.cases == CASE} == {("native", "eager", "products")}
    assert asked[0].minutes == pytest.approx(10 / 6, rel=0.01) and asked[-1].minutes == pytest.approx(10, rel=0.01)
    assert main([*arguments, "--minutes", "1e-9"]) == 0
    assert "out of time, not measured: " + cases[0] in capsys.readouterr().out


def test_goals_read_off_a_prediction():
    """Two passes of 3 and 5 ms for 6.32e12 operations: 1.0 of 790 TFLOP/s; eager's products alone take 12."""
    case = goals.nt_xent(65536, "bf16")
    op, name = case.split("/")
    shared = dict.fromkeys(predicted.FIELDS, "") | {"chip": "H200", "op": op, "case": name, "executed": "3.16e12"}
    found = [shared | {"predicted_us": "3000", "products_us": "12000"}, shared | {"predicted_us": "5000"}]
    step = dict.fromkeys(predicted.FIELDS, "") | {"chip": "H200", "op": "pgd_step_", "case": "4096x3x64x64-l2-fp32"}
    found += [step | {"predicted_us": "100", "line_us": "80"}]
    chip = foretold.machine(found, CHIPS[0])
    lines = {tuple(line[:2]): line[3] for line in goals.lines(None, goals.cuda_goals(), chip)}
    assert lines[case, "products"] == "1.5 x" and lines[case, "eager"] == ""
    assert lines["pgd_step_/4096x3x64x64-l2-fp32", "of the copy rate"] == "0.8"
    assert chip.row(case, "triton", clock="graph")["of_products"] == pytest.approx(1.0)
    assert not foretold.machine(found, CHIPS[1]).found


def test_plots(results):
    pytest.importorskip("matplotlib")
    rated = {"executed": 1e9, "bytes": 1e6, "product_rate": 1e11, "copy_rate": 1e10}
    rows.append_csv(results, [row("native", 8.0, **rated)])
    assert {path.name for path in plots.write(results)} == {"nt_xent-fp32-2-threads.png", "roofline-2-threads.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (results / "chip").glob("*.png"))


def test_a_prediction_by_hand():
    """66 blocks of 64 rows, 4 warps of the 8 that hide latency: half the rate of half the processors, unless shared."""
    h200 = CHIPS[0]
    compiled = {"block_m": "64", "warps": "4", "registers": "128", "shared": "50000", "spills": "0"}
    assert resident(compiled, h200) == 4  # 65536 registers / (128 * 128) = 4, 228 KB / 50 = 4
    assert resident(compiled | {"registers": "255"}, h200) == 2
    from bench.cases import Loss

    case = Loss("nt_xent", 64 * 66, dim=128, dtype="bf16")
    compiled |= {"block_n": "64", "block_k": "128"}
    products = 2 * case.rows**2 * 128 / 790e12
    alone = predicted.Pass("small_forward", "plain", "two views", case.rows, case.rows, ("bf16",))
    found = predicted._one(alone, case, h200, compiled)
    assert (found["programs"], found["launches"]) == (66, 1)
    assert found["times"]["products"] == pytest.approx(2 * 2 * products)
    assert found["times"]["L2"] == pytest.approx(66 * case.rows * 256 / 5.5e12)
    # Tiles of fewer than 64 rows have no wgmma on sm_90; those of sm_80 never do, and float32 has no tensor cores.
    narrow = predicted._one(alone, case, h200, compiled | {"block_m": "32", "warps": "8"})
    assert narrow["times"]["products"] == pytest.approx(products / 0.63)  # 132 programs for 132 processors
    # 4 shares make 264 programs, two for every processor, and leave 8 numbers of each row to write and to read.
    shared = predicted._one(alone._replace(kernel="forward"), case, h200, compiled)
    assert (shared["programs"], shared["launches"]) == (264, 2)
    assert shared["times"]["products"] == pytest.approx(products)
    assert shared["times"]["L2"] == pytest.approx((66 * case.rows * 256 + 4 * case.rows * 8 * 4 * 2) / 5.5e12)


def test_the_committed_prediction_is_of_the_committed_kernels():
    pytest.importorskip("triton")
    with (tables.ROOT / "bench" / "results" / "predicted.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == predicted.table(), "run: python -m bench predict, then report"


def test_the_sweep_goes_downhill_and_refuses_what_cannot_run():
    start, best = (64, 64, 128, 4, 2), (128, 32, 128, 4, 3)
    asked = []

    def cost(shape):
        return 1 + sum(abs(a - b) for a, b in zip(shape, best, strict=True))

    def compare(shape, other):
        asked.append(shape)
        return None if shape[3] == 8 else cost(other) / cost(shape)

    assert tune.descend(start, compare, lambda: False) == best
    assert len(set(asked)) == len(asked)
    assert tune.descend(start, compare, lambda: True) == start  # no time left


def test_a_winner_replaces_its_shape_only():
    source = (tune.SOURCES / "triton_configs.py").read_text()
    key = ("forward", "plain", 128, "bfloat16")
    made = tune.replaced(source, key, 1, (256, 32, 128, 8, 3))
    (old,) = set(source.splitlines()) - set(made.splitlines())
    (new,) = set(made.splitlines()) - set(source.splitlines())
    assert old.startswith('    ("forward", "plain", 128, "bfloat16"): (Config(')
    assert new == re.sub(r"\), Config\([^)]*\)", "), Config(256, 32, 128, 8, 3)", old)
    with pytest.raises(ValueError, match="no line"):
        tune.replaced(source, ("forward", "plain", 7, "bfloat16"), 0, (16, 16, 16, 4, 2))


def test_tuning_without_a_device_is_refused(capsys):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert main(["tune"]) == 2
    assert "sees none here" in capsys.readouterr().err
