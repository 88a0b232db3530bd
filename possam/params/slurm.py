"""What jobs ask SLURM for: ``params/slurm.yaml``, checked. Not part of any result's identity."""

import re
import shlex
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import AfterValidator, StringConstraints, model_validator

from possam.params.reading import choose, merge, scale_names, validate
from possam.params.yaml import read_yaml
from possam.runtime.errors import InputError
from possam.runtime.options import Count, Options, Positive

Kind = Literal["world", "convert", "features", "train", "evaluate", "timing", "figure", "table"]
"""Kinds of jobs, each with its own allocation; ``timing``: evaluations that measure speed."""

_Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.,&|*!()\[\]-]+$")]

_FIELD_OF: dict[str, str] = {
    **{name: name for name in ("account", "partition", "constraint", "qos", "reservation")},
    **dict.fromkeys(("gres", "gpus", "gpus-per-node", "gpus-per-task"), "gpus and gpu_type"),
    **dict.fromkeys(("mem", "mem-per-cpu", "mem-per-gpu"), "memory_gib"),
    **dict.fromkeys(("cpus-per-task", "cpus-per-gpu"), "cpus"),
    **dict.fromkeys(("ntasks", "ntasks-per-node", "ntasks-per-gpu", "tasks-per-node"), "tasks"),
    **dict.fromkeys(("requeue", "no-requeue"), "max_requeues"),
    **{"time": "minutes", "nodes": "nodes", "exclusive": "exclusive", "signal": "signal_s"},
}
"""Options of sbatch that a field stands for."""

_TAKEN = frozenset(
    {
        *("array", "chdir", "comment", "error", "export", "job-name", "open-mode", "output"),
        *("parsable", "wrap"),
    }
)
"""Options of sbatch that every submission sets by itself."""


def _check_option(option: str) -> str:
    """``option`` if it is ``--name`` or ``--name=value`` and no field or submission decides it."""
    match = re.fullmatch(r"--([a-z][a-z0-9-]*)(=[^\n]+)?", option)
    if match is None:
        raise ValueError(f"{option!r} is no long option of sbatch; write --name or --name=value")
    # sbatch takes the beginning of an option's name, too
    for name in (*_FIELD_OF, *_TAKEN):
        if name.startswith(match[1]):
            instead = _FIELD_OF.get(name)
            remedy = f"use {instead}" if instead else "it is set for every job, so remove it"
            raise ValueError(f"{option}: sets {name} of sbatch; {remedy}")
    return option


_Option = Annotated[str, AfterValidator(_check_option)]


