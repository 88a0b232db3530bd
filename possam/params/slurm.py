"""What jobs ask SLURM for: ``params/slurm.yaml``, checked. Not part of any result's identity."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import StringConstraints, model_validator

from possam.params.reading import choose, merge, read_yaml, scale_names, validate
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
        nodes, tasks: nodes, and processes per node; more than one only for trainings.
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
        """Resources for Snakemake's SLURM executor (None: not asked for), and the device."""
        # gres, because with gpu and tasks the executor would run the stage once per GPU.
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
        return ":".join(filter(None, ["gpu", self.gpu_type, str(self.gpus)]))


class _File(Options):
    defaults: dict[str, Any]
    scales: dict[str, dict[Kind, dict[str, Any]]]


class Allocations:
    """``slurm.yaml`` of a ``params`` folder, read and checked as a whole.

    Raises:
        InputError: an unknown key, a wrong type, or several processes for a job that is no
            training.
    """

    def __init__(self, *, folder: Path = Path("params")) -> None:
        self._source = str(folder / "slurm.yaml")
        file = validate(_File, read_yaml(folder / "slurm.yaml"), source=self._source)
        self._all: dict[str, dict[str, Allocation]] = {scale: {} for scale in file.scales}
        for scale, kinds in file.scales.items():
            choose("scale", scale, scale_names(folder), self._source, "scales")
            for kind in get_args(Kind):
                source = f"{self._source}: scales.{scale}.{kind}"
                values = merge(file.defaults, kinds.get(kind, {}))
                asked = self._all[scale][kind] = validate(Allocation, values, source=source)
                if kind != "train" and asked.world_size > 1:
                    raise InputError(
                        f"{source}: nodes and tasks: only trainings run in several processes"
                    )

    def of(self, scale: str, kind: Kind) -> Allocation:
        """What a job of ``kind`` asks for at ``scale``; InputError if the scale has no entry."""
        if scale not in self._all:
            raise InputError(
                f"{self._source}: scales: {scale!r} has no entry; "
                f"those that have: {', '.join(self._all)}"
            )
        return self._all[scale][kind]
