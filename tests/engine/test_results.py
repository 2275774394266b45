import math

import pytest

from clead.engine.results import KEY, make_row, read_results, renamed, row_key, wilson, write_results
from clead.errors import UserError


def test_wilson_against_published_numbers():
    # Newcombe 1998 (Statistics in Medicine 17:857), table I, method 3: 81/263, 15/148, 0/20, 1/29.
    for correct, samples, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        found = wilson(correct, samples)
        assert math.isclose(found[0], low, abs_tol=5e-5) and math.isclose(found[1], high, abs_tol=5e-5)


def test_a_row_has_every_key_and_nothing_else(tmp_path):
    row = make_row(name="pgd20", correct=3, samples=4, seconds=1.23456, run="r", model="trained", attack="pgd", eps=0.1)
    assert set(row) == {*KEY, "name", "accuracy", "samples", "low", "high", "flags", "seconds"}
    assert row["accuracy"] == 0.75 and row["corruption"] is None
    with pytest.raises(TypeError, match="epsilon"):
        make_row(name="x", correct=1, samples=1, seconds=0.0, epsilon=1)
    write_results(tmp_path / "results.json", [row])
    assert read_results(tmp_path / "results.json") == [row]
    assert row_key(row)[:2] == ("r", "trained")


def test_malformed_results_name_the_file(tmp_path):
    file = tmp_path / "results.json"
    assert read_results(file) == []
    file.write_text("{")
    with pytest.raises(UserError, match=r"results\.json: expected JSON"):
        read_results(file)
    file.write_text('{"schema": 2}')
    with pytest.raises(UserError, match="expected schema 1, found 2: a newer clead wrote it"):
        read_results(file)
    file.write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"results\.json: expected JSON"):
        read_results(file)
    for content in ('{"schema": 1}', '{"schema": 1, "results": [3]}', '{"schema": 1, "results": [{"eps": [1]}]}'):
        file.write_text(content)
        with pytest.raises(UserError, match=r"results\.json: expected (a list|row 0)"):
            read_results(file)


def test_a_renamed_run_takes_its_own_attacks_along_and_no_others():
    row = {"run": "a.b (1)", "attack": "transfer:a.b (1)", "name": "pgd20 from a.b (1)", "accuracy": 0.5}
    assert renamed(row, r"new\1") == {
        **{"run": r"new\1", "attack": r"transfer:new\1", "name": r"pgd20 from new\1"},
        "accuracy": 0.5,
    }
    measure = {"run": "old", "of": "pgd20 from old linf eps 0.1"}
    assert renamed(measure, "new") == {"run": "new", "of": "pgd20 from new linf eps 0.1"}
    others = {"run": "old", "attack": "transfer:older", "name": "pgd20 from older"}
    assert renamed(others, "new") == {**others, "run": "new"}
