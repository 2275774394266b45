import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from clead import report
from clead.errors import UserError, run_command
from clead.figures import drawing
from clead.figures.table import arrange

ROW = {
    "protocol": "linear_eval",
    "bn_branch": "clean",
    "dataset": "digits",
    "split": "test",
    "samples": 500,
    "flags": [],
}
ATTACKS = {"fgsm": "fgsm", "pgd20": "pgd", "cw": "cw_linf"}


def row(model, name, accuracy, eps=None, **more):
    attack = {"attack": ATTACKS.get(name), "norm": None if eps is None else "linf", "eps": eps}
    interval = {"low": max(accuracy - 0.03, 0.0), "high": min(accuracy + 0.03, 1.0)}
    return (
        ROW | {"run": "clead-digits-s0", "model": model, "name": name, "accuracy": accuracy} | attack | interval | more
    )


def digits_rows(**more):
    table = {
        "trained": (0.952, 0.81, 0.604, 0.79, 0.55, 0.78, 0.55),
        "undefended": (0.97, 0.3, 0.1, 0.2, 0.0, 0.2, 0.002),
        "random": (0.8, 0.25, 0.1, 0.24, 0.05, 0.2, 0.04),
    }
    rows = []
    for model, values in table.items():
        names = [("clean", None), *((name, eps) for name in ATTACKS for eps in (0.1, 0.15))]
        rows += [row(model, name, value, eps, **more) for (name, eps), value in zip(names, values, strict=True)]
        rows += [row(model, "pgd20", 0.5, eps, flags=["sweep"], **more) for eps in (0.025, 0.05)]
    return rows


def write_run(folder, rows=None, *, method="clead", state="done", compare=("undefended", "random"), data="digits"):
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"schema": 1, "state": state, "stages": []}))
    values = {"data": data, "compare": compare}
    (folder / "config.json").write_text(json.dumps({"schema": 1, "method": method, "recipe": None, "values": values}))
    metrics = [{"stage": "pretrain", "epoch": 1, "step": step, "loss": 3.0 / step, "lr": 0.1} for step in range(1, 4)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in metrics))
    if rows is not None:
        (folder / "results.json").write_text(json.dumps({"schema": 1, "results": rows}))
    return folder


def printed(renderable, **options):
    output = io.StringIO()
    Console(file=output, width=100, **options).print(renderable)
    return output.getvalue()


def command(capsys, *arguments):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as left:
        patch.setattr(sys, "argv", ["clead.report", *map(str, arguments)])
        run_command(report.main)
    captured = capsys.readouterr()
    return left.value.code, captured.out, captured.err


def words(text):
    return [line.split() for line in text.splitlines()]


def test_plain_table_exactly(tmp_path, capsys):
    run = write_run(tmp_path / "clead-digits-s0", digits_rows())
    code, out, err = command(capsys, run, "--no-figures")
    assert (code, err) == (0, "")
    assert [line.rstrip() for line in out.splitlines()] == [
        "                 clean   fgsm   fgsm   pgd20   pgd20     cw     cw",
        "eps                       0.1   0.15     0.1    0.15    0.1   0.15",
        "──────────────────────────────────────────────────────────────────",
        "C-LEAD            95.2   81.0   60.4    79.0    55.0   78.0   55.0",
        "ce, no defence    97.0   30.0   10.0    20.0     0.0   20.0    0.2",
        "random encoder    80.0   25.0   10.0    24.0     5.0   20.0    4.0",
        "",
        "accuracy in %; digits, 500 test images; 95% intervals: +/- 3.0 at most (Wilson)",
        "",
    ]


def test_markdown_exactly():
    rows = [row("trained", "clean", 0.9), row("undefended", "clean", 0.95)]
    rows += [row("trained", "pgd20", 0.5, 8 / 255), row("undefended", "pgd20", 0.5, 8 / 255)]
    assert report.to_markdown([of | {"method": "pgd_at"} for of in rows]).splitlines() == [
        "| model | clean | pgd20 8/255 |",
        "| --- | ---: | ---: |",
        "| PGD-AT | 90.0 | **50.0** |",
        "| ce, no defence | **95.0** | **50.0** |",
        "",
        "accuracy in %; digits, 500 test images; 95% intervals: +/- 3.0 at most (Wilson)",
    ]


