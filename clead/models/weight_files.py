"""Files of weights that others saved, read without trust and put into our modules strictly.

Nothing in a file is run, and nothing in it makes more memory than the file has bytes: neither an archive that is
compressed, nor a tensor whose shape is larger than what is stored of it.
"""

from __future__ import annotations

import argparse
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from clead.errors import UserError, one_line

_CONTAINERS = ("state_dict", "P_state", "model", "teacher")  # where the codes keep the weights in their files
_LISTED = 20  # keys in a message


def read_file(path: Path) -> dict[str, Any]:
    """The dictionary that ``torch.save`` wrote, or the tensors of a safetensors file, on the CPU.

    Raises:
        UserError: a file that is missing, damaged or compressed, or holds more than tensors, numbers and names.
    """
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        if _compressed(path):
            raise UserError(f"{path}: expected an archive as torch.save writes it, found a compressed one")
        # SupContrast and DINO keep their arguments in their files, which are harmless.
        with torch.serialization.safe_globals([argparse.Namespace]):
            saved = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{path}: expected a checkpoint, found no file") from error
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"{found[1]}, which is refused" if found else f"damage ({one_line(error):.80})"
        raise UserError(f"{path}: expected tensors, numbers and names only, found {what}") from error
    except Exception as error:  # damaged bytes may raise anything
        raise UserError(f"{path}: expected a complete checkpoint, found damage ({one_line(error):.80})") from error
    if not isinstance(saved, dict):
        raise UserError(f"{path}: expected a dictionary, found {type(saved).__name__}")
    return saved


def weights_of(path: Path, saved: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights in the dictionary of a file, without what DataParallel puts before their names.

    Raises:
        UserError: there are none, two have one name, one is no plain tensor, or they are more than the file holds.
    """
    for name in _CONTAINERS:
        if isinstance(saved.get(name), Mapping):
            saved = saved[name]
            break
    tensors = {key: value for key, value in saved.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not tensors:
        found = f"the keys {listed(map(str, saved))}" if saved else "nothing"
        raise UserError(f"{path}: expected weights, found {found}")
    odd = [key for key, value in tensors.items() if not _plain(value)]
    if odd:
        raise UserError(f"{path}: expected plain tensors, found other kinds for {listed(odd)}")
    elements, stored = sum(value.numel() for value in tensors.values()), path.stat().st_size
    if elements > stored:  # a byte for each is the least there could be
        raise UserError(f"{path}: expected weights as large as the file, found {elements:,} in {stored:,} bytes")
    return renamed(path, tensors, ((r"(^|(?<=\.))module\.", ""),))


def renamed(path: Path, weights: Mapping[str, Tensor], renames: Iterable[tuple[str, str]]) -> dict[str, Tensor]:
    """The weights under the names that the pairs (pattern, replacement) make, one after the other.

    Raises:
        UserError: two weights get one name.
    """
    found: dict[str, str] = {}
    for key in weights:
        name = key
        for pattern, replacement in renames:
            name = re.sub(pattern, replacement, name)
        if name in found:
            raise UserError(f"{path}: expected one weight {name:.80}, found {listed([found[name], key])}")
        found[name] = key
    return {name: weights[key] for name, key in found.items()}


def fill(path: Path, module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give ``module``, built on torch's meta device, the weights of a file as float32.

    Raises:
        UserError: a weight that is missing, left over, of another shape or no floating-point numbers, listed.
    """
    expected = module.state_dict()
    wrong = [f"no {key}" for key in expected.keys() - weights.keys()]
    wrong += [f"{key}, which does not belong there" for key in weights.keys() - expected.keys()]
    for key in expected.keys() & weights.keys():
        if weights[key].shape != expected[key].shape:
            wrong.append(f"{key} of shape {list(weights[key].shape)} instead of {list(expected[key].shape)}")
        elif not weights[key].is_floating_point():
            wrong.append(f"{key} of {weights[key].dtype} instead of floating-point numbers")
    if wrong:
        raise UserError(f"{path}: expected weights that fit, found {listed(sorted(wrong))}")
    values = {
        key: value.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        for key, value in weights.items()
    }
    module.load_state_dict(values, assign=True)


def listed(found: Iterable[str]) -> str:
    """What was found, in one line of bounded length."""
    names = [f"{' '.join(name.split()):.120}" for name in found]
    more = [f"{len(names) - _LISTED} more"] if len(names) > _LISTED else []
    return "; ".join([*names[:_LISTED], *more])


def _compressed(path: Path) -> bool:
    """Whether it is an archive, as torch sees it, of parts that could unpack to any size."""
    with open(path, "rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return False
    with zipfile.ZipFile(path) as archive:
        return any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())


def _plain(value: Tensor) -> bool:
    usual = type(value) in (Tensor, nn.Parameter) and value.layout == torch.strided and not value.is_nested
    return usual and value.device.type == "cpu" and not value.is_quantized
