"""What jobs ask SLURM for: ``params/slurm.yaml``, checked. Not part of any result's identity."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import StringConstraints, model_validator

from possam.params.reading import choose, merge, read_yaml, validate
from possam.runtime.errors import InputError
from possam.runtime.options import Count, Options, Positive

Kind = Literal["world", "convert", "features", "train", "evaluate", "timing", "figure", "table"]
"""Kinds of jobs, each with its own allocation; ``timing``: evaluations that measure speed."""

_Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.,&|*!()\[\]-]+$")]


class Allocation(Options):
    """What one job asks for.

    Attributes:
        account, partition, constraint: as SLURM takes them; None: the cluster's default.
        gpus: GPUs per node, of ``gpu_type`` (a gres type such as ``a100``; None: any).
        cpus: cores per process.
        memory_gib: memory per node.
        minutes: time limit.
        device: the device that torch computes on.
        exclusive: whether no other job may run on the node.
        nodes, tasks: nodes, and processes per node (1 except for trainings).
        max_requeues: how often a training is requeued after a time-out, and how often it is
            submitted again after its job was lost.
        signal_s: seconds before the time limit at which a training is requeued.
    """

    RESOURCES: ClassVar[tuple[str, ...]] = (
        *("slurm_account", "slurm_partition", "constraint", "gres", "cpus_per_task"),
        *("mem_mb", "runtime", "slurm_extra", "device"),
    )
    """Keys of :attr:`resources`."""

    account: _Name | None
    partition: _Name | None
    constraint: _Name | None
    gpu_type: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.]+$")] | None
    gpus: Count
    cpus: Positive
    memory_gib: Positive
    minutes: Positive
    device: Literal["cpu", "cuda"]
    exclusive: bool
    nodes: Positive
    tasks: Positive
    max_requeues: Count
    signal_s: Positive

    @model_validator(mode="after")
    def _fits(self) -> "Allocation":
        if self.device == "cuda" and self.tasks != self.gpus:
            raise ValueError(
                f"device: cuda takes one process per GPU, but tasks is {self.tasks} and gpus is "
                f"{self.gpus}; make them equal"
            )
        if self.gpu_type is not None and not self.gpus:
            raise ValueError("gpu_type: goes with gpus of at least 1")
        return self

    @property
    def world_size(self) -> int:
        """Processes of the whole job."""
        return self.nodes * self.tasks

    @property
    def resources(self) -> dict[str, int | str | None]:
        """Resources for Snakemake's SLURM executor (None: not asked for), and the device.

        GPUs are asked for by ``gres``. With ``gpu`` and ``tasks`` the executor would start one task
        per GPU, and the stage would run several times.
        """
        return {
            "slurm_account": self.account,
            "slurm_partition": self.partition,
            "constraint": self.constraint,
            "gres": self.gres or "",
            "cpus_per_task": self.cpus,
            "mem_mb": self.memory_gib * 1024,
            "runtime": self.minutes,
            "slurm_extra": "--exclusive" if self.exclusive else "",
            "device": self.device,
        }

    @property
    def gres(self) -> str | None:
        """``gpu:a100:8``; None where no GPU is asked for."""
        if not self.gpus:
            return None
        return ":".join(["gpu", *([self.gpu_type] if self.gpu_type else []), str(self.gpus)])


class _File(Options):
    defaults: dict[str, Any]
    scales: dict[str, dict[Kind, dict[str, Any]]]


class Allocations:
    """``slurm.yaml`` of a ``params`` folder, read and checked as a whole.

    Raises:
        InputError: an unknown key, a wrong type, or several processes for another job than a
            training.
    """

    def __init__(self, *, folder: Path = Path("params")) -> None:
        self._source = str(folder / "slurm.yaml")
        file = validate(_File, read_yaml(folder / "slurm.yaml"), source=self._source)
        known = [path.stem for path in (folder / "scales").glob("*.yaml")]
        for scale in file.scales:
            choose("scale", scale, known, self._source, "scales")
        self._all: dict[str, dict[str, Allocation]] = {
            scale: {
                kind: self._checked(scale, kind, merge(file.defaults, kinds.get(kind, {})))
                for kind in get_args(Kind)
            }
            for scale, kinds in file.scales.items()
        }

    def _checked(self, scale: str, kind: Kind, values: dict[str, Any]) -> Allocation:
        source = f"{self._source}: scales.{scale}.{kind}"
        allocation = validate(Allocation, values, source=source)
        if kind != "train" and allocation.world_size > 1:
            raise InputError(f"{source}: nodes and tasks: only trainings run in several processes")
        return allocation

    def of(self, scale: str, kind: Kind) -> Allocation:
        """What a job of ``kind`` asks for at ``scale``.

        Raises:
            InputError: the scale has no entry.
        """
        if scale not in self._all:
            raise InputError(
                f"{self._source}: scales: {scale!r} has no entry; "
                f"those that have: {', '.join(self._all)}"
            )
        return self._all[scale][kind]
