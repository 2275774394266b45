import errno

import pytest

from clead.engine.files import write_atomic


def test_a_failed_write_names_the_file_that_was_asked_for(tmp_path):
    for file in (tmp_path / "missing" / "x.json", tmp_path / "folder"):
        (tmp_path / "folder").mkdir(exist_ok=True)
        with pytest.raises(OSError) as failed:
            write_atomic(file, b"data")
        assert failed.value.filename == str(file)
        assert failed.value.errno in (errno.ENOENT, errno.EISDIR)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
