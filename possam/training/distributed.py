"""The processes of one training: who is who, and how they exchange values.

Plain ``torch.distributed``, without a wrapper around the model: gradients are summed once per step
(``sharding``), in an order that makes the result independent of the number of processes. The 200 MB
of 51 M parameters, against a second of computing, need no overlap with the backward pass.

Counts, decisions and messages travel over gloo on the CPU, so that a process that ended is noticed
at once. On CUDA the gradients travel over NCCL.
"""

import contextlib
import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import rendezvous

from possam.runtime.environment import PROCESS_VARIABLES, Environment
from possam.runtime.errors import InputError, PossamError, TrainingError

T = TypeVar("T")

TIMEOUT = timedelta(minutes=10)
"""How long a process waits for the others: at the start, and in every exchange."""

_FAILURE = "possam/failure"


def resolve_device(device: str | torch.device) -> torch.device:
    """The requested device, or an InputError if it does not exist: there is no silent fallback."""
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"device: {device!r} is not a device; use 'cpu' or 'cuda'") from error
    if found.type not in {"cpu", "cuda"}:
        raise InputError(f"device: {found.type!r} is not supported; use 'cpu' or 'cuda'")
    if found.type == "cuda" and not torch.cuda.is_available():
        raise InputError("device: 'cuda' was asked for, but there is no CUDA device; use 'cpu'")
    return found


class LostProcessError(TrainingError):
    """Another process of the training ended, or does not answer."""


@dataclass(frozen=True, kw_only=True)
class TrainingProcess:
    """One process of a training.

    Attributes:
        device: what it computes on.
        rank: 0..world_size-1; only rank 0 writes files and prints.
    """

    device: torch.device
    rank: int = 0
    world_size: int = 1
    _store: Any = field(default=None, repr=False, compare=False)

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    @contextlib.contextmanager
    def exchange(self) -> Iterator[None]:
        """Wrap an exchange; raises LostProcessError if another process ended or does not answer."""
        try:
            yield
        except RuntimeError as error:
            raise LostProcessError(self._why(error)) from error

    def _why(self, error: RuntimeError) -> str:
        with contextlib.suppress(RuntimeError):
            if self._store.check([_FAILURE]):
                return f"stopped, because {self._store.get(_FAILURE).decode()}"
        return (
            f"process {self.rank} of {self.world_size} lost another one ({_short(error)}); that "
            "one was killed, or its own message says what went wrong. The same command goes on "
            "from the last checkpoint"
        )

    def first(self, work: Callable[[], T]) -> T:
        """The result of ``work``, which only rank 0 runs while the others wait.

        If it raises a PossamError, every process raises it. The result is pickled.
        """
        if self.world_size == 1:
            return work()
        outcome: list[Any] = [None, None]
        if self.is_first:
            try:
                outcome[0] = work()
            except PossamError as error:
                outcome[1] = error
        with self.exchange():
            dist.broadcast_object_list(outcome, src=0, device=torch.device("cpu"))
        if outcome[1] is not None:
            raise outcome[1]
        result: T = outcome[0]
        return result

    def gather(self, values: Sequence[int]) -> list[int]:
        """``values`` of all ranks, in the order of ranks; every rank gives equally many."""
        if self.world_size == 1:
            return list(values)
        own = torch.tensor(values, dtype=torch.int64)
        everyone = [torch.empty_like(own) for _ in range(self.world_size)]
        with self.exchange():
            dist.all_gather(everyone, own)
        return torch.cat(everyone).tolist()

    def collect(self, value: Any) -> list[Any]:
        """``value`` of all ranks, in the order of ranks. Values are pickled."""
        values = [value] * self.world_size
        if self.world_size > 1:
            with self.exchange():
                dist.all_gather_object(values, value)
        return values

    def agree(self, what: str, value: str) -> None:
        """Raise an InputError unless ``value`` is the same in all processes."""
        values = self.collect(value)
        strange = [rank for rank, other in enumerate(values) if other != values[0]]
        if strange:
            raise InputError(
                f"{what}: process {strange[0]} has {values[strange[0]]}, but process 0 has "
                f"{values[0]}; start all processes from the same code, parameters and files"
            )


def single_process(device: str | torch.device) -> TrainingProcess:
    """The only process of a training; an InputError if there is no such device."""
    return TrainingProcess(device=resolve_device(device))


