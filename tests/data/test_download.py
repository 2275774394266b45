import hashlib
import io
import tarfile
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from clead.data import cifar10, download, load_cifar10
from clead.errors import UserError

MEMBERS = {"set/a.bin": 3, "set/b.bin": 2}


def tar(path, *entries, mode="w:gz"):
    """An archive of (name, bytes) files, or of ready TarInfo."""
    with tarfile.open(path, mode) as archive:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                archive.addfile(entry)
                continue
            member = tarfile.TarInfo(entry[0])
            member.size = len(entry[1])
            archive.addfile(member, io.BytesIO(entry[1]))
    return path


def link(name, target, kind=tarfile.SYMTYPE):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def files(folder) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.fixture
def target(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def test_unpacks_only_the_members_asked_for(tmp_path, target):
    archive = tar(
        tmp_path / "x.tar.gz",
        ("set/readme.html", b"no"),
        ("set/b.bin", b"45"),
        ("../escaped", b"no"),
        ("/tmp/clead-escaped", b"no"),
        link("set/link", "/etc/passwd"),
        ("set/a.bin", b"123"),
    )
    download.unpack(archive, target, MEMBERS)
    assert files(target) == {"set", "set/a.bin", "set/b.bin"}
    assert (target / "set/a.bin").read_bytes() == b"123"
    assert files(tmp_path) == {"x.tar.gz", "data", "data/set", "data/set/a.bin", "data/set/b.bin"}


@pytest.mark.parametrize(
    "entries, message",
    [
        ([("set/a.bin", b"123")], "hold set/b.bin, found no such member"),
        ([("set/a.bin", b"1234"), ("set/b.bin", b"45")], "set/a.bin to be a file of 3 bytes, found a file of 4"),
        (
            [("set/b.bin", b"45"), link("set/a.bin", "b.bin")],
            "set/a.bin to be a file of 3 bytes, found something that is no",
        ),
        ([("set/b.bin", b"45"), link("set/a.bin", "set/b.bin", tarfile.LNKTYPE)], "found something that is no file"),
        ([link("set", "/tmp"), ("set/a.bin", b"123")], "hold set/b.bin, found no such member"),
    ],
)
def test_an_unexpected_archive_leaves_nothing_behind(tmp_path, target, entries, message):
    with pytest.raises(UserError, match=message):
        download.unpack(tar(tmp_path / "x.tar.gz", *entries), target, MEMBERS)
    assert files(target) == set()


def test_a_damaged_archive_leaves_nothing_behind(tmp_path, target):
    archive = tar(tmp_path / "x.tar.gz", ("set/a.bin", b"123"), ("set/b.bin", b"45"))
    archive.write_bytes(archive.read_bytes()[:60])
    with pytest.raises(UserError, match=r"x\.tar\.gz: expected a complete tar archive"):
        download.unpack(archive, target, MEMBERS)
    assert files(target) == set()


@pytest.fixture
def server(tmp_path):
    """Serves the bytes put into ``server.body``; counts requests."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.requests += 1
            self.send_response(200 if server.body is not None else 404)
            self.send_header("Content-Length", str(len(server.body or b"")))
            self.end_headers()
            self.wfile.write(server.body or b"")

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.body, server.requests = None, 0
    thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.01))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def published(server, tmp_path, rows, monkeypatch):
    """CIFAR-10's archive, eight images per batch, at a local address."""
    entries = [(f"cifar-10-batches-bin/{name}.bin", batch.tobytes()) for name, batch in rows.items()]
    server.body = tar(tmp_path / "made.tar.gz", ("cifar-10-batches-bin/readme.html", b"hi"), *entries).read_bytes()
    monkeypatch.setattr(cifar10, "URL", f"http://127.0.0.1:{server.server_port}/cifar-10-binary.tar.gz")
    monkeypatch.setattr(cifar10, "ARCHIVE_SHA256", hashlib.sha256(server.body).hexdigest())
    return server


def test_download_happens_only_when_asked_for_and_only_once(published, target, rows, capsys):
    with pytest.raises(UserError, match="--download"):
        load_cifar10(target, val_size=10)
    assert published.requests == 0
    splits = load_cifar10(target, val_size=10, download=True)
    assert splits.test.images.numpy().tobytes() == rows["test_batch"][:, 1:].tobytes()
    assert files(target) == {"cifar-10-batches-bin"} | {f"cifar-10-batches-bin/{name}.bin" for name in rows}
    assert "cifar-10-binary.tar.gz" in capsys.readouterr().err
    load_cifar10(target, val_size=10, download=True)
    assert published.requests == 1


def test_download_mends_a_missing_file(published, binary_dir):
    (binary_dir / "test_batch.bin").unlink()
    assert len(load_cifar10(binary_dir.parent, val_size=10, download=True).test) == 8


def test_a_wrong_checksum_is_refused_and_nothing_kept(published, target):
    published.body = published.body[:-1] + b"x"
    with pytest.raises(UserError, match="cifar-10-binary.tar.gz: expected sha256:") as caught:
        load_cifar10(target, val_size=10, download=True)
    assert "\n" not in str(caught.value)
    assert files(target) == set()


def test_a_server_that_refuses_is_one_sentence(published, target):
    published.body = None
    with pytest.raises(UserError, match="expected to fetch http://127.0.0.1.*, found 404") as caught:
        load_cifar10(target, val_size=10, download=True)
    caught.value.__cause__.response.close()  # pooch leaves it open
    assert "\n" not in str(caught.value)
    assert files(target) == set()
