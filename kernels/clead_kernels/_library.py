"""Opens the namespace ``torch.ops.clead``: schemas are defined here once, whoever implements them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad

# torch.library is public but not annotated: the calls into it stay in this file.
LIBRARY = torch.library.Library("clead", "FRAGMENT")
_refusal = ""
# Sets of keys that leave nothing but a device to dispatch to.
_DEVICES = {torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, name)).raw_repr() for name in ("CPU", "CUDA")}


def define(schema: str) -> str:
    """Define ``torch.ops.clead.<name>`` from a schema such as ``"name(Tensor x) -> Tensor"``.

    A second copy of this package in the same process (vendored beside installed) meets the name already defined.
    With the same schema its registrations take over; with another one it is refused, and those it has made are undone.

    Returns:
        The name, without the namespace.

    Raises:
        ImportError: the name is already defined with another schema.
    """
    global _refusal
    name = schema.partition("(")[0]
    wanted = str(torch._C.parse_schema(f"clead::{schema}"))
    if _refusal:  # imported once more
        raise ImportError(_refusal)
    if not hasattr(torch.ops.clead, name):
        LIBRARY.define(schema)
    elif (found := str(getattr(torch.ops.clead, name).default._schema)) != wanted:
        _refusal = f"another copy of clead_kernels defined {found}, this one needs {wanted}"
        LIBRARY._destroy()
        raise ImportError(_refusal)
    return name


def define_functional(
    schema: str,
    kernel: Callable[..., Any],
    fake: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
) -> Callable[..., Any]:
    """Define an op without side effects, with everything that must exist before it is first traced.

    Args:
        schema: as in ``define``.
        kernel: computes the op on any device; runs below autograd.
        fake: the outputs' shapes, dtypes and devices, without values.
        backward: ``(ctx, *grads) -> gradients of all arguments``; None = the op carries no gradient.
        setup_context: ``(ctx, inputs, output)``, saves what ``backward`` needs.

    Returns:
        The callable ``torch.ops.clead.<name>``.
    """
    name = define(schema)
    LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    register_fake(name, fake)
    op: Callable[..., Any] = getattr(torch.ops.clead, name).default
    if backward is not None:
        LIBRARY.impl(name, _autograd_kernel(op, kernel, backward, setup_context), "Autograd", with_keyset=True)
    return op


def register_fake(name: str, fake: Callable[..., Any]) -> None:
    """Register the fake kernel of an op; it refuses tensors of several devices.

    The dispatcher takes it for a call in which any tensor has no storage, and the outputs would hold no numbers.
    """

    def checked(*arguments: Any) -> Any:
        tensors = [x for x in arguments if isinstance(x, torch.Tensor)]
        devices = {str(x.device) for x in tensors if x.ndim or x.is_meta}  # other 0-d tensors may be anywhere
        if len(devices) > 1:
            raise ValueError(f"all tensors of clead::{name} must be on one device, got {', '.join(sorted(devices))}")
        return fake(*arguments)

    torch.library.register_fake(f"clead::{name}", checked, lib=LIBRARY)


def _autograd_kernel(
    op: Any, compute: Callable[..., Any], backward: Callable[..., Any], setup_context: Callable[..., None] | None
) -> Callable[..., Any]:
    """What ``torch.library.register_autograd`` makes, for ops that are always called with all arguments.

    That one asks the schema for every argument's default in every call: 130 of the 400 microseconds that a loss of 8
    rows took, forward and backward. Nor does a call go back to the dispatcher where nothing is left to dispatch to but
    ``compute``, the op's kernel for all devices.
    """

    def below_autograd(keyset: Any, *inputs: Any) -> Any:
        nothing_else = (keyset & torch._C._after_ADInplaceOrView_keyset).raw_repr() in _DEVICES
        with torch._C._AutoDispatchBelowAutograd():
            if nothing_else:
                return compute(*inputs)
            return op.redispatch(keyset & torch._C._after_autograd_keyset, *inputs)

    class Rule:
        @staticmethod
        def forward(ctx: Any, *inputs_and_keyset: Any) -> Any:
            *inputs, keyset = inputs_and_keyset
            output = below_autograd(keyset, *inputs)
            if setup_context is not None:
                setup_context(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return (*backward(ctx, *grads), None)

    class Differentiable(Rule, torch.autograd.Function):
        pass

    class DifferentiableOnce(Rule, torch.autograd.function._SingleLevelFunction):
        """Within ``torch.func``'s transforms, of which this is one level: those around it differentiate as well."""

        @staticmethod
        def forward(ctx: Any, *inputs_and_keyset: Any) -> Any:
            with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
                return Rule.forward(ctx, *inputs_and_keyset)

    def kernel(keyset: Any, *inputs: Any) -> Any:
        transformed = torch._C._are_functorch_transforms_active()
        if transformed:
            _refuse_tangents(inputs)
        if not (torch.is_grad_enabled() and torch._C._any_requires_grad(*inputs)):
            return below_autograd(keyset, *inputs)
        if not transformed:
            return Differentiable.apply(*inputs, keyset)  # type: ignore[no-untyped-call]
        with enable_single_level_autograd_function():
            return DifferentiableOnce.apply(*inputs, keyset)  # type: ignore[attr-defined]

    return kernel


def _refuse_tangents(inputs: tuple[Any, ...]) -> None:
    for x in inputs:
        if isinstance(x, torch.Tensor) and forward_ad.unpack_dual(x).tangent is not None:
            raise NotImplementedError(
                "clead_kernels has reverse mode only, but a forward-mode tangent meets one of its ops"
            )


def watched(*tensors: torch.Tensor | None) -> bool:
    """Whether someone must see the ops of a call: a compiler, a mode, a transform, a subclass."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or any(type(x) not in (torch.Tensor, torch.nn.Parameter) for x in tensors if x is not None)
    )


def refuse_second_derivative(ctx: Any, *grads: Any) -> Any:
    """The ``backward`` of every backward op: a second derivative would otherwise be silently zero or wrong."""
    raise NotImplementedError("clead_kernels has first derivatives only: call backward or grad without create_graph")