def test_best_of_each_column_is_bold():
    grid = arrange(digits_rows())
    text = printed(report.lay_out(grid, grid.columns), force_terminal=True, color_system="standard")
    bold = [line.split("\x1b[1m")[1:] for line in text.splitlines() if "." in line and "%" not in line]
    bold = [[cell.split("\x1b[0m")[0].strip() for cell in cells] for cells in bold]
    assert bold[-3:] == [["81.0", "60.4", "79.0", "55.0", "78.0", "55.0"], ["97.0"], []]


def test_raw_rows_do_not_know_the_method():
    text = report.to_markdown(digits_rows())
    assert "| trained |" in text and "500 test images" in text and "+/- 3.0" in text


def test_nothing_is_best_alone():
    assert "**" not in report.to_markdown([row("trained", "clean", 0.9)])


def test_best_is_best_on_the_same_data():
    values = {
        ("digits", "trained"): 0.9,
        ("digits", "random"): 0.8,
        ("cifar10", "trained"): 0.6,
        ("cifar10", "random"): 0.4,
    }
    rows = [row(model, "clean", value, dataset=data, run=data) for (data, model), value in values.items()]
    text = report.to_markdown(rows)
    assert "| digits | trained | **90.0** |" in text
    assert "| cifar10 | trained | **60.0** |" in text
    assert text.count("**") == 4


def test_an_attack_not_measured_on_every_model_goes_to_the_footer():
    rows = [row("trained", "clean", 0.9), row("undefended", "clean", 0.95), row("trained", "pgd20", 0.5, 0.1)]
    text = report.to_markdown(rows)
    assert text.splitlines()[0] == "| model | clean |"
    assert text.splitlines()[-1] == "Not measured on every model: pgd20 0.1: trained 50.0"


def test_of_repeated_rows_the_lowest_is_shown_and_said():
    rows = [row("trained", "pgd20", value, 0.1, seed=seed) for seed, value in enumerate((0.5, 0.4, 0.6))]
    text = report.to_markdown(rows)
    assert "| trained | 40.0 |" in text
    assert "the lowest is shown" in text


def test_protocols_norms_and_corruptions_are_told_apart():
    rows = [row("trained", "clean", 0.9, protocol=protocol) for protocol in ("linear_eval", "adv_linear_eval")]
    rows += [row("trained", "pgd20", 0.5, 0.5, norm="l2"), row("trained", "pgd20", 0.25, 0.5)]
    rows += [row("trained", "fog", 0.7, corruption="fog", severity=3)]
    lines = report.to_markdown(rows).splitlines()
    assert lines[0] == "| model | clean | pgd20 l2 0.5 | pgd20 0.5 | fog severity 3 |"
    assert lines[2] == "| trained, linear_eval | **90.0** | 50.0 | 25.0 | 70.0 |"
    assert lines[3] == "| trained, adv_linear_eval | **90.0** | - | - | - |"


def test_several_runs_have_lines_each(tmp_path, capsys):
    first = write_run(tmp_path / "clead-digits-s0", digits_rows())
    second = write_run(tmp_path / "simclr-digits-s0", [row("trained", "clean", 0.99)], method="simclr", compare=[])
    code, out, _ = command(capsys, first, second, first, "--no-figures")
    assert code == 0
    lines = words(out)
    assert lines.count(["clead-digits-s0"]) == 1
    at = lines.index(["simclr-digits-s0"])
    assert lines[at + 1] == ["SimCLR", "99.0", *["-"] * 6]
    code, out, _ = command(capsys, first, second, "--no-figures", "--markdown")
    assert "| simclr-digits-s0 | SimCLR | **99.0** | - | - | - | - | - | - |" in out


def test_runs_of_the_same_name_are_told_apart(tmp_path, capsys):
    runs = [write_run(tmp_path / name / "r", [row("trained", "clean", 0.5)], compare=[]) for name in "ab"]
    _, out, _ = command(capsys, *runs, "--no-figures", "--markdown")
    assert f"| r | C-LEAD | **50.0** |\n| {runs[1]} | C-LEAD | **50.0** |" in out


def test_other_data_have_a_table_of_their_own(tmp_path, capsys):
    first = write_run(tmp_path / "a", digits_rows())
    cifar = [row("trained", name, 0.5, 8 / 255, dataset="cifar10", samples=10000) for name in ATTACKS]
    second = write_run(tmp_path / "b", cifar, method="pgd_at", compare=[])
    _, out, _ = command(capsys, first, second, "--no-figures")
    assert ["eps", "8/255", "8/255", "8/255"] in words(out)
    assert "cifar10, 10000 test images" in out
    assert not [line for line in words(out) if "-" in line]


