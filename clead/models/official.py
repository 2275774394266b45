"""Checkpoints of the papers' official codes, read strictly into our encoders.

Every key of a file becomes a weight of the model, or is dropped because the table below names it; a key that does
neither is an error, and so is a weight the file does not have.

The ImageNet formats hold ResNets under torchvision's names; their authors show them the centre 224x224 of images whose
shorter side is 256 (the data set ``imagenet_val``). Where the names were looked up, and what is evaluated:

- ``simclr``: what github.com/tonylins/simclr-converter makes of SimCLR's files, classifier included, whose bias that
  code leaves as torch initialises it; pixels are not normalised, and that code tests on the centre 256x256.
- ``swav``: github.com/facebookresearch/swav; the classifier is in a file of its own (``linear``). The standard
  deviation of red is 0.228 there.
- ``byol``: what github.com/ajtejankar/byol-convert makes of DeepMind's files, classifier included; strided layers pad
  as JAX's ``SAME`` does.
- ``moco``: github.com/facebookresearch/moco, v1 and v2: ``encoder_q``, or a file of ``main_lincls.py`` with its ``fc``.
- ``mocov3``: github.com/facebookresearch/moco-v3: ``base_encoder``, or a file of ``main_lincls.py`` with its ``fc``.
- ``dino``: github.com/facebookresearch/dino: the backbone, or the teacher's in a full checkpoint; the classifier is in
  a file of its own (``linear``). Its images are resized bicubically.

Their vision transformers are not read, because our encoders are ResNets.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from clead.data.imagenet_val import STATISTICS as IMAGENET
from clead.errors import UserError
from clead.models.batch_norm import BatchNormConfig
from clead.models.model import Model
from clead.models.projector import LinearHead
from clead.models.resnet import Padding, ResNet, Stem
from clead.models.weight_files import fill, listed, read_file, renamed, weights_of

Normalization = tuple[tuple[float, ...], tuple[float, ...]]
PLAIN = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@dataclass(frozen=True)
class Format:
    """What one official code writes.

    Attributes:
        normalization: (mean, std) its images are normalised with, where the file does not say.
        dropped: patterns of keys that its evaluation does not use: heads of the pre-training, other encoders.
        prefix: what is before the names of the encoder's weights, where something is.
        branches: our names for its batch norms, in the order of its list; the first where it has one only.
        evaluation_branch: the one its authors evaluate.
        padding: of strided layers.
    """

    normalization: Normalization
    dropped: tuple[str, ...] = ()
    prefix: str = "encoder."
    branches: tuple[str, ...] = ("clean",)
    evaluation_branch: str = "clean"
    padding: Padding = "torch"


_ACL = Format(IMAGENET, (r"fc\.(fc|bn)\d\..*",), branches=("clean", "adv"), evaluation_branch="adv")
_ADVCL_HEADS = (r"fc_\d+\..*", r"head_(ce|proj|pred)\..*")
_MOCO_REST = (r"encoder_q\.fc\..*", r"encoder_k\..*", r"queue(_ptr)?")
_MOCOV3_REST = (r"base_encoder\.fc\..*", r"(momentum_encoder|predictor)\..*")
FORMATS: dict[str, Format] = {
    "acl": _ACL,
    "advcl": Format(PLAIN, _ADVCL_HEADS, branches=("clean", "adv", "adv_ce"), evaluation_branch="adv"),
    "byol": Format(IMAGENET, padding="same"),
    "dino": Format(IMAGENET, (r"head\..*",), "backbone."),
    "dynacl": _ACL,
    "moco": Format(IMAGENET, _MOCO_REST, "encoder_q."),
    "mocov3": Format(IMAGENET, _MOCOV3_REST, "base_encoder."),
    "rocl": Format(PLAIN),
    "simclr": Format(PLAIN),
    "supcontrast": Format(((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)), (r"head\.(\d\.)?(weight|bias)",)),
    "swav": Format((IMAGENET[0], (0.228, 0.224, 0.225)), (r"(projection_head|prototypes)\..*",)),
    "torchvision": Format(IMAGENET),
}

_CLASSIFIER = re.compile(r"(?:fc|linear|classifier|0)\.(weight|bias)")
_NORM = re.compile(r"(.*bn\d|.*downsample\.1)\.(?:bn_list\.(\d+)\.)?(weight|bias|running_mean|running_var)")
_TORCHVISION = (
    (r"\.shortcut\.", ".downsample."),
    (r"\.downsample\.conv\.", ".downsample.0."),
    (r"\.downsample\.bn\.", ".downsample.1."),
)
_DEPTHS: dict[tuple[bool, tuple[int, ...]], int] = {
    (False, (2, 2, 2, 2)): 18,
    (False, (3, 4, 6, 3)): 34,
    (True, (3, 4, 6, 3)): 50,
    (True, (3, 4, 23, 3)): 101,
}
_WIDEST = 1024  # channels of the first convolution; the widest that was released has 320


def read_official(path: Path, format_name: str, *, head: Path | None = None) -> Model:
    """The model of an official checkpoint, in eval mode on the CPU; with a ``classifier`` where there is one.

    Args:
        path: what the code saved with ``torch.save``, or the same tensors as safetensors.
        format_name: a key of FORMATS.
        head: a file with the linear classifier, for codes that keep it apart.

    Raises:
        UserError: a file that is missing, damaged or holds more than weights, or keys that do not fit, listed.
    """
    if format_name not in FORMATS:
        near = difflib.get_close_matches(format_name, FORMATS, n=1, cutoff=0.0)[0]
        raise UserError(f"unknown format {format_name!r}; the nearest is {near!r}, of {', '.join(FORMATS)}")
    known, saved = FORMATS[format_name], read_file(path)
    found = weights_of(path, saved)
    found = {key: value for key, value in found.items() if not any(re.fullmatch(p, key) for p in known.dropped)}
    names = ((f"^{re.escape(known.prefix)}", ""), *_TORCHVISION)
    weights = {
        key: value for key, value in renamed(path, found, names).items() if not key.endswith("num_batches_tracked")
    }
    classifier: dict[str, Tensor] | None = None
    own = {key: weights.pop(key) for key in list(weights) if _CLASSIFIER.fullmatch(key)}
    if head is not None:
        classifier = _classifier(head, weights_of(head, read_file(head)))
    elif isinstance(saved.get("classifier"), Mapping):  # AdvCL's, beside an encoder's unused one
        classifier = _classifier(path, weights_of(path, saved["classifier"]))
    elif own:
        classifier = _classifier(path, own)
    encoder = _encoder(path, weights, known)
    heads = {}
    if classifier is not None:
        with torch.device("meta"):
            heads["classifier"] = LinearHead(encoder.feature_dim, len(classifier["bias"]))
        fill(head or path, heads["classifier"], classifier)
    return Model(encoder, heads).eval()


def _classifier(path: Path, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weight and bias, whatever the code calls the layer."""
    found = {match[1]: value for key, value in weights.items() if (match := _CLASSIFIER.fullmatch(key))}
    if (
        set(found) != {"weight", "bias"}
        or len(found) != len(weights)
        or (found["weight"].ndim, found["bias"].ndim) != (2, 1)
    ):
        raise UserError(f"{path}: expected the weight and bias of a linear classifier, found {listed(weights)}")
    return found


