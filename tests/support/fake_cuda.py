"""A CUDA device that is not there: its tensors know shape, type and device, but hold no numbers.

:class:`FakeCuda` runs unchanged training code on such tensors (PyTorch's fake tensors). CUDA's own
autocast casts them, and every operator that reaches the device is looked at:

- types that CUDA refuses to mix, devices that do not meet, shapes that a kernel refuses: a
  :class:`FakeCudaError` names the operator, the module and the line;
- what makes the host wait for the device (scalars and sizes that are read, copies): :attr:`syncs`;
- memory: what the storages that are alive take, as ``torch.cuda.max_memory_allocated`` counts it.

Tensors on the host are real, and whatever is copied there is zeros: the assignment of queries to
targets runs on a table of zeros. Operators whose result's size depends on numbers give the largest
one. Scratch memory inside kernels (cuDNN, cuBLAS) and fragmentation are not seen.
"""

import contextlib
import heapq
import math
import sys
import traceback
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from possam.model.ops import deformable, triton_sampling

CUDA = torch.device("cuda", 0)
_ROOT = f"{Path(__file__).resolve().parents[2]}/"
BLOCK = 512
"""Bytes: CUDA's caching allocator rounds every allocation up to a multiple."""

aten = torch.ops.aten

SAME_TYPE = {
    *("mm", "bmm", "addmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "vdot", "linear"),
    *("convolution", "convolution_backward", "grid_sampler_2d", "grid_sampler_2d_backward"),
    *("lerp", "lerp_", "native_layer_norm", "native_group_norm"),
    *("index_put", "index_put_", "_index_put_impl_", "index_add", "index_add_", "index_copy"),
    *("scatter", "scatter_", "scatter_add", "scatter_add_", "scatter_reduce", "scatter_reduce_"),
    *("_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention"),
}
"""Operators that refuse floats of two types on CUDA. Fake tensors let most of them pass."""

_READS = {"_local_scalar_dense", "item", "equal", "is_nonzero"}
_SIZES = {"nonzero", "masked_select", "unique_consecutive", "_unique2", "unique_dim", "bincount"}


_PINNED = "_host_memory_is_pinned"
"""Attribute of a tensor that the stand-in for ``Tensor.pin_memory`` returned."""


class FakeCudaError(RuntimeError):
    """What the device would refuse."""


class Sync(NamedTuple):
    """A place where the host waits for the device.

    Attributes:
        kind: ``scalar read``, ``size read``, ``to host`` or ``to device``. A copy to the device
            waits, too, unless the host's memory is pinned and the copy need not block.
        operator: as PyTorch names it.
        place: file and function of this repository.
    """

    kind: str
    operator: str
    place: str


class FakeCuda(TorchDispatchMode):
    """The device, within ``with FakeCuda() as device``.

    Attributes:
        syncs: how often each place made the host wait, since :meth:`reset`.
        allocated, peak: bytes that are alive, and the most since :meth:`reset`.
        peak_place: where the peak was reached.
    """

    def __init__(self) -> None:
        super().__init__()
        self.syncs: Counter[Sync] = Counter()
        self.allocated = self.peak = 0
        self.peak_place = ""
        self._storages: dict[int, tuple[weakref.ref[Any], int]] = {}
        self._modules: list[nn.Module] = []
        self._names: dict[int, str] = {}
        self._node = ""
        self._stack = contextlib.ExitStack()

    def name_modules(self, model: nn.Module) -> None:
        """Let errors name the modules of ``model`` by their path in it."""
        self._names |= {id(module): name for name, module in model.named_modules() if name}

    def reset(self) -> None:
        """Forget all synchronisations, and the peak but for what is alive."""
        self.syncs.clear()
        self.peak, self.peak_place = self.allocated, ""

    def __enter__(self) -> "FakeCuda":
        self._stack.enter_context(_cuda_is_there())
        self._stack.enter_context(mock.patch.object(Tensor, "backward", self._backward_of))
        # Converting a tensor of the host to a fake one is what a copy to the device does.
        self._stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        for hook in (
            register_module_forward_pre_hook(lambda module, _: self._modules.append(module)),
            register_module_forward_hook(lambda *_: self._leave_module()),
        ):
            self._stack.callback(hook.remove)
        super().__enter__()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        super().__exit__(kind, error, trace)
        self._stack.close()
        module, self._modules = self._where(), []
        if isinstance(error, RuntimeError) and not isinstance(error, FakeCudaError):
            # Refused before it came to an operator of the device.
            place = _place(trace)
            raise FakeCudaError(f"{place}{module}: {error}") from error

    def _leave_module(self) -> None:
        self._modules.pop()

    def _where(self) -> str:
        """The module that computes, or the step of the backward pass, if there is one."""
        if self._node:
            return f", in the backward pass ({self._node})"
        if not self._modules:
            return ""
        module = self._modules[-1]
        kind = type(module).__name__
        name = self._names.get(id(module))
        return f", in {name} ({kind})" if name else f", in {kind}"

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.prim.device.default:  # most calls: PyTorch asks where a tensor lies
            return args[0].fake_device
        kwargs = kwargs or {}
        tensors = _tensors(args, kwargs)
        from_device = any(tensor.device.type == "cuda" for tensor in tensors)
        device = kwargs.get("device")
        to_device = from_device if device is None else torch.device(device).type == "cuda"
        if not from_device and not to_device:
            with _disable_current_modes():
                return func(*args, **kwargs)
        name = func.overloadpacket.__name__
        try:
            _check_types(name, tensors)
            handled, out = self._synchronising(name, func, args, kwargs, tensors, to_device)
            if not handled:
                out = func(*args, **kwargs)
        except FakeCudaError as error:
            raise FakeCudaError(f"{_place()}{self._where()}: {error}") from None
        except Exception as error:  # whatever a kernel's check raises
            raise FakeCudaError(f"{_place()}{self._where()}: {func}: {error}") from error
        for tensor in _tensors((out,), {}):
            self._allocate(tensor)
        return out

    def _synchronising(
        self,
        name: str,
        func: Any,
        args: Any,
        kwargs: dict[str, Any],
        tensors: list[Tensor],
        to_device: bool,
    ) -> tuple[bool, Any]:
        """Whether ``func`` makes the host wait and was answered here, and the answer."""
        first = tensors[0] if tensors else None
        from_device = first is not None and first.device.type == "cuda"
        if name == "copy_" and tensors[0].device != tensors[1].device:
            self._count("to device" if from_device else "to host", func)
            return True, tensors[0]
        if name in _READS and first is not None:
            self._count("scalar read", func)
            return True, True if name == "equal" else _zero(first)
        if name in _SIZES and first is not None:
            self._count("size read", func)
            return True, _largest(name, func, first, args)
        if name in ("_to_copy", "to") and first is not None and from_device != to_device:
            if from_device:
                self._count("to host", func)
                with _disable_current_modes():
                    dtype = kwargs.get("dtype") or first.dtype
                    return True, torch.zeros(tuple(first.shape), dtype=dtype)
            if not (kwargs.get("non_blocking") and hasattr(first, _PINNED)):
                self._count("to device", func)
            return False, None
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            return self._index(name, func, args, kwargs)
        return False, None

    def _index(self, name: str, func: Any, args: Any, kwargs: dict[str, Any]) -> tuple[bool, Any]:
        indices = [index for index in args[1] if index is not None]
        if any(index.device.type == "cpu" and index.dim() for index in indices):
            self._count("to device", func)
        if not any(index.dtype in (torch.bool, torch.uint8) for index in indices):
            return False, None
        # A single number is written where a mask is true without asking for their count.
        if name == "index" or args[2].numel() != 1:
            self._count("size read", func)
        if name != "index":
            return False, None
        positions: list[Tensor | None] = []
        for index in args[1]:
            if index is not None and index.dtype in (torch.bool, torch.uint8):
                positions += [index.new_empty(index.numel(), dtype=torch.int64)] * index.dim()
            else:
                positions.append(index)
        return True, func(args[0], positions, **kwargs)

    def _count(self, kind: str, func: Any) -> None:
        self.syncs[Sync(kind, str(func), _place(lines=False))] += 1

    def _allocate(self, tensor: Tensor) -> None:
        if tensor.device.type != "cuda":
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._storages:
            return
        size = math.ceil(storage.nbytes() / BLOCK) * BLOCK

        def free(_: Any) -> None:
            self.allocated -= self._storages.pop(key)[1]

        self._storages[key] = weakref.ref(storage, free), size
        self.allocated += size
        if self.allocated > self.peak:
            self.peak = self.allocated
            self.peak_place = _place() + self._where()

    @property
    def _backward_of(self) -> Callable[..., None]:
        real = Tensor.backward

        def backward(tensor: Tensor, *args: Any, **kwargs: Any) -> None:
            if tensor.device.type != "cuda":
                real(tensor, *args, **kwargs)
                return
            for self._node in run_backward(tensor):
                pass
            self._node = ""

        return backward


def run_backward(loss: Tensor) -> Iterator[str]:
    """``loss.backward()`` of a scalar, by calling the nodes of its graph one after another.

    PyTorch's own engine wants a thread per device, and there is no device. The order is the
    engine's: the latest operator first. ``loss`` is detached, so that a node is freed with all that
    it has saved as soon as it is done. Yields each node's name before the node is called.
    """
    root = loss.grad_fn
    if root is None:
        raise FakeCudaError("backward of a tensor without a graph")
    loss.detach_()
    missing = _count_edges(root)
    ready: list[tuple[int, int, Any]] = [(0, 0, root)]
    gradients: dict[Any, dict[int, Tensor]] = {root: {0: torch.ones_like(loss)}}
    del root
    pushed = 0
    with torch.no_grad():
        while ready:
            node = heapq.heappop(ready)[-1]
            yield node.name()
            found = _call(node, gradients.pop(node, {}))
            edges = node.next_functions
            del node
            for (following, number), gradient in zip(edges, found, strict=True):
                if following is None:
                    continue
                if gradient is not None:
                    slots = gradients.setdefault(following, {})
                    fitting = _fit(gradient, following, number)
                    slots[number] = slots[number] + fitting if number in slots else fitting
                    del slots, fitting
                missing[following] -= 1
                if not missing[following]:
                    del missing[following]
                    pushed += 1
                    heapq.heappush(ready, (-_order(following), pushed, following))
            # What the loop's names hold must not outlive the step.
            following = gradient = None
            del edges, found


def _order(node: Any) -> int:
    """When its operator ran; gradients of weights, which have no operator, come first."""
    return sys.maxsize if hasattr(node, "variable") else int(node._sequence_nr())


def _count_edges(root: Any) -> dict[Any, int]:
    """How many edges lead to each node below ``root``."""
    edges: dict[Any, int] = {}
    waiting = [root]
    while waiting:
        for following, _ in waiting.pop().next_functions:
            if following is not None:
                if following not in edges:
                    waiting.append(following)
                edges[following] = edges.get(following, 0) + 1
    return edges


def _call(node: Any, gradients: dict[int, Tensor]) -> tuple[Tensor | None, ...]:
    """The gradients that ``node`` gives to the nodes that follow it."""
    if hasattr(node, "variable"):  # the end of the graph: a weight
        weight = node.variable
        for gradient in gradients.values():
            weight.grad = gradient if weight.grad is None else weight.grad + gradient
        return ()
    inputs = [gradients.get(number) for number in range(len(node._input_metadata))]
    gradients.clear()
    found = (
        node.apply(*inputs)
        if isinstance(node, torch.autograd.function.FunctionCtx)
        else node(*inputs)
    )
    return found if isinstance(found, tuple) else (found,)


def _fit(gradient: Tensor, node: Any, number: int) -> Tensor:
    """The gradient in the shape and type of the tensor that it belongs to."""
    wanted = node._input_metadata[number]
    if gradient.device != wanted.device:
        raise FakeCudaError(f"{node.name()}: gradient on {gradient.device}, not {wanted.device}")
    if tuple(gradient.shape) != tuple(wanted.shape):
        gradient = gradient.sum_to_size(tuple(wanted.shape))
    return gradient.to(wanted.dtype)


def _tensors(args: Any, kwargs: dict[str, Any]) -> list[Tensor]:
    """All tensors of a call, those in its lists, too."""
    found = []
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += [item for item in value if isinstance(item, Tensor)]
    return found


def _check_types(name: str, tensors: list[Tensor]) -> None:
    if name in SAME_TYPE:
        found = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
        if len(found) > 1:
            kinds = " and ".join(sorted(str(kind).removeprefix("torch.") for kind in found))
            raise FakeCudaError(f"{name} refuses {kinds} together on CUDA")


def _zero(tensor: Tensor) -> bool | int | float:
    if tensor.dtype == torch.bool:
        return False
    return 0.0 if tensor.is_floating_point() else 0


def _largest(name: str, func: Any, tensor: Tensor, args: Any) -> Any:
    """The largest result of an operator whose size depends on numbers."""
    count = tensor.numel()
    if name == "nonzero":
        return tensor.new_empty((count, tensor.dim()), dtype=torch.int64)
    if name == "masked_select":
        return tensor.new_empty(count)
    if name == "unique_consecutive":
        places = tensor.new_empty(count, dtype=torch.int64)
        return tensor.new_empty(count), places, places.clone()
    raise FakeCudaError(f"{func} reads a size from the device")


def _place(trace: Any = None, *, lines: bool = True) -> str:
    """The innermost line or function of this repository, not of this module, that is running.

    ``trace``: of an error; else where the call comes from.
    """
    frames = traceback.walk_stack(sys._getframe(1))
    if trace is not None:
        frames = reversed(list(traceback.walk_tb(trace)))
    for frame, line in frames:
        file = frame.f_code.co_filename
        own = file != __file__ and frame.f_code.co_name != "__torch_function__"
        if own and file.startswith(_ROOT) and "/.venv/" not in file:
            return f"{file.removeprefix(_ROOT)}:{line if lines else frame.f_code.co_name}"
    return "no line of this repository"


class _Generator:
    """``torch.Generator``, which cannot be made for a device that is not there."""

    def __new__(cls, device: torch.device | str = "cpu") -> Any:
        if torch.device(device).type != "cuda":
            return _REAL_GENERATOR(device)
        return super().__new__(cls)

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)

    def manual_seed(self, seed: int) -> "_Generator":
        return self


