"""What a data set is in memory, and how it is split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from clead.errors import UserError
from clead.rng import Rng, stream_key

Residence = Literal["auto", "device", "host"]
"""Where the images of a data set are, while batches are on a device; see ``Dataset.to``."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images, kept as the integers they were published as.

    Attributes:
        name: for people, such as ``cifar10/train``.
        images: uint8 [N, C, H, W]; more of them where ``rows`` says which are meant.
        labels: int64 [N].
        classes: name of every label.
        max_value: the integer that means 1.0.
        mapped: the images are in a file, and are read as they are asked for.
        rows: int64 [N] on the labels' device, where every sample is in ``images``; None where sample i is image i.
    """

    name: str
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    max_value: int
    mapped: bool = False
    rows: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def remote(self) -> bool:
        """Whether images must be fetched for every batch: from a file, or from another device than the batch's."""
        return self.mapped or self.images.device != self.labels.device

    def to(self, device: torch.device | str, images: Residence = "auto") -> Dataset:
        """The same with the labels, and so all batches, on ``device``.

        Args:
            device: where to.
            images: ``device`` puts all images there, still as bytes, those of a file too; ``host`` leaves them where
                they are; ``auto`` leaves them where they would take half the free memory of a CUDA device, or where
                they are in a file and the device has no memory of its own.

        Raises:
            UserError: ``device`` was asked for, and they do not fit there.
        """
        device = torch.device(device)
        rows = None if self.rows is None else self.rows.to(device)
        there = replace(self, labels=self.labels.to(device), rows=rows)
        size = len(self) * self.images[:1].nbytes
        if images == "host":
            return there
        arriving = self.mapped or self.images.device.type != device.type
        if arriving and device.type == "cuda":
            free = torch.cuda.mem_get_info(device)[0]
            if images == "device" and size > free:
                raise UserError(
                    f"residence must be auto or host for {self.name}: its images take {size:,} bytes, "
                    f"{device} has {free:,} free"
                )
            if images == "auto" and size > free / 2:
                return there
        elif self.mapped and images == "auto":
            return there
        whole = self.images if self.rows is None else self._bytes(torch.arange(len(self), device=self.labels.device))
        moved = whole.to(device, copy=self.mapped and self.rows is None)
        return replace(there, images=moved, mapped=False, rows=None)

    def select(self, indices: Tensor) -> Dataset:
        """The samples at ``indices`` (int64 [M], on the labels' device), in that order, in memory."""
        return replace(self, images=self._bytes(indices), labels=self.labels[indices], mapped=False, rows=None)

    def part(self, indices: Tensor) -> Dataset:
        """``select``, but images that are in a file stay there."""
        if not self.mapped:
            return self.select(indices)
        return replace(self, labels=self.labels[indices], rows=self._rows(indices))

    def _rows(self, indices: Tensor) -> Tensor:
        return indices if self.rows is None else self.rows[indices]

    def _bytes(self, indices: Tensor) -> Tensor:
        """uint8 [M, C, H, W], where the images are."""
        return self.images[self._rows(indices).to(self.images.device)]

    def resize(self, size: tuple[int, int]) -> Dataset:
        """The images at another height and width, bilinear with antialiasing, rounded to integers again."""
        images = torch.cat([self._resized(part, size) for part in torch.arange(len(self)).split(1000)])
        return replace(self, images=images, mapped=False, rows=None)

    def _resized(self, indices: Tensor, size: tuple[int, int]) -> Tensor:
        images = self._bytes(indices.to(self.labels.device)).float()
        resized = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False).round()
        return resized.clamp(0, self.max_value).to(torch.uint8)

    def batch(self, indices: Tensor) -> Tensor:
        """The images at ``indices`` (int64 [B], on the labels' device) as float32 [B, C, H, W] in [0, 1], there."""
        device = self.labels.device
        # A tensor, because CUDA divides by a Python number through its reciprocal: other bits than on a CPU.
        one = torch.full((), float(self.max_value), device=device)
        images = self._bytes(indices)
        if device.type == "cuda" and images.device.type == "cpu":
            images = images.pin_memory().to(device, non_blocking=True)  # waits for nothing
        return images.to(device).to(torch.float32) / one


