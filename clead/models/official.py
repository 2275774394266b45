"""Checkpoints of the papers' official codes, read strictly into our encoders.

Every key of a file becomes a weight of the model, or is dropped because the table below names it; a key that does
neither is an error, and so is a weight the file does not have.
"""

from __future__ import annotations

import argparse
import difflib
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from clead.errors import UserError
from clead.models.batch_norm import BatchNormConfig
from clead.models.model import Model
from clead.models.projector import LinearHead
from clead.models.resnet import ResNet, Stem

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PLAIN = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@dataclass(frozen=True)
class Format:
    """What one official code writes.

    Attributes:
        branches: our names for its batch norms, in the order of its list; the first where it has one only.
        evaluation_branch: the one its authors evaluate.
        normalization: (mean, std) its images are normalised with, where the file does not say.
        dropped: patterns of keys that are heads of its pre-training.
    """

    branches: tuple[str, ...]
    evaluation_branch: str
    normalization: tuple[tuple[float, ...], tuple[float, ...]]
    dropped: tuple[str, ...] = ()


_ACL = Format(("clean", "adv"), "adv", IMAGENET, (r"fc\.(fc|bn)\d\..*",))
FORMATS: dict[str, Format] = {
    "acl": _ACL,
    "advcl": Format(("clean", "adv", "adv_ce"), "adv", PLAIN, (r"fc_\d+\..*", r"head_(ce|proj|pred)\..*")),
    "dynacl": _ACL,
    "rocl": Format(("clean",), "clean", PLAIN),
    "supcontrast": Format(
        ("clean",), "clean", ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)), (r"head\.(\d\.)?(weight|bias)",)
    ),
    "torchvision": Format(("clean",), "clean", IMAGENET),
}

_CONTAINERS = ("state_dict", "P_state", "model")  # where the codes keep the weights in their files
_CLASSIFIER = re.compile(r"(?:fc|linear|classifier|0)\.(weight|bias)")
_NORM = re.compile(r"(.*bn\d|.*downsample\.1)\.(?:bn_list\.(\d+)\.)?(weight|bias|running_mean|running_var)")
_DEPTHS: dict[tuple[bool, tuple[int, ...]], int] = {
    (False, (2, 2, 2, 2)): 18,
    (False, (3, 4, 6, 3)): 34,
    (True, (3, 4, 6, 3)): 50,
    (True, (3, 4, 23, 3)): 101,
}


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
    known = FORMATS[format_name]
    saved = _read(path)
    weights = _plain_names(_weights(path, saved))
    classifier = _classifier(head, _weights(head, _read(head))) if head else None
    if classifier is None and isinstance(saved.get("classifier"), Mapping):  # AdvCL's, beside an encoder's unused one
        classifier = _classifier(path, _tensors(saved["classifier"]))
    own = {key: weights.pop(key) for key in list(weights) if _CLASSIFIER.fullmatch(key)}
    if classifier is None and own:
        classifier = _classifier(path, own)
    mean, std = (
        tuple(weights.pop(f"normalize.{name}").flatten().tolist()) if f"normalize.{name}" in weights else default
        for name, default in zip(("mean", "std"), known.normalization, strict=True)
    )
    kept = {key: value for key, value in weights.items() if not any(re.fullmatch(p, key) for p in known.dropped)}
    branches = known.branches if any(".bn_list." in key for key in kept) else ("clean",)
    evaluated = known.evaluation_branch if known.evaluation_branch in branches else "clean"
    encoder = _encoder(path, kept, mean, std, BatchNormConfig(branches, evaluated))
    renamed = {_our_name(path, key, branches): value for key, value in kept.items()}
    renamed |= {key: value for key, value in encoder.state_dict().items() if key.startswith("normalize.")}
    _load(path, encoder, renamed)
    heads = {}
    if classifier is not None:
        heads["classifier"] = LinearHead(encoder.feature_dim, len(classifier["bias"]))
        _load(head or path, heads["classifier"], classifier)
    return Model(encoder, heads).eval()