_REAL_GENERATOR = torch.Generator


def _without_generator(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def drawn(*args: Any, generator: Any = None, **kwargs: Any) -> Tensor:
        if generator is None or isinstance(generator, _Generator):
            return draw(*args, **kwargs)
        return draw(*args, generator=generator, **kwargs)

    return drawn


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *,
    scale: float | None = None,
) -> Tensor:
    """``scaled_dot_product_attention`` by the kernel that an A100 takes for it.

    PyTorch asks the device which: flash attention for half precision without a mask, on head sizes
    that are multiples of 8; else the memory-efficient one, which adds the mask as numbers.
    """
    if query.device.type != "cuda":
        return _REAL_ATTENTION(query, key, value, attn_mask, scale=scale)
    if torch.is_autocast_enabled("cuda"):
        kind = torch.get_autocast_dtype("cuda")
        query, key, value = query.to(kind), key.to(kind), value.to(kind)
    half, size = query.dtype in (torch.bfloat16, torch.float16), query.shape[-1]
    if attn_mask is None and half and size <= 256:
        padded = [
            nn.functional.pad(x, (0, -size % 8)) if size % 8 else x for x in (query, key, value)
        ]
        scale = size**-0.5 if scale is None else scale
        out: Tensor = aten._scaled_dot_product_flash_attention(*padded, scale=scale)[0]
        return out[..., :size]
    bias = None
    if attn_mask is not None:
        bias = attn_mask
        if bias.dtype == torch.bool:
            bias = torch.zeros_like(bias, dtype=query.dtype)
            bias.masked_fill_(attn_mask.logical_not(), float("-inf"))
        bias = bias.expand(*query.shape[:3], key.shape[2])
    training = torch.is_grad_enabled() and query.requires_grad
    out = aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, training, scale=scale
    )[0]
    return out