@dataclass(frozen=True, eq=False)
class Splits:
    """A data set cut into train, validation and test; choices are made on validation, never on test.

    The sample index of a random stream is the index within its split.

    Attributes:
        train: what training sees.
        val: held out of the published training set; may be empty.
        test: the published test set.
        mean: per channel, of the training images in [0, 1].
        std: per channel, of the training images in [0, 1].
    """

    train: Dataset
    val: Dataset
    test: Dataset
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def published(cls, train: Dataset, test: Dataset) -> Splits:
        """Both as they were published, no validation split, and the statistics of ``train``."""
        return cls(train, train.select(torch.arange(0)), test, *channel_statistics(train.images, train.max_value))

    @property
    def num_classes(self) -> int:
        """Number of labels."""
        return len(self.train.classes)

    @property
    def in_channels(self) -> int:
        """Channels of an image."""
        return self.train.images.shape[1]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of an image."""
        height, width = self.train.images.shape[2:]
        return height, width

    def to(self, device: torch.device | str, images: Residence = "auto") -> Splits:
        """All three parts on ``device``, their images where ``images`` says; see ``Dataset.to``."""
        train, val, test = (part.to(device, images) for part in (self.train, self.val, self.test))
        return replace(self, train=train, val=val, test=test)

    def resize(self, size: tuple[int, int]) -> Splits:
        """All three parts at another height and width; the statistics stay those of the published images."""
        return replace(self, train=self.train.resize(size), val=self.val.resize(size), test=self.test.resize(size))

    def at_size(self, image_size: int | None) -> Splits:
        """``resize`` to a square; None, and the size they have, change nothing."""
        if image_size is None or self.image_size == (image_size, image_size):
            return self
        return self.resize((image_size, image_size))

    def hold_out(self, fraction: float) -> Splits:
        """The same with this share of every training class as the validation split instead of the present one."""
        held_out = round(fraction * len(self.train))
        kept, val = stratified_split(self.train.labels.cpu(), (len(self.train) - held_out, held_out))
        device = self.train.labels.device
        return replace(self, train=self.train.part(kept.to(device)), val=self.train.part(val.to(device)))


def stratified_split(labels: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """Cut the indices of ``labels`` into parts with equal shares of every class.

    The cut is a function of the labels and the sizes alone, so no run's seed moves it.

    Args:
        labels: int64 [N].
        sizes: length of every part; they sum to N.

    Returns:
        One ascending int64 [size] per part.
    """
    if sum(sizes) != len(labels) or min(sizes) < 0:
        raise ValueError(f"sizes must be non-negative and sum to {len(labels)}, got {tuple(sizes)}")
    high, low = Rng(stream_key(0, "split"), torch.arange(len(labels))).words(2).unbind(1)
    shuffled = torch.argsort((high >> 1 << 32) | low, stable=True)
    # A sample's place within its class, in (0, 1): any interval of places holds the same share of every class.
    place = torch.empty(len(labels), dtype=torch.float64)
    for label in range(int(labels.max()) + 1):
        members = shuffled[labels[shuffled] == label]
        place[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
    order = shuffled[torch.argsort(place[shuffled], stable=True)]
    return tuple(part.sort().values for part in order.split_with_sizes(list(sizes)))


def channel_statistics(images: Tensor, max_value: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and (population) standard deviation per channel of uint8 [N, C, H, W] divided by ``max_value``."""
    value = torch.arange(256, dtype=torch.float64) / max_value
    mean, std = [], []
    for channel in images.unbind(1):
        # A histogram of the 256 values: exact, and no copy of the whole set, which may be larger than memory.
        counts = torch.stack([torch.bincount(part.flatten(), minlength=256) for part in channel.split(1000)]).sum(0)
        share = counts.to(torch.float64) / channel.numel()
        mean.append(float(share @ value))
        std.append(float((share @ (value - mean[-1]).square()).sqrt()))
    return tuple(mean), tuple(std)
