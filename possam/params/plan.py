"""``params/plan.yaml``: what a plan assumes where nothing was measured."""

from collections.abc import Mapping
from typing import NamedTuple, get_args

from pydantic import Field, model_validator

from possam.params.project import Project
from possam.params.reading import validate
from possam.params.slurm import Allocations, Kind
from possam.params.yaml import read_yaml
from possam.runtime.errors import InputError
from possam.runtime.options import Count, Options, Positive, Rate

Rates = dict[str, Rate]
"""Images per second of one unit, by SAM architecture, or by CLIP's config for runs without SAM."""


class HardwareParams(Options):
    """One kind of machine, and how fast it is.

    Attributes:
        unit: what hours are counted for: ``GPU`` or ``core``.
        source: where the rates come from; printed with every plan.
        per_node: units per node.
        per_job: units per job, by stage; if empty, the GPUs that ``slurm.yaml`` asks for.
        training, evaluation, features: images per second of one unit.
        operations: 10^12 floating-point operations of a forward pass per image: of each tower by
            the keys of :data:`Rates`, and of ``decoders``. Where they are given, ``training``
            follows from them.
        operations_per_second: 10^12 of one unit; goes with ``operations``.
        side: of the images (pixels) that ``operations`` and ``evaluation`` are for, whose cost
            grows with the area; None: of the scale's own.
        convert: images per second of one job.
        feature_bytes_per_image: in the cache of one tower, on average over the towers.
        trained_parameters: their number in the largest model.
        memory_gib: main memory of one training job.
    """

    unit: str
    source: str
    per_node: Positive
    per_job: dict[str, Positive] = Field(default_factory=dict)
    training: Rates = Field(default_factory=dict)
    operations: dict[str, Rate] = Field(default_factory=dict)
    operations_per_second: Rate | None = None
    side: Positive | None = None
    evaluation: Rates
    features: Rates
    feature_bytes_per_image: Count
    convert: Rate
    trained_parameters: Positive
    memory_gib: Rate

    @model_validator(mode="after")
    def _either(self) -> "HardwareParams":
        counted = bool(self.operations)
        if counted == bool(self.training) or counted != (self.operations_per_second is not None):
            raise ValueError(
                "give either training, or operations (with decoders) and operations_per_second"
            )
        if counted and DECODERS not in self.operations:
            raise ValueError(f"operations: {DECODERS} is missing")
        return self


class PlanParams(Options):
    """The content of ``plan.yaml``.

    Attributes:
        converted_bytes_per_image, converted_files_per_image: of a converted data set.
        evaluation_bytes_per_image: statistics of an evaluation.
        files_per_job: which a job leaves, by stage, beside those that are counted by images.
        checkpoints: of a training, that are kept.
    """

    download_megabytes_per_second: Rate
    converted_bytes_per_image: Positive
    converted_files_per_image: Positive
    evaluation_bytes_per_image: Positive
    files_per_job: dict[str, Positive]
    checkpoints: Positive
    hardware: dict[str, HardwareParams]


DECODERS = "decoders"
"""Key of ``operations`` for everything that is trained."""

BACKWARD = 3
"""Operations of a forward and a backward pass, in forward passes."""


class Operations(NamedTuple):
    """10^12 operations of a training per image: of its frozen towers, and of what is trained."""

    towers: float
    trained: float

    def share(self, runs: int) -> float:
        """Cost of one of ``runs`` that share the towers, relative to a run by itself; 0..1."""
        return (self.towers / runs + self.trained) / (self.towers + self.trained)


def operations_of(project: Project, sam: str | None, counted: Mapping[str, float]) -> Operations:
    """Operations of a training of ``project``; InputError without those of one of its towers."""
    keys = {tower_key(project, sam), tower_key(project, None)}
    if missing := sorted(keys - counted.keys()):
        raise InputError(
            f"{project.folder / 'plan.yaml'}: hardware: operations.{missing[0]}: missing; scale "
            f"{project.name} needs it"
        )
    towers = sum(counted[key] for key in keys)
    return Operations(towers=towers, trained=BACKWARD * counted[DECODERS])


def tower_key(project: Project, sam: str | None) -> str:
    """The key of :data:`Rates` for a run: its SAM's architecture, or CLIP's config."""
    towers = project.scale.towers
    return towers.clip.config if sam is None else towers.sam[sam].architecture


def load_plan(project: Project) -> tuple[PlanParams, HardwareParams]:
    """The file, and its first hardware that knows all the scale's towers, with training rates."""
    path = project.folder / "plan.yaml"
    params = validate(PlanParams, read_yaml(path), source=str(path))
    towers = {tower_key(project, size) for size in (*project.scale.towers.sam, None)}
    known = [(h, h.operations or h.training) for h in params.hardware.values()]
    fitting = [h for h, rates in known if towers <= rates.keys()]
    if not fitting:
        raise InputError(
            f"{path}: hardware: no block has the rates of all towers of scale {project.name}: "
            f"{', '.join(sorted(towers))}"
        )
    hardware = fitting[0]
    if hardware.operations_per_second is not None:
        rates = {
            tower_key(project, size): hardware.operations_per_second
            / sum(operations_of(project, size, hardware.operations))
            for size in (*project.scale.towers.sam, None)
        }
        hardware = hardware.model_copy(update={"training": rates})
    if not hardware.per_job:
        asked = Allocations(folder=project.folder)
        jobs = {kind: asked.of(project.name, kind) for kind in get_args(Kind)}
        gpus = {kind: job.nodes * job.gpus for kind, job in jobs.items() if job.gpus}
        hardware = hardware.model_copy(update={"per_job": gpus})
    return params, hardware
