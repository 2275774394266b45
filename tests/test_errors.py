"""How a command ends."""

import io
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from clead.errors import run_command


def test_output_that_the_encoding_lacks_is_escaped(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    monkeypatch.setattr(sys, "argv", ["prog"])
    with pytest.raises(SystemExit) as left:
        run_command(lambda argv: print("drew runs/☃.png", flush=True))
    assert left.value.code == 0
    assert written.getvalue() == b"drew runs/\\u2603.png\n"


def test_ctrl_c_during_the_imports_is_one_line():
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "clead.train", "--list"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[1],
    )
    for line in process.stderr:
        if "torch." in line:  # the first part of torch has just been imported
            process.send_signal(signal.SIGINT)
            break
    out, rest = process.communicate(timeout=300)
    assert (process.returncode, out) == (130, "")
    assert [line for line in rest.splitlines() if not line.startswith("import time:")] == ["interrupted"]


def test_a_reader_that_leaves_is_no_error():
    code = "from clead.errors import run_command; run_command(lambda argv: [print('x' * 999) for _ in range(999)])"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).resolve().parents[1],
    )
    process.stdout.read(10)
    process.stdout.close()
    assert (process.stderr.read(), process.wait(timeout=300)) == (b"", 128 + signal.SIGPIPE)
    process.stderr.close()