def test_wide_tables_are_split_not_cut(tmp_path, capsys):
    radii = [k / 255 for k in (2, 4, 6, 8, 10, 12)]
    rows = [row(model, name, 0.123, eps) for model in ("trained", "random") for name in ATTACKS for eps in radii]
    run = write_run(tmp_path / ("long-name-" * 9), rows, compare=[])
    other = write_run(tmp_path / "other", rows, compare=[])
    _, out, _ = command(capsys, run, other, "--no-figures")
    assert max(len(line) for line in out.splitlines()) <= 100
    assert "…" not in out
    assert out.count("12.3") == 18 * 4


def test_unfinished_run_says_what_is_missing(tmp_path, capsys):
    run = write_run(tmp_path / "r", state="failed")
    code, out, _ = command(capsys, run)
    assert code == 0
    assert out.splitlines() == [
        f"{run} (failed) is not in the table: {run}/results.json: expected this file of the run folder, found none",
        f"accuracy_against_eps not drawn: {run}/results.json: expected this file of the run folder, found none",
        f"image_grid not drawn: {run}/examples.safetensors: expected this file of the run folder, found none",
        f"drew {run}/figures: loss_curves",
        f"wrote {run}/report.html",
        f"wrote {run}/report.md",
    ]


def test_missing_comparisons_are_named_if_asked_for(tmp_path, capsys):
    run = write_run(tmp_path / "r", [row("trained", "clean", 0.5)], state="running")
    _, out, _ = command(capsys, run, "--no-figures")
    assert out.splitlines()[-1] == f"{run} (running) has no results of: undefended, random"
    alone = write_run(tmp_path / "s", [row("trained", "clean", 0.5)], compare=[])
    assert "has no results" not in command(capsys, alone, "--no-figures")[1]


def test_draws_the_figures(tmp_path, capsys):
    run = write_run(tmp_path / "r", digits_rows())
    _, out, _ = command(capsys, run)
    assert f"drew {run}/figures: loss_curves, accuracy_against_eps" in out.splitlines()
    assert (run / "figures" / "accuracy_against_eps.png").stat().st_size > 10_000
    assert (run / "report.html").read_text().count("<img ") == 2


@pytest.mark.parametrize(
    ("names", "arguments", "folder"),
    [
        (["a/r"], [], "a/r"),
        (["a/r", "a/s"], [], "a"),
        (["a/r", "a/s"], ["--out", "page"], "page"),
        (["a/r", "b/r"], [], "."),
        (["a/r"], ["--no-figures"], None),
    ],
)
def test_where_the_page_goes(tmp_path, capsys, monkeypatch, names, arguments, folder):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(drawing, "draw_all", lambda *_: [])
    runs = [write_run(tmp_path / name, [row("trained", "clean", 0.5)], compare=[]) for name in names]
    assert command(capsys, *runs, *arguments)[0] == 0
    found = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("report.*"))
    assert found == ([] if folder is None else [Path(folder) / name for name in ("report.html", "report.md")])


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("run.json", None, "expected a run folder with a run.json in it, found a folder without one"),
        ("run.json", '{"state": "over"}', "expected state running, done or failed, found 'over'"),
        ("config.json", None, "expected this file of the run folder, found none"),
        ("config.json", "{", "expected a JSON object, found 1 bytes that are no JSON"),
        ("results.json", '{"schema": 1, "results": [{"mo', "found 30 bytes that are no JSON"),
        ("metrics.jsonl", "a\nb\n", "expected a JSON object on line 1"),
    ],
)
def test_bad_files_are_one_sentence_and_exit_code_2(tmp_path, capsys, name, content, found):
    run = write_run(tmp_path / "r", digits_rows())
    (run / name).unlink()
    if content is not None:
        (run / name).write_text(content)
    code, _, err = command(capsys, run)
    assert code == 2
    assert err.count("\n") == 1
    assert str(run) in err
    assert found in err


def test_no_run_folder(tmp_path, capsys):
    code, out, err = command(capsys, tmp_path / "nope")
    assert (code, out) == (2, "")
    assert err == f"error: {tmp_path}/nope: expected a run folder with a run.json in it, found no such folder\n"


def test_unknown_option(capsys):
    code, out, err = command(capsys, "--figure", "r")
    assert (code, out) == (2, "")
    assert err == "error: unrecognized arguments: --figure; python -m clead.report --help shows all options\n"


def test_interrupt(tmp_path, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "show", interrupt)
    code, _, err = command(capsys, tmp_path)
    assert (code, err) == (130, "interrupted\n")


def test_show_raises_what_main_prints(tmp_path):
    with pytest.raises(UserError):
        report.show([tmp_path], Console(file=io.StringIO()))


