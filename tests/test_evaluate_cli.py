"""The command: rows by contract, nothing lost, and one sentence for what the user can mend."""

import csv
import io
import json
import re
import shutil
from functools import partial
from itertools import product
from types import SimpleNamespace

import pytest
from rich.console import Console

from clead import report, train
from clead.attacks import autoattack
from clead.attacks.autoattack import available
from clead.cli import plans
from clead.engine import checkpoint
from clead.engine.progress import Progress
from clead.engine.results import KEY
from clead.engine.run import RunFolder
from clead.errors import UserError
from clead.evaluate import command as evaluate
from clead.evaluate import session, stage, table
from clead.evaluate.measures import accuracy_measures
from clead.evaluate.table import headlines
from clead.protocols import sweeps
from clead.protocols.attempts import AttackSpec
from clead.protocols.catalogue import find_attack

TINY = ["--epochs", "1", "--batch-size", "64", "--linear-eval.epochs", "2"]
TINY += ["--checkpoint-every", "1", "--evaluation.sweep-eps", "--evaluation.eps", "0.1", "--evaluation.attacks", "fgsm"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny SimCLR run on the digits, with an untrained model beside it."""
    out = tmp_path_factory.mktemp("runs") / "main"
    (plan,) = plans(["simclr", *TINY, "--compare", "random", "--evaluation.samples", "60", "--out", str(out)])
    train.run(plan, Progress(report.output_console()))  # without the figures
    return out


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "main")


def rows(folder):
    return json.loads((folder / "results.json").read_text())["results"]


def test_rows_are_added_by_key_and_none_is_lost(run, capsys):
    before = rows(run)
    evaluate.main([str(run), "--attacks", "fgsm,pgd5", "--eps", "0.1,0.2", "--samples", "60"])
    after = rows(run)
    keys = [tuple(row[name] for name in KEY) for row in after]
    assert len(set(keys)) == len(keys) == len(before) + 3  # clean and fgsm at 0.1 were there
    assert [tuple(row[name] for name in KEY) for row in before] == keys[: len(before)]
    old = {row["accuracy"] for row in before if (row["model"], row["name"]) == ("trained", "fgsm")}
    assert old == {
        row["accuracy"] for row in after if (row["model"], row["name"], row["eps"]) == ("trained", "fgsm", 0.1)
    }
    pgd = next(row for row in after if row["name"] == "pgd5" and row["eps"] == 0.2)
    assert (pgd["run"], pgd["protocol"], pgd["samples"], pgd["flags"]) == ("main", "linear_eval", 60, ["subset"])
    assert "torch" in pgd["versions"] and pgd["seconds"] > 0
    output = capsys.readouterr().out
    assert "main: no headline at linf eps 0.2: that takes autoattack, or apgd_ce and apgd_t" in output
    assert json.loads((run / "run.json").read_text())["state"] == "done"
    with open(run / "results.csv", newline="") as file:
        assert [float(row["accuracy"]) for row in csv.DictReader(file)] == [row["accuracy"] for row in after]


def test_a_quick_look_does_not_cost_a_row_of_more_images(run, tmp_path, capsys):
    before = rows(run)
    evaluate.main([str(run), "--attacks", "fgsm,pgd2", "--eps", "0.1", "--samples", "20"])
    after = rows(run)
    assert after[: len(before)] == before and [row["name"] for row in after[len(before) :]] == ["pgd2"]
    said = capsys.readouterr().out
    assert "main fgsm linf eps 0.1:" in said and "20 images" in said
    assert "2 of them were there, of more images, and stay as they were" in said
    evaluate.main([str(run), "--attacks", "fgsm", "--eps", "0.1", "--samples", "80"])
    assert [row["samples"] for row in rows(run) if row["model"] == "trained"] == [80, 80, 20]


def test_what_a_folder_has_of_another_model_by_the_same_name_is_replaced(run, tmp_path):
    out, flags = tmp_path / "out", ["--attacks", "fgsm", "--eps", "0.1", "--out", str(tmp_path / "out")]
    evaluate.main([str(run), *flags, "--samples", "60"])
    evaluate.main([str(run), *flags, "--samples", "20"])
    assert [row["samples"] for row in rows(out)] == [20, 20]


def test_rows_of_a_stage_that_is_not_finished_do_not_pass_for_those_of_the_run(run):
    state = json.loads((run / "run.json").read_text())
    left = {**state, "state": "failed", "stages": [name for name in state["stages"] if name == "pretrain"]}
    (run / "run.json").write_text(json.dumps(left))
    with pytest.raises(UserError, match=r"the stage linear_eval is not finished; .* --resume, or name .*linear_eval-"):
        evaluate.main([str(run), "--attacks", "fgsm", "--eps", "0.1"])
    found = checkpoint.latest(run / "checkpoints", "linear_eval")
    evaluate.main([str(found), "--attacks", "fgsm", "--eps", "0.1", "--samples", "20"])
    assert len(rows(run / "evaluations" / found.resolve().name)) == 2


def test_an_interruption_keeps_the_rows_that_are_finished(run, monkeypatch):
    original = find_attack("pgd7")

    def interrupted(spec, problem):
        raise KeyboardInterrupt

    stop = AttackSpec("stop", "pgd", interrupted, steps=1)
    monkeypatch.setattr(session, "chosen_attacks", lambda *_: [original, stop])
    with pytest.raises(KeyboardInterrupt):
        evaluate.main([str(run), "--eps", "0.05", "--samples", "20"])
    assert [row["samples"] for row in rows(run) if row["name"] == "pgd7"] == [20]


def test_comparisons_are_evaluated_beside_the_run(run):
    evaluate.main([str(run), "--comparisons", "--attacks", "pgd5", "--eps", "0.1", "--samples", "30"])
    found = {(row["run"], row["model"]) for row in rows(run) if row["name"] == "pgd5"}
    assert found == {("main", "trained"), ("main", "random")}
    assert {row["run"] for row in rows(run / "comparisons" / "random") if row["name"] == "pgd5"} == {"random"}


def test_a_checkpoint_has_a_folder_of_its_own_and_several_models_share_an_out(run, tmp_path):
    path = checkpoint.latest(run / "checkpoints", "linear_eval")
    before = rows(run)
    evaluate.main([str(path), "--attacks", "fgsm", "--eps", "0.1", "--samples", "60"])
    assert rows(run) == before
    own = rows(run / "evaluations" / path.name)
    assert {row["run"] for row in own} == {f"main/linear_eval-{int(path.name.split('-')[1])}"}
    same = next(row for row in before if (row["model"], row["name"]) == ("trained", "fgsm"))
    assert next(row for row in own if row["name"] == "fgsm")["accuracy"] == same["accuracy"]
    both = [str(run), str(run / "comparisons" / "random")]
    evaluate.main([*both, "--attacks", "fgsm", "--eps", "0.1", "--samples", "9", "--out", str(tmp_path / "out")])
    evaluate.main([*both, "--attacks", "pgd5", "--eps", "0.1", "--samples", "9", "--out", str(tmp_path / "out")])
    assert rows(run) == before
    names = [(row["run"], row["name"]) for row in rows(tmp_path / "out")]
    assert sorted(names) == sorted((model, name) for model in ("main", "random") for name in ("clean", "fgsm", "pgd5"))


def test_a_renamed_run_has_every_row_once_under_its_new_name(run, tmp_path):
    path = checkpoint.latest(run / "checkpoints", "linear_eval")
    protocols = ["--protocols", "attacks,transfer,metrics,sweep_steps"]
    texts = []
    for folder in (run, tmp_path / "moved"):
        if folder != run:
            run.rename(folder)
        single = folder / "checkpoints" / path.name
        for model, more in ((folder, protocols), (single, [])):
            evaluate.main([str(model), "--attacks", "fgsm", "--eps", "0.1", "--samples", "20", *more])
        files = [folder / name for name in ("results.json", "measures.json", "sanity.json")]
        files += [folder / "evaluations" / path.name / name for name in ("results.json", "sanity.json")]
        texts.append([re.sub(r'"(seconds|versions)": .*', "", file.read_text()) for file in files])
    before, after = texts
    assert [sorted(re.sub(r"\bmain\b", "moved", text).splitlines()) for text in before] == [
        sorted(text.splitlines()) for text in after
    ]


@pytest.mark.skipif(not available(), reason="needs pyautoattack (the extra evaluation)")
def test_autoattack_is_the_headline_and_no_weaker_than_pgd(run, capsys):
    settings = ["--eps", "0.1", "--samples", "2"]
    evaluate.main([str(run), "--attacks", "pgd20,apgd_ce,apgd_t", *settings])
    found = {row["name"]: row for row in rows(run) if row["samples"] == 2}
    both = found["apgd_ce+apgd_t"]
    assert both["flags"] == ["subset", "headline"] and found["pgd20"]["flags"] == ["subset"]
    assert both["accuracy"] <= min(found["apgd_ce"]["accuracy"], found["apgd_t"]["accuracy"])
    assert both["accuracy"] <= found["pgd20"]["accuracy"]
    assert "headline at linf eps 0.1 is apgd_ce+apgd_t" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--attacks", "pgd20,pdg"], "unknown attack 'pdg'"),
        (["--eps", "2"], r"--eps must be in \[0, 1\]"),
        (["--eps", "8/0"], "expected a number such as 0.03 or 8/255"),
        (["--norm", "l2"], "--norm l2 needs --eps"),
        (["--norm", "l1", "--eps", "1", "--attacks", "rfgsm"], "the attack rfgsm exists in linf, got the norm 'l1'"),
        (["--samples", "0"], "--samples must be at least 1, got 0"),
        (["--protocols", "attack"], "--protocols must be of attacks"),
        (["--stage", "adv_finetune"], "expected a checkpoint of adv_finetune, found none"),
        (["--data", "cifar10"], "--data is for models from outside, got cifar10; a run is evaluated on its own data"),
        (["--stage", "pretrain"], "expected a checkpoint with a classifier, found one of the stage pretrain"),
    ],
)
def test_what_the_user_can_mend_is_one_sentence(trained, arguments, message):
    before = rows(trained)
    with pytest.raises(UserError, match=message) as error:
        evaluate.main([str(trained), *arguments])
    assert "\n" not in str(error.value) and rows(trained) == before


def test_a_run_that_is_none_a_damaged_checkpoint_and_a_run_in_use(run, tmp_path):
    with pytest.raises(UserError, match="config.json: expected a file, found none"):
        evaluate.main([str(tmp_path)])
    with RunFolder(run).locked(), pytest.raises(UserError, match="in use by another process"):
        evaluate.main([str(run), "--attacks", "fgsm"])
    content = (run / "results.json").read_text()
    (run / "results.json").write_text(content[:-9])
    with pytest.raises(UserError, match="results.json: expected JSON"):
        evaluate.main([str(run), "--attacks", "fgsm"])
    (run / "results.json").write_text(content)
    weights = checkpoint.latest(run / "checkpoints") / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="truncated or altered"):
        evaluate.main([str(run)])


def test_weights_that_do_not_fit_are_named(run):
    path = checkpoint.latest(run / "checkpoints")
    saved = checkpoint.load(path)
    weights = {f"module.{key}" if "conv2" in key else key: value for key, value in saved.weights.items()}
    meta = {key: value for key, value in saved.meta.items() if key not in ("schema", "sha256")}
    checkpoint.save(run / "checkpoints", meta, weights, saved.state)
    with pytest.raises(UserError, match=r"Missing key\(s\).*conv2.*Unexpected key\(s\).*module\.encoder\.conv2"):
        evaluate.main([str(run)])


def test_a_measured_accuracy_does_not_depend_on_the_batch_size(run, tmp_path):
    out = [tmp_path / name for name in ("whole", "parts")]
    for folder, size in zip(out, ("500", "17"), strict=True):
        evaluate.main(
            [
                str(run),
                "--attacks",
                "pgd5",
                "--eps",
                "0.1",
                "--samples",
                "60",
                "--batch-size",
                size,
                "--out",
                str(folder),
            ]
        )
    assert [row["accuracy"] for row in rows(out[0])] == [row["accuracy"] for row in rows(out[1])]


def test_transfer_shows_every_pair_and_equal_names_are_refused(run, capsys):
    both = [str(run), str(run / "comparisons" / "random")]
    evaluate.main([*both, "--protocols", "transfer", "--eps", "0.1", "--samples", "20"])
    found = {(row["run"], row["attack"]) for row in rows(run) if str(row["attack"]).startswith("transfer")}
    assert found == {("main", "transfer:main"), ("main", "transfer:random")}
    assert "targets in rows, sources in columns" in capsys.readouterr().out
    other = shutil.copytree(run, run.parent / "elsewhere" / "main")
    with pytest.raises(UserError, match="expected a name of its own, but .* is 'main' too"):
        evaluate.main([str(run), str(other)])


def test_measures_have_a_file_of_their_own_with_formulas(run):
    both = [str(run), str(run / "comparisons" / "random")]
    command = [*both, "--protocols", "attacks,metrics", "--attacks", "fgsm", "--eps", "0.1", "--samples", "60"]
    evaluate.main([*command, "--gap", "random,main"])
    evaluate.main(command)  # replaces, and drops nothing
    content = json.loads((run / "measures.json").read_text())
    values = {(m["model"], m["name"], m["of"]): m["value"] for m in content["measures"]}
    assert len(values) == len(content["measures"]) == 2 * (6 + 1 + 1)
    for of in ("features", "embeddings"):
        assert 0 <= values["trained", "alignment", of] <= 4
        assert values["trained", "uniformity", of] < 0 < values["trained", "class_distance_ratio", of]
    of = "fgsm linf eps 0.1"
    found = {row["name"]: row["accuracy"] for row in rows(run) if row["model"] == "trained"}
    assert values["trained", "relative_drop", of] == (found["clean"] - found["fgsm"]) / found["clean"]
    assert values["trained", "gap_closed", f"{of}, random to main"] == 1
    assert values["random", "gap_closed", f"{of}, random to main"] == 0
    assert all(measure["formula"] for measure in content["measures"])
    with pytest.raises(UserError, match="metrics need images of two classes, two of one of them, got 1 images"):
        evaluate.main([str(run), "--protocols", "metrics", "--samples", "1"])
    with pytest.raises(UserError, match="--gap must name runs that are evaluated, got 'simclr'"):
        evaluate.main([*command, "--gap", "random,simclr"])


def test_the_drop_of_a_classifier_is_from_its_own_clean_accuracy():
    key = {"dataset": "d", "severity": None, "corruption": None, "norm": None, "eps": None, "flags": [], "samples": 9}
    clean = {**key, "attack": None, "name": "clean"}
    pgd = {**key, "attack": "pgd", "name": "pgd20", "norm": "linf", "eps": 0.1}
    worn = {**key, "attack": None, "name": "fog", "corruption": "fog", "severity": 5, "dataset": "d-c"}
    numbers = {"a": (0.8, 0.4, 0.6), "b": (0.5, 0.2, 0.1)}
    rows = [
        {**row, "run": run, "protocol": protocol, "accuracy": accuracy / (1 + index)}
        for run, values in numbers.items()
        for index, protocol in enumerate(["end_to_end" if run == "a" else "linear_eval", "adv_finetune"])
        for row, accuracy in zip((clean, pgd, worn), values, strict=True)
    ]
    rows.insert(2, {**clean, "run": "a", "protocol": "knn_features", "accuracy": 0.1})
    measures = list(accuracy_measures(rows, ["a", "b"]))
    relative = [measure for measure in measures if measure["name"] == "relative_drop"]
    drops = [(m["run"], m["protocol"], m["value"]) for m in relative if "pgd" in m["of"]]
    assert drops == [
        ("a", "end_to_end", pytest.approx(0.5)),
        ("a", "adv_finetune", pytest.approx(0.5)),
        ("b", "linear_eval", pytest.approx(0.6)),
        ("b", "adv_finetune", pytest.approx(0.6)),
    ]
    fog = [m["value"] for m in relative if "fog" in m["of"]]
    assert fog == pytest.approx([0.25, 0.25, 0.8, 0.8])
    assert sorted(m["value"] for m in measures if m["name"] == "gap_closed") == [0.0] * 4 + [1.0] * 4


def test_sweeps_corruptions_and_checks_leave_the_table_as_it_was(run, monkeypatch, capsys):
    # The whole sweep and all checks have tests of their own, and take seconds.
    monkeypatch.setattr(session, "steps_cases", partial(sweeps.steps_cases, steps=(0, 1, 20)))
    late = session.Check("no_fall_with_eps", None, "6 images")
    monkeypatch.setattr(session, "thorough_checks", lambda subject, norm, eps, others: [late])
    before = rows(run)
    evaluate.main([str(run), "--attacks", "pgd20", "--eps", "0.1", "--samples", "40"])
    table = next(row for row in rows(run) if row["name"] == "pgd20")
    protocols = "sweep_eps,sweep_steps,corruptions"
    settings = ["--samples", "40", "--severity", "5", "--corruption-types", "fog,contrast", "--sanity"]
    evaluate.main([str(run), "--protocols", protocols, "--eps", "0.1", *settings])
    found = rows(run)
    assert next(row for row in found if row["name"] == "pgd20" and row["eps"] == 0.1) == table
    assert {row["steps"] for row in found if "sweep" in row["flags"]} == {0, 1}
    assert [(row["corruption"], row["severity"]) for row in found if row["corruption"]] == [("fog", 5), ("contrast", 5)]
    assert len(found) == len(before) + 1 + (3 - 1) + 2  # one of the 3 step counts is in the table
    checks = json.loads((run / "sanity.json").read_text())["sanity"]
    assert {check["flag"]: check["found"] for check in checks}["zero_gradients"] is False
    assert checks[-1]["found"] is None and checks[-1]["detail"] == "6 images"
    output = capsys.readouterr().out
    assert "in the style of CIFAR-10-C: no number of a published table" in output
    assert "main no_fall_with_eps: undecided; 6 images" in output


def test_a_suspicion_is_printed_and_stored_with_every_row(run, monkeypatch, capsys):
    monkeypatch.setattr(session, "quick_checks", lambda subject: [session.Check("softmax_outputs", True, "sum to 1")])
    evaluate.main([str(run), "--attacks", "fgsm", "--eps", "0.2", "--samples", "20"])
    row = next(row for row in rows(run) if row["eps"] == 0.2)
    assert row["flags"] == ["subset", "softmax_outputs"]
    assert "RED FLAG main fgsm at eps 0.2: softmax_outputs" in capsys.readouterr().out


def test_a_model_that_gives_nan_is_named_and_the_rows_of_others_stay(run, tmp_path):
    broken = run / "comparisons" / "random"
    path = checkpoint.latest(broken / "checkpoints")
    saved = checkpoint.load(path)
    weights = {**saved.weights, "heads.classifier.bias": saved.weights["heads.classifier.bias"] * float("nan")}
    meta = {key: value for key, value in saved.meta.items() if key not in ("schema", "sha256")}
    checkpoint.save(broken / "checkpoints", meta, weights, saved.state)
    command = ["--attacks", "fgsm", "--eps", "0.1", "--samples", "9", "--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match="comparisons/random: the model must give finite logits, got NaN"):
        evaluate.main([str(run), str(broken), *command])
    assert [row["name"] for row in rows(tmp_path / "out")] == ["clean", "fgsm"]


def test_the_headline_admits_that_another_attack_went_lower():
    row = {"run": "r", "model": "trained", "norm": "linf", "eps": 0.1, "corruption": None, "flags": []}
    rows = [
        {**row, "attack": "autoattack", "name": "autoattack", "accuracy": 0.5, "flags": ["headline"]},
        {**row, "attack": "pgd", "name": "pgd20", "accuracy": 0.49},
        {**row, "attack": "transfer:s", "name": "pgd20 from s", "accuracy": 0.1},
    ]
    assert list(headlines(rows)) == [
        "r: headline at linf eps 0.1 is autoattack, 50.0%, yet pgd20 went lower: report its 49.0%"
    ]
    assert list(headlines(rows[:1])) == ["r: headline at linf eps 0.1 is autoattack, 50.0%"]


def test_every_radius_and_every_severity_has_its_own_numbers():
    shared = {
        "protocol": "linear_eval",
        "dataset": "digits",
        "norm": "linf",
        "flags": [],
        "severity": None,
        "corruption": None,
        "model": "trained",
    }
    rows = [
        {
            **shared,
            "run": run,
            "name": f"pgd20 from {source}",
            "attack": f"transfer:{source}",
            "eps": eps,
            "accuracy": a,
        }
        for eps, accuracies in ((0.1, (0.11, 0.12, 0.13, 0.14)), (0.2, (0.21, 0.22, 0.23, 0.24)))
        for (run, source), a in zip(product("ab", repeat=2), accuracies, strict=True)
    ]
    damaged = {**shared, "run": "a", "attack": None, "eps": None, "norm": None}
    for severity, (fog, snow) in {1: (0.9, 0.8), 5: (0.5, 0.4)}.items():
        rows += [
            {**damaged, "name": name, "corruption": name, "severity": severity, "accuracy": a}
            for name, a in (("fog", fog), ("snow", snow))
        ]
    console = Console(file=io.StringIO(), width=100)
    table.show([], rows, console)
    lines = [line.split() for line in console.file.getvalue().splitlines()]
    for eps, (first, second) in {"0.1": ("11.0 12.0", "13.0 14.0"), "0.2": ("21.0 22.0", "23.0 24.0")}.items():
        (at,) = (index for index, line in enumerate(lines) if line[:5] == ["transfer", "at", "linf", "eps", f"{eps}:"])
        body = [line for line in lines[at + 1 : at + 6] if line[:1] in (["a"], ["b"]) and len(line) == 3]
        assert body == [["a", *first.split()], ["b", *second.split()]]
    assert ["fog", "90.0", "50.0"] in lines and ["snow", "80.0", "40.0"] in lines


def test_an_absent_library_is_an_error_before_the_first_attack(trained, monkeypatch):
    before = rows(trained)
    monkeypatch.setattr(autoattack.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"need the library pyautoattack 0\.2\.0, found none"):
        evaluate.main([str(trained), "--attacks", "fgsm,square", "--eps", "0.1", "--samples", "9"])
    assert rows(trained) == before


def test_a_terminal_shows_how_many_images_were_attacked(run, monkeypatch):
    shown = Console(file=io.StringIO(), force_terminal=True, width=100)
    monkeypatch.setattr(report, "output_console", lambda: shown)
    evaluate.main([str(run), "--attacks", "pgd5,pgd6", "--eps", "0.3", "--samples", "60", "--batch-size", "16"])
    counts = [int(n) for n in re.findall(r"(\d+) images attacked", shown.file.getvalue())]
    right = next(row["accuracy"] for row in rows(run) if row["name"] == "clean") * 60
    assert max(counts) == 2 * round(right)  # what is wrong already is not attacked


def test_the_bar_of_a_training_ends_every_row_where_it_should():
    seen = []
    display = SimpleNamespace(update=lambda **values: seen.append((values["epoch"], values["step"], values["images"])))
    bar = stage._Bar(display, [30, 30, 30])
    bar.on_row()  # clean
    bar.on_batch(20)
    bar.on_batch(20)  # a restart: more images than the row has steps
    bar.on_row()
    bar.on_batch(5)  # the rest is broken already
    bar.on_row()
    bar.on_row()  # a headline
    assert seen == [(1, 30, 0), (2, 50, 20), (2, 60, 20), (2, 60, 0), (3, 65, 5), (3, 90, 0), (3, 90, 0)]