def _read(path: Path) -> dict[str, Any]:
    """The file's dictionary. Nothing in it is run; SupContrast keeps its arguments in it, which are harmless."""
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with torch.serialization.safe_globals([argparse.Namespace]):
            saved = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path}: expected a checkpoint, found no file") from error
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"{found[1]}, which is refused" if found else f"damage ({_start(error)})"
        raise UserError(f"{path}: expected tensors, numbers and names only, found {what}") from error
    except Exception as error:  # damaged bytes may raise anything
        raise UserError(f"{path}: expected a complete checkpoint, found damage ({_start(error)})") from error
    if not isinstance(saved, dict):
        raise UserError(f"{path}: expected a dictionary, found {type(saved).__name__}")
    return saved


def _start(error: Exception) -> str:
    return " ".join(str(error).split())[:80]


def _weights(path: Path, saved: Mapping[str, Any]) -> dict[str, Tensor]:
    for name in _CONTAINERS:
        if isinstance(saved.get(name), Mapping):
            saved = saved[name]
            break
    found = _tensors(saved)
    if not found:
        raise UserError(f"{path}: expected weights, found the keys {', '.join(map(str, saved)):.80}")
    return found


def _tensors(saved: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors, without what DataParallel puts before their names."""
    return {
        re.sub(r"(^|(?<=\.))module\.", "", key): value
        for key, value in saved.items()
        if isinstance(key, str) and isinstance(value, Tensor)
    }


def _plain_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names of torchvision's ResNets, but for batch norms of several branches."""
    renames = (
        (r"^encoder\.", ""),
        (r"\.shortcut\.", ".downsample."),
        (r"\.downsample\.conv\.", ".downsample.0."),
        (r"\.downsample\.bn\.", ".downsample.1."),
    )
    plain = {}
    for key, value in weights.items():
        for pattern, replacement in renames:
            key = re.sub(pattern, replacement, key)
        if not key.endswith("num_batches_tracked"):
            plain[key] = value
    return plain


def _our_name(path: Path, key: str, branches: tuple[str, ...]) -> str:
    match = _NORM.fullmatch(key)
    if match is None:
        return key
    index = int(match[2] or 0)
    if index >= len(branches):
        raise UserError(f"{path}: expected batch norms for {', '.join(branches)}, found {key}")
    return f"{match[1]}.branch.{branches[index]}.{match[3]}"


def _classifier(path: Path, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weight and bias, whatever the code calls the layer."""
    found = {match[1]: value for key, value in weights.items() if (match := _CLASSIFIER.fullmatch(key))}
    if set(found) != {"weight", "bias"} or len(found) != len(weights) or found["weight"].ndim != 2:
        raise UserError(f"{path}: expected the weight and bias of a linear classifier, found {', '.join(weights):.80}")
    return found


def _encoder(
    path: Path, weights: Mapping[str, Tensor], mean: tuple[float, ...], std: tuple[float, ...], bn: BatchNormConfig
) -> ResNet:
    """The untrained encoder of the shape that the names and the first convolution tell."""
    first = weights.get("conv1.weight")
    blocks = tuple(
        len({key.split(".")[1] for key in weights if key.startswith(f"layer{stage}.")}) for stage in range(1, 5)
    )
    depth = _DEPTHS.get(("layer1.0.conv3.weight" in weights, blocks))
    if depth is None or first is None or first.ndim != 4:
        raise UserError(
            f"{path}: expected a ResNet-18, 34, 50 or 101, found {blocks} blocks and the keys {', '.join(weights):.80}"
        )
    stem: Stem = "imagenet" if first.shape[-1] == 7 else "cifar"
    width, in_channels = first.shape[:2]
    return ResNet(depth, in_channels=in_channels, mean=mean, std=std, bn=bn, width=width, stem=stem)


def _load(path: Path, module: torch.nn.Module, weights: Mapping[str, Tensor]) -> None:
    expected = module.state_dict()
    wrong = [f"no {key}" for key in expected.keys() - weights.keys()]
    wrong += [f"{key}, which does not belong there" for key in weights.keys() - expected.keys()]
    wrong += [
        f"{key} of shape {list(weights[key].shape)} instead of {list(expected[key].shape)}"
        for key in expected.keys() & weights.keys()
        if weights[key].shape != expected[key].shape
    ]
    if wrong:
        raise UserError(f"{path}: expected weights that fit, found {'; '.join(sorted(wrong))}")
    module.load_state_dict(dict(weights))
