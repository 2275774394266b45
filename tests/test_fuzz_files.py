"""Files that anyone may have written: read correctly, or refused in one sentence; never a crash or a full memory.

Every reader gets a good file with bytes or JSON values changed. What the checksums of a checkpoint would catch is tried
with checksums that fit, as an attacker would write them.
"""

import hashlib
import io
import json
import os
import pickle
import resource
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save as save_tensors

from clead.cli import config_values, read_config
from clead.data import decoded, download
from clead.data.cifar_pickle import read_pickle
from clead.doctor.repro import _read as read_repro
from clead.engine import checkpoint
from clead.engine.results import make_row, read_results
from clead.engine.run import RunFolder
from clead.errors import UserError
from clead.figures import files as figure_files
from clead.models import BatchNormConfig, ResNet
from clead.models.official import read_official
from clead.protocols.corruptions import official
from clead.recipes import RECIPES

BOUND = 500 << 20  # bytes that all readers together may add to the process
MANY = int(os.environ.get("CLEAD_FUZZ", 0))  # inputs of each reader in the slow set; 100000 takes two hours


# A good file and its reader: (folder to write to) -> nothing; the reader gets the folder and the changed bytes.


def batch():
    rows = np.zeros((8, 3072), np.uint8)
    return {b"labels": list(range(8)), b"data": rows, b"filenames": [b"a.png"] * 8}


def read_batch(folder, data):
    (folder / "batch").write_bytes(data)
    rows = read_pickle(folder / "batch", 8)
    assert rows.shape == (8, 3073) and rows.dtype == np.uint8


def archive():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in ("set/a", "set/b"):
            member = tarfile.TarInfo(name)
            member.size = 3
            tar.addfile(member, io.BytesIO(b"123"))
    return buffer.getvalue()


def read_archive(folder, data):
    (folder / "x.tar.gz").write_bytes(data)
    target = folder / "target"
    target.mkdir(exist_ok=True)
    download.unpack(folder / "x.tar.gz", target, {"set/a": 3, "set/b": 3})
    assert sorted(path.name for path in target.iterdir()) == ["set"]
    assert sorted(path.name for path in (target / "set").iterdir()) == ["a", "b"]


def checkpoint_of(folder):
    meta = {"stage": "pretrain", "step": 3, "epoch": 1, "model": {"method": "ce"}}
    weights = {"a": torch.arange(6.0).view(2, 3), "b": torch.zeros(2, dtype=torch.int64)}
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    parameter.grad = torch.ones(3)
    optimizer.step()
    return checkpoint.save(folder, meta, weights, {"optimizer": optimizer.state_dict(), "best": {"epoch": 1}})


def read_part(part):
    def read(folder, data):
        path = folder / "pretrain-00000003"
        if not path.exists():
            checkpoint_of(folder)
        file, meta_file = path / part, path / "meta.json"
        file.write_bytes(data)
        if part != "meta.json":
            meta = json.loads(meta_file.read_text())
            meta["sha256"][part] = hashlib.sha256(data).hexdigest()
            meta_file.write_text(json.dumps(meta))
        loaded = checkpoint.load(path)
        assert all(isinstance(value, torch.Tensor) for value in loaded.weights.values())

    return read


def results():
    rows = [make_row(name="clean", correct=c, samples=9, seconds=0.1, run="r", model="trained", seed=c) for c in (1, 2)]
    return json.dumps({"schema": 1, "results": rows}).encode()


def read_rows(folder, data):
    (folder / "results.json").write_bytes(data)
    for read in (lambda: read_results(folder / "results.json"), lambda: figure_files.read_results(folder)):
        refuse(read)


def metrics():
    lines = [{"stage": "pretrain", "epoch": 1, "step": n, "loss": 0.5, "metrics": {"a": 1.0}} for n in (1, 2, 3)]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def read_lines(folder, data):
    for read in (
        lambda: RunFolder(folder).rewind_metrics("pretrain", 2),
        lambda: figure_files.read_metrics(folder),
    ):
        (folder / "metrics.jsonl").write_bytes(data)
        refuse(read)


def config():
    recipe = RECIPES["clead_digits"]
    values = config_values(recipe.config)
    return json.dumps({"schema": 1, "method": "clead", "recipe": recipe.name, "values": values}).encode()


def read_configuration(folder, data):
    (folder / "config.json").write_bytes(data)
    read_config(folder / "config.json")


def examples():
    images, labels = torch.rand(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64)
    names = ("labels", "clean_prediction", "adversarial_prediction")
    tensors = {"clean": images, "adversarial": images.clone()} | {name: labels.clone() for name in names}
    return save_tensors(tensors, {"attack": "pgd20", "eps": "0.1", "model": "trained"})


def read_images(folder, data):
    (folder / "examples.safetensors").write_bytes(data)
    figure_files.read_examples(folder)


def numbers():
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((4, 2), np.uint8))
    return buffer.getvalue()