@contextlib.contextmanager
def join(device: str, variables: Mapping[str, str] | None = None) -> Iterator[TrainingProcess]:
    """Become one process of a training, the only one or one of several.

    Launchers (``torchrun``, submitit's export, ``possam train --processes``) set ``RANK``,
    ``WORLD_SIZE``, ``LOCAL_RANK``, ``MASTER_ADDR`` and ``MASTER_PORT``. Without them, or with a
    world size of one, there is one process and no process group.

    Args:
        device: ``cpu``, or ``cuda``. Each of several processes takes the GPU of its local rank, or
            the only one that it can see.
        variables: environment variables; ``None``: those of this process.

    Raises:
        InputError: missing or impossible variables, or too few GPUs.
        LostProcessError: the port is taken, or other processes do not join in time.
    """
    names = _read(Environment.load(variables).processes)
    if names is None or names.world_size == 1:
        yield single_process(device)
        return
    own = _own_device(device, names.local_rank, names.world_size)
    group = "cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo"
    try:
        url = f"tcp://{names.address}:{names.port}"
        store, _, _ = next(rendezvous(url, names.rank, names.world_size, timeout=TIMEOUT))
        dist.init_process_group(
            group,
            store=dist.PrefixStore("possam", store),
            rank=names.rank,
            world_size=names.world_size,
            timeout=TIMEOUT,
        )
    except RuntimeError as error:
        raise LostProcessError(
            f"process {names.rank} of {names.world_size} did not meet the others at MASTER_ADDR "
            f"{names.address}, MASTER_PORT {names.port} ({_short(error)}); start all of "
            "them with the same address, of the machine of process 0, and a free port"
        ) from error
    process = TrainingProcess(
        device=own, rank=names.rank, world_size=names.world_size, _store=store
    )
    try:
        if own.type == "cuda":
            _check_gpus(process)
        yield process
    except LostProcessError:
        raise
    except BaseException as error:
        reason = str(error) or type(error).__name__
        with contextlib.suppress(RuntimeError):
            store.set(_FAILURE, f"process {process.rank} of {process.world_size} failed: {reason}")
        raise
    finally:
        dist.destroy_process_group()


def _short(error: RuntimeError) -> str:
    """The first sentence, without the position in PyTorch's sources."""
    text = re.sub(r"^\[[^\]]*\]\s*", "", str(error).strip()) or type(error).__name__
    return re.split(r"\.\s|\n", text, maxsplit=1)[0].rstrip(".")


class _Names(NamedTuple):
    rank: int
    world_size: int
    local_rank: int
    address: str
    port: int


def _read(variables: Mapping[str, str]) -> _Names | None:
    """The launcher's variables; None if there is no launcher; an InputError if they are wrong."""
    if not {"RANK", "WORLD_SIZE"} & variables.keys():
        return None
    if missing := [name for name in PROCESS_VARIABLES if name not in variables]:
        raise InputError(
            f"environment: {', '.join(sorted(variables))} are set, but {', '.join(missing)} are "
            "not; a launcher of several processes sets all of them; unset them for one process"
        )

    def number(name: str, lowest: int, highest: int) -> int:
        text = variables[name]
        if not text.isascii() or not text.isdigit() or not lowest <= int(text) <= highest:
            raise InputError(
                f"environment: {name}={text!r}: expected a number from {lowest} to {highest}"
            )
        return int(text)

    world_size = number("WORLD_SIZE", 1, 2**20)
    rank = number("RANK", 0, world_size - 1)
    return _Names(
        rank=rank,
        world_size=world_size,
        local_rank=number("LOCAL_RANK", 0, rank),
        address=variables["MASTER_ADDR"],
        port=number("MASTER_PORT", 1, 65535),
    )


def _own_device(device: str, local_rank: int, world_size: int) -> torch.device:
    found = resolve_device(device)
    if found.type != "cuda":
        return found
    if found.index is not None:
        raise InputError(
            f"device: {device!r} names one GPU, but there are {world_size} processes; use 'cuda'"
        )
    visible = torch.cuda.device_count()
    # a launcher may show each process only its own GPU; _check_gpus finds two processes on one
    if visible > 1 and local_rank >= visible:
        raise InputError(
            f"device: LOCAL_RANK is {local_rank}, but only {visible} GPUs are visible here; start "
            "one process for each GPU"
        )
    own = torch.device("cuda", local_rank if visible > 1 else 0)
    torch.cuda.set_device(own)
    return own


def _check_gpus(process: TrainingProcess) -> None:
    gpu = f"{socket.gethostname()}, GPU {torch.cuda.get_device_properties(process.device).uuid}"
    everyone = process.collect(gpu)
    if len(set(everyone)) < len(everyone):
        twice = next(name for name in everyone if everyone.count(name) > 1)
        raise InputError(
            f"device: several processes share one GPU ({twice}); start one process for each GPU"
        )
