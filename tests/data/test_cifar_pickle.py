import hashlib
import io
import os
import pickle
import struct
from functools import partial

import numpy as np
import pytest

from clead.data import cifar10, load_cifar10
from clead.errors import UserError


class Python2Pickler(pickle._Pickler):
    """Writes what Python 2's cPickle wrote: str as 8-bit strings."""

    def save_bytes(self, obj):
        if len(obj) < 256:
            self.write(b"U" + bytes([len(obj)]) + obj)
        else:
            self.write(b"T" + struct.pack("<i", len(obj)) + obj)
        self.memoize(obj)

    dispatch = pickle._Pickler.dispatch | {bytes: save_bytes}


def official(batch) -> bytes:
    """A batch as published in 2009, numpy under the name it had then."""
    buffer = io.BytesIO()
    Python2Pickler(buffer, protocol=2).dump(batch)
    return buffer.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def as_batch(rows, **changes) -> dict:
    fields = {
        "batch_label": b"training batch 1 of 5",
        "labels": rows[:, 0].astype(int).tolist(),
        "data": np.ascontiguousarray(rows[:, 1:]),
        "filenames": [f"leptodactylus_pentadactylus_s_{i:06}.png".encode() for i in range(len(rows))],
    }
    return {name.encode(): value for name, value in (fields | changes).items()}


def write(folder, rows, dumps):
    folder = folder / "cifar-10-batches-py"
    folder.mkdir()
    for name, batch in rows.items():
        (folder / name).write_bytes(dumps(as_batch(batch)))
    return folder


@pytest.mark.parametrize(
    "dumps",
    [official, *(partial(pickle.dumps, protocol=protocol) for protocol in range(2, 6))],
    ids=["python2", "protocol2", "protocol3", "protocol4", "protocol5"],
)
def test_every_pickle_form_gives_what_the_binary_form_gives(tmp_path, binary_dir, rows, dumps):
    expected = load_cifar10(binary_dir, val_size=10)
    found = load_cifar10(write(tmp_path, rows, dumps), val_size=10)
    for split in ("train", "val", "test"):
        np.testing.assert_array_equal(getattr(found, split).images, getattr(expected, split).images)
        np.testing.assert_array_equal(getattr(found, split).labels, getattr(expected, split).labels)


def test_text_keys_and_column_order_are_read_too(tmp_path, rows):
    def dumps(batch):
        batch = {key.decode(): value for key, value in batch.items()}
        return pickle.dumps(batch | {"data": np.asfortranarray(batch["data"])}, protocol=4)

    splits = load_cifar10(write(tmp_path, rows, dumps), val_size=0)
    np.testing.assert_array_equal(splits.test.images, rows["test_batch"][:, 1:].reshape(-1, 3, 32, 32))


def test_an_altered_pixel_is_found_whatever_the_pickle_looks_like(tmp_path, rows, monkeypatch):
    digest = hashlib.sha256(rows["data_batch_4"].tobytes()).hexdigest()
    monkeypatch.setattr(cifar10, "SHA256", {"data_batch_4": digest})
    folder = write(tmp_path, rows, official)
    load_cifar10(folder, val_size=10)
    rows["data_batch_4"][0, 7] ^= 1
    (folder / "data_batch_4").write_bytes(official(as_batch(rows["data_batch_4"])))
    with pytest.raises(UserError, match=f"data_batch_4: altered: .*{digest}"):
        load_cifar10(folder, val_size=10)


