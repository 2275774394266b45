"""What a result says of where it was computed."""

import json
import subprocess

import torch

from clead.engine import environment


def test_an_installed_copy_does_not_name_the_commit_of_the_repository_around_it(tmp_path, monkeypatch):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    (tmp_path / "environment.py").touch()
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "environment.py"))
    assert (environment.environment()["commit"], environment.environment()["dirty"]) == (None, None)
    subprocess.run([*git, "add", "environment.py"], check=True)
    assert len(environment.environment()["commit"]) == 40 and environment.environment()["dirty"]


def test_another_version_or_device_is_named():
    here = environment.fingerprint(torch.device("cpu"))
    assert json.loads(json.dumps(here)) == here
    assert environment.changes(here, here) is None
    other = here | {"torch": "2.12.0", "threads": 64}
    expected = f"torch was 2.12.0 and is {torch.__version__}, threads was 64 and is {torch.get_num_threads()}"
    assert environment.changes(other, here) == expected
    assert environment.changes(None, here) == "the environment it was trained in is unknown"
