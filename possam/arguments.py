"""Arguments and options that several commands share, with their shell completion."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Argument, Context, Option

from possam.datasets.catalogue import datasets
from possam.runtime.environment import Environment
from possam.runtime.errors import InputError, PossamError

if TYPE_CHECKING:
    from possam.params.project import Project


def load_project(scale: str) -> "Project":
    """The parameters of a scale in ``params/``."""
    from possam.params.project import Project

    return Project(scale)


def names(kind: str) -> Callable[[Context], list[str]]:
    """Shell completion: the names of all ``runs``, ``tables``, ... of the scale that was typed."""

    def complete(context: Context) -> list[str]:
        try:
            scale = context.params.get("scale") or Environment.load().scale
            return sorted(getattr(load_project(scale), kind))
        except PossamError:
            return []  # the command itself says what is wrong with params/

    return complete


def scales() -> list[str]:
    """Shell completion: the files in ``params/scales``."""
    from possam.params.reading import scale_names

    try:
        return scale_names()
    except PossamError:
        return []


Launcher = Annotated[
    Literal["local", "slurm"], Option(help="slurm: a job as params/slurm.yaml says.")
]
LocalDevice = Annotated[str | None, Option(help="cpu or cuda (default: cpu).")]
Processes = Annotated[int, Option(help="Processes on this machine; cuda: one per GPU.")]
Scale = Annotated[
    str,
    Option(
        default_factory=lambda: Environment.load().scale,
        show_default="$POSSAM_SCALE, else mini",
        help="A file in params/scales.",
        autocompletion=scales,
    ),
]
AnyScale = Annotated[str | None, Option("--scale", help="Default: all.", autocompletion=scales)]
Seed = Annotated[int | None, Option(help="One of the scale's seeds (default: its first).")]
Device = Annotated[str, Option(help="cpu or cuda.")]
Workers = Annotated[int, Option(help="Processes.")]
Runs = Annotated[list[str], Argument(help="In params/runs.yaml.", autocompletion=names("runs"))]
Table = Annotated[str, Argument(help="In params/tables.yaml.", autocompletion=names("tables"))]
AcceptCode = Annotated[
    bool, Option("--accept-code", help="Go on from a run of other code; its results say so.")
]
AllowEmpty = Annotated[bool, Option("--allow-empty", help="Most images may have no segment.")]
WithoutInstances = Annotated[
    bool, Option("--without-instances", help="ade20k: each thing class is one segment.")
]
Dataset = Annotated[
    str,
    Argument(help="A wrong name prints the valid ones.", autocompletion=lambda: list(datasets())),
]


def only_locally(device: str | None, processes: int) -> None:
    """Raise an InputError if an option is given whose value ``params/slurm.yaml`` has."""
    if device is not None or processes != 1:
        option = "--device" if device is not None else "--processes"
        raise InputError(f"{option}: with --launcher slurm, params/slurm.yaml decides it")
