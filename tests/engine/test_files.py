import errno

import pytest

from clead.engine.files import read_json, write_atomic
from clead.errors import UserError


def test_a_failed_write_names_the_file_that_was_asked_for(tmp_path):
    for file in (tmp_path / "missing" / "x.json", tmp_path / "folder"):
        (tmp_path / "folder").mkdir(exist_ok=True)
        with pytest.raises(OSError) as failed:
            write_atomic(file, b"data")
        assert failed.value.filename == str(file)
        assert failed.value.errno in (errno.ENOENT, errno.EISDIR)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_what_is_found_stays_on_one_line(tmp_path):
    (tmp_path / "a.json").write_text('{"schema": "\\n1"}')
    with pytest.raises(UserError, match=r"a\.json: expected an object with schema 1, found '\\n1'$"):
        read_json(tmp_path / "a.json", schema=1)
