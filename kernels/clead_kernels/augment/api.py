"""The front door of augmentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _arguments as arguments
from .. import _trial, dispatch
from . import ops
from .steps import GEOMETRY, NAMES, OF_COLOR, STEPS

_OUTPUTS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def augment(
    images: Tensor,
    steps: Sequence[tuple[str, Tensor]],
    *,
    max_value: float = 255.0,
    clip: bool = True,
    dtype: torch.dtype | None = None,
    impl: dispatch.Impl = "auto",
) -> Tensor:
    """Apply steps with given parameters, one set per image: no random number is drawn here.

    Every step is a name and its parameters [parameters, V * B], float64, one column per result; row i of the result
    is made of image i mod B, so that V views of a batch are one call.

    - resized_crop (top, left, height, width): the box, whole pixels inside the image, stretched to the image; bilinear
      without antialiasing.
    - affine (right, down, degrees, scale): content magnified by ``scale`` > 0, turned anticlockwise about the centre,
      then moved, in pixels; bilinear, 0 outside.
    - crop (top, left): the window of the image's size that starts there, whole pixels of either sign; 0 outside.
    - flip (whether): left and right exchanged where not 0.
    - brightness (factor): factor · image, clipped to [0, 1].
    - jitter (whether, brightness, contrast, saturation, hue): where not 0 three factors and a turn in circles, in this
      order, each followed by clipping. Contrast moves away from the mean luma of the image, saturation from that of the
      pixel. 3 channels.
    - grayscale (whether): the luma in all channels where not 0. 3 channels.
    - blur (sigma): Gaussian of this standard deviation in pixels where above 0, over a window of a tenth of the image,
      3 to 65 pixels, reflecting at the edges.

    Args:
        images: uint8, float64, float32, bfloat16 or float16 [B, C, H, W], floats in [0, 1]; left unchanged.
        steps: names and parameters in the order they are applied, at least one.
        max_value: the byte that means 1.0; floats do not look at it.
        clip: clip the result to [0, 1], which interpolation leaves by a rounding error.
        dtype: of the result; None = that of the images, float32 for bytes. float64 images give float64 only, and others
            do not.
        impl: which implementation; see ``clead_kernels.explain``.

    Returns:
        [V * B, C, H, W], contiguous. Computed in float32 (float64 for float64) and rounded once. No gradient flows.

    Raises:
        ValueError: shapes, devices or values that do not fit.
        TypeError: a dtype does not fit.
        NotImplementedError: ``impl`` cannot run this call.
    """
    _check_images(images, max_value)
    arguments.check_flag("clip", clip)
    names, parameters = _parameters(images, steps)
    row = dispatch.find("augment", impl, device=images.device, dtype=images.dtype, order=_order(names))
    result = images.dtype if dtype is None and images.dtype != torch.uint8 else dtype or torch.float32
    if result not in _OUTPUTS or (result == torch.float64) != (images.dtype == torch.float64):
        raise TypeError(f"dtype must be a floating-point dtype, float64 for float64 images alone, got {result}")
    codes = [NAMES.index(name) for name in names]
    rest = parameters, codes, float(max_value), clip, result
    chosen = row.impl
    if row.on_trial and impl == "auto":
        chosen = _tried(row, images.detach(), (*names, clip, result, images.is_contiguous()), rest)
    augmented: Tensor = ops.augment_op(images.detach(), *rest, chosen)
    return augmented


def _tried(row: dispatch.Support, images: Tensor, kind: tuple[Any, ...], rest: tuple[Any, ...]) -> str:
    """What runs a call that ``row``, which is on trial, would run."""

    def run(impl: str, images: Tensor) -> Tensor:
        augmented: Tensor = ops.augment_op(images, *rest, impl)
        return augmented

    return _trial.choose(row.op, row.impl, kind, run, images)


def _check_images(images: Tensor, max_value: float) -> None:
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a tensor, got {type(images).__name__}")
    arguments.check_dense("images", images)
    if images.dtype not in (*_OUTPUTS, torch.uint8):
        raise TypeError(f"images must be uint8, float64, float32, bfloat16 or float16, got {images.dtype}")
    if images.ndim != 4:
        raise ValueError(f"images must have shape [B, C, H, W], got {list(images.shape)}")
    arguments.check_no_tangent("images", images)
    if images.requires_grad and torch.is_grad_enabled():
        raise ValueError("images require grad, and augment has none to give: pass images.detach()")
    arguments.check_number("max_value", max_value, 0.0)
    if not max_value:
        raise ValueError("max_value must be above 0, got 0")


def _parameters(images: Tensor, steps: Sequence[tuple[str, Tensor]]) -> tuple[list[str], Tensor]:
    """The names of the steps, and all their parameters in one tensor."""
    if not isinstance(steps, (list, tuple)) or not steps or not all(_is_step(step) for step in steps):
        raise TypeError(f"steps must be a list of one (name, tensor of parameters) or more, got {steps!r:.80}")
    batch, count = len(images), steps[0][1].shape[-1] if steps[0][1].ndim else 0
    if (count % batch if batch else count) or (batch and not count):
        raise ValueError(f"steps must have a multiple of {batch} columns, one for each result, got {count}")
    for name, parameters in steps:
        arguments.check_choice("the name in steps", name, NAMES)
        if parameters.dtype != torch.float64 or parameters.shape != (len(STEPS[name]), count):
            raise ValueError(
                f"steps must give {name} float64 [{len(STEPS[name])}, {count}] ({', '.join(STEPS[name])}), "
                f"got {parameters.dtype} {list(parameters.shape)}"
            )
        arguments.check_dense(f"what steps give {name}", parameters)
        if parameters.device != images.device:
            raise ValueError(f"steps must be on {images.device} like the images, got {name} on {parameters.device}")
        if name in OF_COLOR and images.shape[1] != 3:
            raise ValueError(f"images must have 3 channels for {name}, got {images.shape[1]}")
        if arguments.values_readable(parameters):
            _check_values(name, parameters, images)
    return [name for name, _ in steps], torch.cat([parameters for _, parameters in steps]).detach()


def _is_step(step: object) -> bool:
    return isinstance(step, (list, tuple)) and len(step) == 2 and isinstance(step[1], Tensor)


def _check_values(name: str, parameters: Tensor, images: Tensor) -> None:
    if not bool(parameters.isfinite().all()):
        raise ValueError(f"steps must give {name} finite numbers, got {parameters[~parameters.isfinite()][0].item()}")
    if name == "blur" and not bool((parameters >= 0).all()):
        raise ValueError(f"steps must give blur a sigma of at least 0, got {parameters.min().item()}")
    if name == "affine" and not bool((parameters[3] > 0).all()):
        raise ValueError(f"steps must give affine a scale above 0, got {parameters[3].min().item()}")
    if name == "resized_crop":
        size = parameters.new_tensor(images.shape[2:])[:, None]
        corner, length = parameters[:2], parameters[2:]
        wrong = ((corner < 0) | (length < 1) | (corner + length > size)).any(0)
        if bool(wrong.any()):
            raise ValueError(
                f"steps must give resized_crop boxes inside {images.shape[2]} x {images.shape[3]} images, got "
                f"top, left, height, width = {parameters[:, wrong][:, 0].tolist()}"
            )


def _order(names: list[str]) -> str:
    """What the Triton kernel, which makes every pixel of the result in one go, asks of the order of steps."""
    turn = next((place for place, name in enumerate(names) if name in GEOMETRY), 0)
    sides = [names[:turn], names[turn:]]
    colors = [[NAMES.index(name) for name in side if name not in (*GEOMETRY, "flip")] for side in sides]
    simple = all(side.count("flip") <= 1 for side in sides) and len([n for n in names if n in GEOMETRY]) <= 1
    simple = simple and "blur" not in names and not all(colors) and all(side == sorted(set(side)) for side in colors)
    return "one geometry, colours before or after it" if simple else "any"
