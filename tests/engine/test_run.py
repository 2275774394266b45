import json

import pytest

from clead.engine.run import RunFolder
from clead.errors import UserError


def create(path, **options):
    return RunFolder.create(path, **{"resume": False, "overwrite": False, **options})


def test_an_existing_run_needs_resume_or_overwrite(tmp_path):
    path = tmp_path / "run"
    with create(path) as folder:
        folder.write_config("ce", "ce_digits", {})
        folder.log(stage="pretrain", step=1)
        folder.finish_stage("pretrain")
        assert json.loads((path / "run.json").read_text()) == {"schema": 1, "state": "running", "stages": ["pretrain"]}
    assert json.loads((path / "run.json").read_text())["state"] == "done"
    with pytest.raises(UserError, match="pass --resume, --overwrite or another --out"):
        create(path)
    with create(path, resume=True) as folder:
        assert folder.stages == ["pretrain"]
    with create(path, overwrite=True) as folder:
        assert folder.stages == [] and not (path / "metrics.jsonl").exists()


def test_other_peoples_folders_are_refused_even_with_overwrite(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="expected an empty folder or a run folder"):
        create(tmp_path, overwrite=True)
    with pytest.raises(UserError, match="expected a folder for the run, found a file"):
        create(tmp_path / "thesis.tex", overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_a_name_that_no_figure_can_show_is_refused(tmp_path):
    for name in ("run\udcff", "run\n"):
        with pytest.raises(UserError, match="expected a folder name of printable UTF-8 characters"):
            create(tmp_path / name)
    create(tmp_path / "a ☃é run").close()
    assert [path.name for path in tmp_path.iterdir()] == ["a ☃é run"]


def test_a_run_folder_in_use_is_refused(tmp_path):
    with create(tmp_path / "run"), pytest.raises(UserError, match="in use by another process"):
        create(tmp_path / "run", resume=True)
    create(tmp_path / "run", resume=True).close()


def test_claiming_a_folder_removes_what_a_killed_process_left(tmp_path):
    path = tmp_path / "run"
    create(path).close()
    for leftover in (".tmp-run.json", "checkpoints/.tmp-pretrain-00000009/.tmp-meta.json", "figures/.tmp-x-1.png"):
        (path / leftover).parent.mkdir(parents=True, exist_ok=True)
        (path / leftover).write_text("half")
    create(path, resume=True).close()
    assert list(path.rglob(".tmp-*")) == []
    assert (path / "checkpoints").is_dir()


def test_adding_results_tidies_up_in_run_folders_only(tmp_path):
    for name in ("run", "home"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / ".tmp-x").touch()
    (tmp_path / "run" / "config.json").touch()
    (tmp_path / "run" / "comparisons").mkdir()
    (tmp_path / "run" / "comparisons" / ".tmp-y").touch()  # of a run of its own, which may be under way
    for name in ("run", "home"):
        with RunFolder(tmp_path / name).locked():
            pass
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob(".tmp-*"))
    assert left == ["home/deep/.tmp-x", "run/comparisons/.tmp-y"]


def test_overwriting_removes_a_link_but_not_what_it_points_to(tmp_path):
    path, elsewhere = tmp_path / "run", tmp_path / "large disk"
    create(path).close()
    elsewhere.mkdir()
    (elsewhere / "precious").touch()
    (path / "checkpoints").symlink_to(elsewhere)
    create(path, overwrite=True).close()
    assert not (path / "checkpoints").exists() and (elsewhere / "precious").exists()


def test_overwriting_ends_with_what_a_resumed_run_relies_on(tmp_path, monkeypatch):
    path = tmp_path / "run"
    with create(path) as folder:
        folder.write_config("ce", "ce_digits", {})
        folder.finish_stage("pretrain")
    (path / "checkpoints").mkdir()
    (path / "metrics.jsonl").touch()
    unlink, gone = type(path).unlink, []
    monkeypatch.setattr(type(path), "unlink", lambda self, **_: (gone.append(self.name), unlink(self))[1])
    create(path, overwrite=True).close()
    # Killed in between, it is a run that was begun with the old configuration, and no finished one without weights.
    assert gone[0] == "run.json" and gone[-1] == "config.json"