def read_numbers(folder, data):
    (folder / "fog.npy").write_bytes(data)
    assert np.array(official._read(folder / "fog.npy", (4, 2))).shape == (4, 2)


def repro():
    meta = {"schema": 1, "stage": "pretrain", "model": {}, "batch": {"step": 1, "seed": 0, "progress": 0.5}}
    return save_tensors({"batch.images": torch.rand(2, 3)}, {"meta": json.dumps(meta), "config": "{}"})


def read_batch_of_a_step(folder, data):
    (folder / "nonfinite.safetensors").write_bytes(data)
    read_repro(folder / "nonfinite.safetensors")


def picture(kind):
    buffer = io.BytesIO()
    Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3)).save(buffer, kind)
    return buffer.getvalue()


def read_picture(folder, data):
    (folder / "x.png").write_bytes(data)
    image = decoded._image(folder / "x.png", 8)
    assert image.shape == (3, 8, 8) and image.dtype == np.uint8


def official_file(zipped):
    """MoCo's encoder of the smallest ResNet-18."""
    encoder = ResNet(18, in_channels=1, mean=(0.5,), std=(0.5,), bn=BatchNormConfig(), width=1, stem="imagenet")
    weights = {key.replace(".branch.clean", ""): value for key, value in encoder.state_dict().items()}
    saved = {"state_dict": {f"module.encoder_q.{key}": value for key, value in weights.items()}, "epoch": 3}
    buffer = io.BytesIO()
    torch.save(saved, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def read_official_file(folder, data):
    (folder / "x.pt").write_bytes(data)
    assert read_official(folder / "x.pt", "moco").encoder.feature_dim == 8


def head_file():
    return save_tensors({"module.linear.weight": torch.rand(2, 8), "module.linear.bias": torch.rand(2)})


def read_head_file(folder, data):
    if not (folder / "x.pt").exists():
        (folder / "x.pt").write_bytes(official_file(True))
    (folder / "head.safetensors").write_bytes(data)
    model = read_official(folder / "x.pt", "moco", head=folder / "head.safetensors")
    assert model.heads["classifier"].in_features == 8


def part_of_a_checkpoint(part):
    def good():
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            return (checkpoint_of(Path(folder)) / part).read_bytes()

    return good


READERS = {
    "pickle 2": (lambda: pickle.dumps(batch(), protocol=2), read_batch),
    "pickle 5": (lambda: pickle.dumps(batch(), protocol=5), read_batch),
    "archive": (archive, read_archive),
    "weights": (part_of_a_checkpoint("weights.safetensors"), read_part("weights.safetensors")),
    "state": (part_of_a_checkpoint("state.pt"), read_part("state.pt")),
    "meta": (part_of_a_checkpoint("meta.json"), read_part("meta.json")),
    "results": (results, read_rows),
    "metrics": (metrics, read_lines),
    "config": (config, read_configuration),
    "examples": (examples, read_images),
    "npy": (numbers, read_numbers),
    "png": (lambda: picture("PNG"), read_picture),
    "jpeg": (lambda: picture("JPEG"), read_picture),
    "webp": (lambda: picture("WEBP"), read_picture),
    "official": (lambda: official_file(True), read_official_file),
    "official, old": (lambda: official_file(False), read_official_file),
    "official head": (head_file, read_head_file),
    "repro": (repro, read_batch_of_a_step),
}
JSON = {"meta", "results", "config"}


def refuse(read):
    """Call a reader; a UserError of one line is fine, and nothing else is."""
    try:
        read()
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 2000, str(error)


odd = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=20), st.just("--help"),
    st.just([]), st.just({}), st.lists(st.integers(), max_size=3), st.just("os.system"), st.just("../../x"),
    st.integers(1, 3000).map(lambda depth: json.loads("[" * min(depth, 500) + "]" * min(depth, 500))),
)  # fmt: skip


@st.composite
def changed_bytes(draw, good):
    data = bytearray(good)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        length = draw(st.integers(0, 9))
        kind = draw(st.sampled_from(("flip", "write", "delete", "insert", "repeat", "cut", "number")))
        if kind == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "write":
            data[at : at + length] = draw(st.binary(min_size=length, max_size=length))
        elif kind == "number":  # a length or an index in one of the usual forms
            form, value = draw(st.sampled_from(("<I", "<Q", "<i", ">I"))), draw(st.integers(0, 2**31 - 1))
            packed = struct.pack(form, value)
            data[at : at + len(packed)] = packed
        elif kind == "delete":
            del data[at : at + length]
        elif kind == "insert":
            data[at:at] = draw(st.binary(max_size=length))
        elif kind == "repeat":
            data[at:at] = data[at : at + length] * draw(st.integers(1, 20))
        else:
            del data[at:]
    return bytes(data)


@st.composite
def changed_json(draw, good):
    value = json.loads(good)
    for _ in range(draw(st.integers(1, 3))):
        holder = value
        while True:
            keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(holder[key], (dict, list)) and draw(st.booleans()):
                holder = holder[key]
                continue
            if draw(st.integers(0, 4)) == 0:
                del holder[key]
            else:
                holder[key] = draw(odd)
            break
    return json.dumps(value).encode()