class Allocation(Options):
    """What one job asks for.

    Attributes:
        account, partition, qos, reservation, constraint: as SLURM takes them; None: the cluster's
            default.
        extra: further options of sbatch, ``--name`` or ``--name=value``.
        setup: shell commands that run in the job before its program; the first that fails ends it.
        container: Apptainer image (``containers/possam.def``) that the program runs in; None: none.
        gpus: GPUs per node, of ``gpu_type`` (a gres type such as ``a100``; None: any).
        gpu_option: the option of sbatch that asks for them.
        cpus: cores per process.
        memory_gib: memory per node.
        minutes: time limit.
        device: the device that torch computes on.
        exclusive: whether no other job may run on the node.
        nodes, tasks: nodes, and processes per node; more than one only for trainings.
        max_requeues: how often a training is requeued after a time-out, and how often it is
            submitted again after its job was lost.
        signal_s: seconds before the time limit at which a training writes a checkpoint and is
            requeued.
        share_towers: whether trainings that read the same features run in one job, behind one pass
            of the frozen towers.
    """

    RESOURCES: ClassVar[tuple[str, ...]] = (
        *("slurm_account", "slurm_partition", "qos", "constraint", "gres", "cpus_per_task"),
        *("mem_mb", "runtime", "slurm_extra", "device", "setup"),
    )
    """Keys of :attr:`resources`."""

    account: _Name | None
    partition: _Name | None
    qos: _Name | None
    reservation: _Name | None
    constraint: _Name | None
    extra: tuple[_Option, ...]
    setup: tuple[Annotated[str, StringConstraints(min_length=1)], ...]
    container: Annotated[str, StringConstraints(min_length=1)] | None
    gpu_type: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.]+$")] | None
    gpu_option: Literal["gres", "gpus-per-node"]
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
    share_towers: bool

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
        """What a rule gets: resources for Snakemake's SLURM executor (None: not asked for), and
        what its command uses: ``device``, and ``setup`` as the beginning of its shell script.
        """
        # gres, because with gpu and tasks the executor would run the stage once per GPU.
        gpus = self.gpu_request
        options = ["--exclusive"] if self.exclusive else []
        options += [f"--reservation={self.reservation}"] if self.reservation else []
        options += [f"--gpus-per-node={gpus['gpus_per_node']}"] if "gpus_per_node" in gpus else []
        # Snakemake's strict shell would end at the first unset variable of a module.
        setup = ["set +eu", *self.setup_lines, "set -eu", ""] if self.setup else []
        if self.container is not None:
            setup = [*setup[:-1], f'possam() {{ {self.inside} possam "$@"; }}', ""]
        return {
            "slurm_account": self.account,
            "slurm_partition": self.partition,
            "qos": self.qos,
            "constraint": self.constraint,
            "gres": gpus.get("gres", ""),
            "cpus_per_task": self.cpus,
            "mem_mb": self.memory_gib * 1024,
            "runtime": self.minutes,
            "slurm_extra": shlex.join([*options, *self.extra]),
            "device": self.device,
            "setup": "\n".join(setup),
        }

    @property
    def gpu_request(self) -> dict[str, str]:
        """``{"gres": "gpu:a100:8"}`` or ``{"gpus_per_node": "a100:8"}``; empty without GPUs."""
        if not self.gpus:
            return {}
        count = ":".join(filter(None, [self.gpu_type, str(self.gpus)]))
        if self.gpu_option == "gres":
            return {"gres": f"gpu:{count}"}
        return {"gpus_per_node": count}

    @property
    def inside(self) -> str:
        """Shell words before a command that run it in the container; empty without one.

        The checkout is bound at its own path; ``APPTAINER_BIND`` in ``setup`` binds other folders.
        """
        if self.container is None:
            return ""
        gpu = ["--nv"] if self.device == "cuda" else []
        words = ["apptainer", "exec", *gpu, "--bind", '"$PWD"', "--pwd", '"$PWD"']
        return " ".join([*words, shlex.quote(self.container)])

    @property
    def setup_lines(self) -> list[str]:
        """Lines of a bash script that run ``setup`` and end it at the first failure."""
        lines: list[str] = []
        for command in self.setup:
            said = shlex.quote(f"setup in params/slurm.yaml failed: {command}")
            failed = f"if [ $? -ne 0 ]; then echo {said} >&2; exit 1; fi"
            lines += [command, failed]
        return lines

    @property
    def said(self) -> frozenset[str]:
        """Variables of sbatch, such as SBATCH_ACCOUNT, for what is said here.

        They would win over the options in a script.
        """
        names = ("account", "partition", "qos", "reservation", "constraint")
        options = [name for name in names if getattr(self, name) is not None]
        options += [option[2:].partition("=")[0].replace("-", "_") for option in self.extra]
        return frozenset(f"SBATCH_{option.upper()}" for option in options)


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
                if kind != "train" and asked.share_towers:
                    raise InputError(f"{source}: share_towers: only trainings do")

    def of(self, scale: str, kind: Kind) -> Allocation:
        """What a job of ``kind`` asks for at ``scale``; InputError if the scale has no entry."""
        if scale not in self._all:
            raise InputError(
                f"{self._source}: scales: {scale!r} has no entry; "
                f"those that have: {', '.join(self._all)}"
            )
        return self._all[scale][kind]