def _encoder(path: Path, weights: dict[str, Tensor], known: Format) -> ResNet:
    """The encoder of the shape that the names and the first convolution tell."""
    first = weights.get("conv1.weight")
    blocks = tuple(
        len({key.split(".")[1] for key in weights if key.startswith(f"layer{stage}.")}) for stage in range(1, 5)
    )
    depth = _DEPTHS.get(("layer1.0.conv3.weight" in weights, blocks))
    if depth is None or first is None or first.ndim != 4:
        raise UserError(
            f"{path}: expected a ResNet-18, 34, 50 or 101, found {blocks} blocks and the keys {listed(weights)}"
        )
    width, in_channels = first.shape[:2]
    if not 1 <= width <= _WIDEST:
        raise UserError(f"{path}: expected a first convolution of 1 to {_WIDEST} channels, found {width}")
    stem: Stem = "imagenet" if first.shape[-1] == 7 else "cifar"
    branches = known.branches if any(".bn_list." in key for key in weights) else ("clean",)
    evaluated = known.evaluation_branch if known.evaluation_branch in branches else "clean"
    mean, std = (
        _numbers(path, f"normalize.{name}", weights) or default
        for name, default in zip(("mean", "std"), known.normalization, strict=True)
    )
    try:
        with torch.device("meta"):
            encoder = ResNet(
                depth,
                in_channels=in_channels,
                mean=mean,
                std=std,
                bn=BatchNormConfig(branches, evaluated),
                width=width,
                stem=stem,
                padding=known.padding,
            )
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    ours = {_our_name(path, key, branches): value for key, value in weights.items()}
    pixels = {"normalize.mean": torch.tensor(mean).view(-1, 1, 1), "normalize.std": torch.tensor(std).view(-1, 1, 1)}
    fill(path, encoder, ours | pixels)
    return encoder


def _numbers(path: Path, name: str, weights: dict[str, Tensor]) -> tuple[float, ...]:
    """The values of a weight, which is taken away; empty where there is none."""
    if name not in weights:
        return ()
    values = weights.pop(name)
    if not values.is_floating_point() or not bool(values.isfinite().all()):
        raise UserError(f"{path}: expected finite numbers in {name}, found others")
    return tuple(values.flatten().tolist())


def _our_name(path: Path, key: str, branches: tuple[str, ...]) -> str:
    match = _NORM.fullmatch(key)
    if match is None:
        return key
    index = int(match[2] or 0)
    if index >= len(branches):
        raise UserError(f"{path}: expected batch norms for {', '.join(branches)}, found {key}")
    return f"{match[1]}.branch.{branches[index]}.{match[3]}"