_REAL_ATTENTION = nn.functional.scaled_dot_product_attention


def _to(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    """``nn.Module.to``, which fails where it exchanges fake weights for themselves."""
    if args == (CUDA,) and all(weight.device == CUDA for weight in module.parameters()):
        return module
    return _REAL_TO(module, *args, **kwargs)


_REAL_TO = nn.Module.to


def _launch(kernel: Any, inputs: tuple[Tensor, ...], others: tuple[Tensor, ...]) -> None:
    """What a Triton kernel of the sampling needs of its tensors; nothing is launched."""
    *floats, sizes = (*others, *inputs)
    for tensor in floats:
        if tensor.dtype != torch.float32 or not tensor.is_contiguous():
            raise FakeCudaError(f"{kernel}: {tensor.dtype}, strides {tensor.stride()}")
    if sizes.dtype != torch.int32:
        raise FakeCudaError(f"{kernel}: sizes are {sizes.dtype}, not int32")


def _pin(tensor: Tensor) -> Tensor:
    pinned = tensor.clone()
    setattr(pinned, _PINNED, True)
    return pinned


@contextlib.contextmanager
def _cuda_is_there() -> Iterator[None]:
    """Replace what asks the driver, within the context."""
    fork_rng = torch.random.fork_rng
    # what one device has does not fit to another
    kept = (deformable._triton_sampler.cache_clear, triton_sampling._sizes.cache_clear)
    with contextlib.ExitStack() as stack:
        for forget in kept:
            forget()
            stack.callback(forget)
        for owner, name, value in (
            (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
            (torch.cuda, "is_bf16_supported", lambda *_, **__: True),
            (torch, "Generator", _Generator),
            (torch, "rand", _without_generator(torch.rand)),
            (torch.random, "fork_rng", lambda *_, **__: fork_rng(devices=[])),
            (nn.Module, "to", _to),
            (Tensor, "pin_memory", _pin),
            (nn.functional, "scaled_dot_product_attention", _attention),
            (FakeTensor, "tolist", lambda tensor: tensor.cpu().tolist()),
            (triton_sampling, "_launch", _launch),
            (triton_sampling, "try_out", lambda device: None),
        ):
            stack.enter_context(mock.patch.object(owner, name, value))
        yield