def fuzz(name, folder, examples):
    make, read = READERS[name]
    good = make()
    read(folder, good)
    changed = changed_bytes(good)
    if name in JSON:
        changed = changed_bytes(good) | changed_json(good)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(data=changed)
    def run(data):
        refuse(lambda: read(folder, data))

    run()
    assert 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) < BOUND


@pytest.mark.parametrize("name", READERS)
def test_a_changed_file_is_read_or_refused(name, tmp_path):
    fuzz(name, tmp_path, 10 if name == "config" else 60)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_a_changed_file_is_read_or_refused_a_hundred_thousand_times_in_all(name, tmp_path):
    fuzz(name, tmp_path, MANY or (1000 if name == "config" else 6600))


# What failed once, or would with the usual readers.


def operations(*parts):
    return b"\x80\x04" + b"".join(parts) + b"."


BOMBS = {
    "an index that fills the memory": operations(b"]r\xff\xff\xff\x7f"),
    "deep tuples as a key": operations(b"}", b")" + b"\x85" * 40_000, b"K\x01s"),
    "deep tuples": operations(b")" + b"\x85" * 40_000),
    "text encoded again and again": operations(
        b"X\x10\x27\x00\x00" + b"a" * 10_000 + b"\x94",
        b"c_codecs\nencode\nq\x01",
        b"h\x01h\x00X\x06\x00\x00\x00latin1\x86R0" * 0 + b"h\x01h\x00\x8c\x06latin1\x86R" * 2000,
    ),
    "more lists than a batch has": operations(b"]" * 300_000),
    "a frame beyond the end": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",
    "bytes beyond the end": operations(b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f"),
    "an integer of 20,000 digits": b"I" + b"9" * 20_000 + b"\n.",
    "no end": b"\x80\x04]",
    "nothing": b"",
    "an extension of copyreg": operations(b"\x82\x01"),
    "a class by instance": b"(i__main__\nX\n.",
}


@pytest.mark.parametrize("data", BOMBS.values(), ids=BOMBS)
def test_a_pickle_that_would_fill_the_memory_or_the_stack_is_refused(data, tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="expected"):
        read_batch(tmp_path, data)
    assert 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) < 100 << 20


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("archive", b"neither packed nor a tar"),
        ("npy", b"\x93NUMPY\x01\x00\x0a\x00{(\x00(\x00(\x00(\x00\n"),
        ("npy", b"PK\x03\x04 an archive"),
        ("meta", part_of_a_checkpoint("meta.json")().replace(b'"pretrain"', b'"\\n"')),
    ],
)
def test_what_failed_once(name, data, tmp_path):
    with pytest.raises(UserError, match="expected") as refused:
        READERS[name][1](tmp_path, data)
    assert "\n" not in str(refused.value)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("size", "expected"), [((80_000_000, 1), "expected less of a strip"), ((10_001, 10_000), "expected at most")]
)
def test_an_image_that_would_fill_the_memory_is_refused_before_it_is_decoded(size, expected, tmp_path):
    parts = (struct.pack(">4sIIBBBBB", b"IHDR", *size, 1, 0, 0, 0, 0), b"IDAT" + zlib.compress(b""))
    body = b"".join(struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts)
    with pytest.raises(UserError, match=expected):
        read_picture(tmp_path, b"\x89PNG\r\n\x1a\n" + body)


class Harm:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_a_state_that_calls_something_is_refused(tmp_path):
    buffer = io.BytesIO()
    torch.save({"optimizer": {"x": Harm(tmp_path / "harm")}}, buffer)
    with pytest.raises(UserError, match=r"state\.pt: expected a state of tensors and numbers, found"):
        read_part("state.pt")(tmp_path, buffer.getvalue())
    assert not (tmp_path / "harm").exists()


def test_a_state_that_unpacks_to_more_than_it_is_is_refused(tmp_path):
    buffer, packed = io.BytesIO(), io.BytesIO()
    torch.save({"optimizer": {"x": torch.zeros(10_000_000)}}, buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert len(packed.getvalue()) < 100_000
    with pytest.raises(UserError, match=r"state\.pt: expected the state of an optimiser, found NoneType"):
        read_part("state.pt")(tmp_path, packed.getvalue())


@pytest.mark.parametrize("depth", [500, 100_000])
def test_deep_json_is_refused(depth, tmp_path):
    file = tmp_path / "results.json"
    file.write_text('{"schema": 1, "results": [' + "[" * depth + "]" * depth + "]}")
    with pytest.raises(UserError, match=r"results\.json: expected"):
        read_results(file)
    with pytest.raises(UserError, match=r"results\.json: expected"):
        figure_files.read_results(tmp_path)


def test_json_without_an_end_is_refused():
    with pytest.raises(UserError, match="/dev/zero: expected JSON of at most 67,108,864 bytes, found more"):
        read_results(Path("/dev/zero"))