class Call:
    """Pickles as a call of ``function``."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize(
    "call, name",
    [
        (Call(os.mkdir, "harm"), ".mkdir"),
        (Call(eval, "1"), ".eval"),
        (Call(getattr, "", "join"), ".getattr"),
        (Call(np.zeros, 3), "numpy.zeros"),
        (np.uint8(3), ".scalar"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_that_calls_anything_is_refused_and_named(tmp_path, rows, monkeypatch, call, name, protocol):
    monkeypatch.chdir(tmp_path)
    folder = write(tmp_path, rows, official)
    harmful = pickle.dumps(as_batch(rows["data_batch_2"], batch_label=call), protocol=protocol)
    (folder / "data_batch_2").write_bytes(harmful)
    with pytest.raises(UserError, match="data_batch_2: expected only arrays.*, which is refused") as caught:
        load_cifar10(folder, val_size=10)
    assert name in str(caught.value)
    assert not (tmp_path / "harm").exists()


def test_nothing_admitted_is_a_function_of_numpy_or_a_codec():
    from clead.data.cifar_pickle import _ADMITTED

    assert all(stand_in.__module__ == "clead.data.cifar_pickle" for stand_in in _ADMITTED.values())


def filled(value: dict) -> bytes:
    """Pickled, and of a possible size."""
    return pickle.dumps(value | {b"fill": b" " * max(0, 25_000 - len(pickle.dumps(value, protocol=4)))}, protocol=4)


def object_array(rows):
    array = np.empty((len(rows), 3072), object)
    array[:] = 1
    return array


@pytest.mark.parametrize(
    "changes, found",
    [
        (lambda rows: {"data": rows[:, 1:].astype(np.uint16)}, r"found u2 \(8, 3072\)"),
        (lambda rows: {"data": rows[1:, 1:]}, r"found u1 \(7, 3072\)"),
        (lambda rows: {"data": rows[:, :3072].reshape(8, 1, 3072)}, r"found u1 \(8, 1, 3072\)"),
        (lambda rows: {"data": object_array(rows)}, r"found O8 \(8, 3072\)"),
        (lambda rows: {"data": rows[:, 1:].tobytes()}, "found bytes"),
        (lambda rows: {"labels": [0] * 7}, "expected a list of 8 labels, found 7"),
        (lambda rows: {"labels": bytes(8)}, "expected a list of 8 labels, found bytes"),
        (lambda rows: {"labels": [0] * 7 + [10]}, "expected labels 0 to 9, found 10 at image 7"),
        (lambda rows: {"labels": [-1] * 8}, "expected labels from 0 on, found -1 at image 0"),
        (lambda rows: {"labels": [0] * 7 + [2.0]}, "expected labels from 0 on, found 2.0 at image 7"),
    ],
)
def test_wrong_contents_are_named(tmp_path, rows, changes, found):
    folder = write(tmp_path, rows, official)
    batch = as_batch(rows["data_batch_1"], **changes(rows["data_batch_1"]))
    (folder / "data_batch_1").write_bytes(filled(batch))
    with pytest.raises(UserError, match=rf"data_batch_1: .*{found}"):
        load_cifar10(folder, val_size=10)


@pytest.mark.parametrize(
    "value, found",
    [(list(range(10_000)), "found list"), ({"labels": list(range(10_000))}, r"found the keys \['labels'\]")],
)
def test_something_else_in_a_pickle_is_named(tmp_path, rows, value, found):
    folder = write(tmp_path, rows, official)
    (folder / "data_batch_1").write_bytes(pickle.dumps(value))
    with pytest.raises(UserError, match=f"data_batch_1: expected a dict with data and labels, {found}"):
        load_cifar10(folder, val_size=10)


@pytest.mark.parametrize("cut", [24_577, 24_900, -2])
def test_a_truncated_pickle_is_named(tmp_path, rows, cut):
    folder = write(tmp_path, rows, official)
    path = folder / "test_batch"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match="test_batch: expected a complete pickle, found damage"):
        load_cifar10(folder, val_size=10)


@pytest.mark.parametrize("size", [10, 10**6])
def test_a_file_of_an_impossible_size_is_not_unpickled(tmp_path, rows, size):
    folder = write(tmp_path, rows, official)
    (folder / "test_batch").write_bytes(bytes(size))
    with pytest.raises(UserError, match=rf"test_batch: expected 24,576 to 69,152 bytes, found {size:,}"):
        load_cifar10(folder, val_size=10)


def test_random_damage_is_always_one_sentence(tmp_path, rows):
    folder = write(tmp_path, rows, official)
    path = folder / "data_batch_1"
    good = path.read_bytes()
    generator = np.random.default_rng(1)
    for _ in range(300):
        data = bytearray(good)
        head = (
            generator.integers(0, 300) if generator.random() < 0.5 else generator.integers(len(data) - 600, len(data))
        )
        data[head] = generator.integers(0, 256)
        path.write_bytes(data)
        try:
            load_cifar10(folder, val_size=10)
        except UserError as error:
            assert "\n" not in str(error)