def test_the_command_through_a_pipe_in_ascii(tmp_path):
    run = write_run(tmp_path / "[bold]r", digits_rows())
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "FORCE_COLOR": "1"}
    arguments = [sys.executable, "-m", "clead.report", run, "--no-figures"]
    done = subprocess.run(arguments, capture_output=True, env=environment, check=True)
    assert done.stderr == b""
    assert b"\x1b" not in done.stdout
    assert b"C-LEAD" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_a_folder_of_runs_is_all_of_them_also_the_second_time(tmp_path, capsys):
    for name in ("b", "a"):
        write_run(tmp_path / "runs" / name, digits_rows())
    for _ in range(2):
        code, out, _ = command(capsys, tmp_path / "runs")
        lines = out.splitlines()
        assert code == 0 and lines[-2:] == [f"wrote {tmp_path}/runs/report.html", f"wrote {tmp_path}/runs/report.md"]
        assert [line.split(":")[0] for line in lines if line.startswith("drew")] == [
            f"drew {tmp_path}/runs/a/figures",
            f"drew {tmp_path}/runs/b/figures",
        ]


def write_evaluation(folder, *names):
    """What ``clead.evaluate --out`` leaves of models from outside."""
    folder.mkdir(parents=True)
    rows = [row("trained", "clean", 0.8 + 0.1 * at, run=name) for at, name in enumerate(names)]
    rows += [row("trained", "pgd20", 0.4 + 0.1 * at, 0.1, run=name) for at, name in enumerate(names)]
    (folder / "results.json").write_text(json.dumps({"schema": 1, "results": rows}))
    return folder


def test_an_evaluation_of_a_model_from_outside(tmp_path, capsys):
    folder = write_evaluation(tmp_path / "out", "timm:a")
    code, out, err = command(capsys, folder)
    assert (code, err) == (0, "") and ["timm:a", "80.0", "40.0"] in words(out)
    lines = [f"drew {folder}/figures: accuracy_against_eps", f"wrote {folder}/report.html", f"wrote {folder}/report.md"]
    assert out.splitlines()[-3:] == lines and "not drawn" not in out
    page = (folder / "report.md").read_text()
    assert "| timm:a: trained | 1 | 80.0 | 40.0 |" in page and "accuracy_against_eps.png" in page
    assert "clead.train" not in page and "Beside the papers" not in page


def test_figures_of_one_model_are_not_shown_for_several(tmp_path, capsys):
    command(capsys, write_evaluation(tmp_path / "one", "timm:a"))
    folder = write_evaluation(tmp_path / "out", "timm:a", "timm:b")
    (tmp_path / "one" / "figures").rename(folder / "figures")
    assert command(capsys, folder)[0] == 0
    assert ".png" not in (folder / "report.md").read_text()


def test_an_evaluation_in_a_folder_of_runs_is_reported_with_them(tmp_path, capsys):
    folder = write_evaluation(tmp_path / "all", "timm:a")
    write_run(folder / "r", [row("trained", "clean", 0.5)], compare=[])
    _, out, _ = command(capsys, folder, "--no-figures")
    assert ["timm:a", "80.0", "40.0"] in words(out) and "50.0" in out


def test_an_evaluation_of_several_models_beside_a_run_of_the_name_of_one(tmp_path, capsys):
    folder = write_evaluation(tmp_path / "all" / "out", "r", "timm:b")
    run = write_run(tmp_path / "all" / "r", [row("trained", "clean", 0.5)], compare=[])
    code, out, _ = command(capsys, folder, "--markdown")
    assert code == 0 and "| r | trained | 80.0 | 40.0 |\n| timm:b | trained | **90.0** | **50.0** |" in out
    assert f"{folder} holds rows of 2 models: no figures, each of which shows one" in out.splitlines()
    _, out, _ = command(capsys, run, folder, "--markdown")
    assert f"| r | C-LEAD | 50.0 | - |\n| {folder}/r | trained | 80.0 |" in out
    page = (tmp_path / "all" / "report.md").read_text()
    assert "/all/out/r: trained | 1 | 80.0 |" in page and "/all/r: C-LEAD | 1 | 50.0 |" in page
    assert command(capsys, tmp_path / "all", "--no-figures")[1].count("50.0") == 2


def test_a_run_that_lost_its_state_is_no_evaluation(tmp_path, capsys):
    run = write_run(tmp_path / "r", digits_rows())
    (run / "run.json").unlink()
    assert command(capsys, run)[0] == 2