def test_a_full_disk_is_named_once_and_the_lock_is_let_go(tmp_path):
    with pytest.raises(OSError, match=r"No space left.*metrics\.jsonl") as refused, create(tmp_path / "run") as folder:
        (folder.path / "metrics.jsonl").symlink_to("/dev/full")
        folder.log(stage="pretrain", step=1)
    assert refused.value.filename.endswith("metrics.jsonl")
    create(tmp_path / "run", resume=True).close()


def test_a_failed_run_says_so(tmp_path):
    with pytest.raises(ValueError, match="boom"), create(tmp_path / "run"):
        raise ValueError("boom")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["state"] == "failed"


def test_rewinding_forgets_later_steps_and_the_line_a_crash_cut(tmp_path):
    with create(tmp_path / "run") as folder:
        for step in (1, 2, 3):
            folder.log(stage="pretrain", step=step)
        folder.log(stage="linear_eval", step=1)
        file = folder.path / "metrics.jsonl"
        with file.open("a") as torn:
            torn.write('{"stage": "linear_ev')
        folder.rewind_metrics("pretrain", 2)
        folder.log(stage="pretrain", step=4)
        assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [1, 2, 4]


def test_a_classifier_done_later_leaves_the_lines_of_the_others(tmp_path):
    with create(tmp_path / "run") as folder:
        for stage in ("pretrain", "adv_finetune", "linear_eval"):
            folder.log(stage=stage, step=1)
            folder.log(stage=stage, step=2)
        folder.rewind_metrics("linear_eval", 1)
        lines = (folder.path / "metrics.jsonl").read_text().splitlines()
        entries = [json.loads(line) for line in lines]
        assert [(entry["stage"], entry["step"]) for entry in entries] == [
            ("pretrain", 1),
            ("pretrain", 2),
            ("adv_finetune", 1),
            ("adv_finetune", 2),
            ("linear_eval", 1),
        ]


@pytest.mark.parametrize(
    "line", ["[]", "{}", '{"stage": "foo", "step": 1}', '{"stage": "pretrain", "step": "1"}', "\xff"]
)
def test_a_damaged_line_of_the_metrics_is_named(line, tmp_path):
    with create(tmp_path / "run") as folder:
        file = folder.path / "metrics.jsonl"
        file.write_bytes(line.encode("latin1") + b'\n{"stage": "pretrain", "step": 2}\n')
        with pytest.raises(UserError, match=r"metrics\.jsonl: expected an object with stage and step on line 1"):
            folder.rewind_metrics("pretrain", 2)


@pytest.mark.parametrize("stages", ["", ', "stages": 3', ', "stages": ["pretain"]', ', "stages": [[]]'])
def test_a_damaged_state_is_named(stages, tmp_path):
    create(tmp_path / "run").close()
    (tmp_path / "run" / "run.json").write_text(f'{{"schema": 1, "state": "done"{stages}}}')
    with (
        pytest.raises(UserError, match=r"run\.json: expected under stages a list"),
        create(tmp_path / "run", resume=True),
    ):
        pass


def test_a_result_with_the_same_key_replaces_the_older_one(tmp_path):
    from clead.engine.results import make_row

    with create(tmp_path / "run") as folder:
        for correct in (1, 2):
            folder.add_results([make_row(name="clean", correct=correct, samples=2, seconds=0.0, run="r")])
        folder.add_results([make_row(name="fgsm", correct=0, samples=2, seconds=0.0, run="r", attack="fgsm")])
        assert [row["accuracy"] for row in folder.results] == [1.0, 0.0]
