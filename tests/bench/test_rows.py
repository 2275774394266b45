"""Files of rows: append-only CSV, JSON, and the comparison of two runs."""

from __future__ import annotations

import csv
import json

import pytest

from bench import rows, table
from bench.__main__ import main

pytestmark = pytest.mark.kernels


def row(impl="native", p50=1.0, width=0.1, **more):
    values = dict.fromkeys(rows.COLUMNS) | {"op": "nt_xent", "case": "n8", "impl": impl, "mode": "full"}
    values |= {
        "device": "Fast Chip(TM) 9",
        "threads": 2,
        "clock": "wall",
        "kind": "ours",
        "dtype": "fp32",
        "reason": "",
    }
    if p50 is not None:
        values |= {"p50_ms": p50, "p20_ms": p50 - width, "p80_ms": p50 + width, "min_ms": p50 - width}
    return values | more


def test_csv_appends_and_never_rewrites(tmp_path):
    (path,) = rows.append_csv(tmp_path, [row(p50=2.0), row("eager", 1 / 3)])
    assert path == tmp_path / "fast-chip-tm-9" / "nt_xent.csv"
    first = path.read_text()
    rows.append_csv(tmp_path, [row(p50=4.0), row(op="pgd_step_")])
    assert path.read_text().startswith(first)
    assert [entry[:3] for entry in csv.reader(path.read_text().splitlines())][0] == ["op", "case", "impl"]
    assert path.read_text().count("\n") == 4
    assert [entry["p50_ms"] for entry in rows.read(path)] == [2.0, pytest.approx(1 / 3, rel=1e-5), 4.0]
    assert len(rows.read(tmp_path)) == 4


def test_csv_with_other_columns_is_refused_and_nothing_is_written(tmp_path):
    (path,) = rows.append_csv(tmp_path, [row()])
    path.write_text(path.read_text().replace("ratio_to_eager,", "", 1))
    with pytest.raises(ValueError, match=r"nt_xent.csv has other columns .*ratio_to_eager"):
        rows.append_csv(tmp_path, [row(op="info_nce"), row()])
    assert not (path.parent / "info_nce.csv").exists()


def test_json_is_a_list_of_rows(tmp_path):
    path = tmp_path / "new" / "rows.json"
    rows.write_json(path, [row()])
    rows.write_json(path, [row(), row("triton") | {"p50_ms": None, "reason": "absent"}])
    assert [entry["p50_ms"] for entry in json.loads(path.read_text())] == [1.0, None]
    assert rows.read(path)[1]["reason"] == "absent"


def test_compare_tells_a_change_from_noise(tmp_path, capsys):
    before = [row("eager", 10.0), row("native", 4.0), row("triton", 1.0, 0.5), row("gone", 1.0)]
    after = [row("eager", 10.05), row("native", 2.0), row("triton", 3.0, 0.5), row("native", 1.0)]
    (a,) = rows.append_csv(tmp_path / "a", before)
    rows.write_json(tmp_path / "b.json", after)
    assert main(["--compare", str(a), str(tmp_path / "b.json")]) == 0
    lines = {line.split()[2]: line.split() for line in capsys.readouterr().out.splitlines() if "n8" in line}
    assert lines["eager"][-1] == "~"
    assert lines["native"][4:] == ["4", "1", "4.00", "faster"]  # the later of two rows counts
    assert lines["triton"][-1] == "SLOWER"
    assert "gone" not in lines


def test_compare_says_why_nothing_matches():
    assert "device" in table.compare([row(device="a")], [row(device="b")])


@pytest.mark.parametrize("content", ["", "a,b\n1,2\n"])
def test_a_file_that_holds_no_rows_is_refused(tmp_path, content, capsys):
    path = tmp_path / "x.csv"
    path.write_text(content)
    assert main(["--compare", str(path), str(path)]) == 2
    assert "holds no rows of a benchmark" in capsys.readouterr().err


def test_the_table_shows_who_was_refused_and_no_number_of_theirs():
    text = table.results([row("eager", 10.0, ratio_to_eager=1.0), row("triton", None, 0) | {"reason": "absent here"}])
    assert "-- triton: absent here" in text
    assert sum("triton" in line for line in text.splitlines()) == 1
