"""Fetching a published archive, and unpacking nothing but the files it is known to hold."""

from __future__ import annotations

import gzip
import lzma
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from clead.errors import UserError, one_line

# What the standard library raises for damaged bytes, beside OSError without a number for those of gzip and bzip2.
_DAMAGE = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, ValueError, OverflowError)


def fetch(url: str, checksum: str, data_dir: Path, members: Mapping[str, int]) -> None:
    """Download an archive, check it, unpack ``members`` into ``data_dir`` and delete it.

    Args:
        url: where the archive is published.
        checksum: ``algorithm:digest`` of the archive.
        data_dir: target folder; made if missing.
        members: path within the archive, and under ``data_dir``, to size in bytes.

    Raises:
        UserError: the download failed, or the archive is not the one expected.
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        archive = download(url, checksum, data_dir)
        unpack(archive, data_dir, members)
        archive.unlink()
    except OSError as error:
        raise UserError(f"expected to fetch {url} into {data_dir}, found {error}") from error


def download(url: str, checksum: str, folder: Path) -> Path:
    """The file at ``url``, checked, in ``folder``; not fetched again if it is there already."""
    import pooch

    pooch.get_logger().setLevel("WARNING")
    name = url.rsplit("/", 1)[-1]
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        downloader = pooch.HTTPDownloader(progressbar=_Bar(progress, name), chunk_size=1 << 16)
        try:
            return Path(pooch.retrieve(url, checksum, fname=name, path=folder, downloader=downloader))
        except ValueError as error:  # pooch's word for a wrong checksum
            raise UserError(f"{url}: expected {checksum}, found {error}") from error


class _Bar:
    """The part of tqdm's face that pooch uses, drawn by rich."""

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress = progress
        self._task = progress.add_task(name, total=None)

    @property
    def total(self) -> float | None:
        """Bytes to fetch."""
        return self._progress.tasks[0].total

    @total.setter
    def total(self, value: int) -> None:
        self._progress.update(self._task, total=value or None)

    def update(self, amount: int) -> None:
        """``amount`` more bytes have come."""
        self._progress.advance(self._task, amount)

    def reset(self) -> None:
        """Back to no bytes."""
        self._progress.update(self._task, completed=0)

    def close(self) -> None:
        """Nothing: the caller's context ends the display."""


def unpack(archive: Path, data_dir: Path, members: Mapping[str, int]) -> None:
    """Copy the regular files named in ``members`` out of a tar archive; all else in it is left alone.

    Each file is complete before it gets its name, and the names are ours, never the archive's.
    """
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=data_dir) as temporary:
        staged: dict[str, Path] = {}
        try:
            with tarfile.open(archive) as tar:
                for member in tar:
                    if member.name in members:
                        staged[member.name] = Path(temporary, str(len(staged)))
                        _copy(archive, tar, member, members[member.name], staged[member.name])
        except _DAMAGE as error:
            raise UserError(f"{archive}: expected a complete tar archive, found damage ({one_line(error)})") from error
        for name in members:
            if name not in staged:
                raise UserError(f"{archive}: expected it to hold {name}, found no such member")
        for name, source in staged.items():
            target = data_dir / name
            target.parent.mkdir(parents=True, exist_ok=True)
            source.replace(target)


def _copy(archive: Path, tar: tarfile.TarFile, member: tarfile.TarInfo, size: int, target: Path) -> None:
    source = tar.extractfile(member) if member.isreg() else None
    if source is None or member.size != size:
        kind = "a file" if source else "something that is no file"
        raise UserError(
            f"{archive}: expected {member.name} to be a file of {size:,} bytes, found {kind} of {member.size:,}"
        )
    with source, open(target, "wb") as file:
        shutil.copyfileobj(source, file)
