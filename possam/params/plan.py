"""``params/plan.yaml``: what a plan assumes where nothing was measured."""

from typing import Annotated, get_args

from pydantic import Field

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
        convert: images per second of one job.
        feature_bytes_per_image: in the cache of one tower, on average over the towers.
        trained_parameters: their number in the largest model.
        memory_gib: main memory of one training job.
    """

    unit: str
    source: str
    per_node: Positive
    per_job: dict[str, Positive] = Field(default_factory=dict)
    training: Annotated[Rates, Field(min_length=1)]
    evaluation: Rates
    features: Rates
    feature_bytes_per_image: Count
    convert: Rate
    trained_parameters: Positive
    memory_gib: Rate


class PlanParams(Options):
    """The content of ``plan.yaml``."""

    download_megabytes_per_second: Rate
    converted_bytes_per_image: Positive
    checkpoints: Positive
    hardware: dict[str, HardwareParams]


def tower_key(project: Project, sam: str | None) -> str:
    """The key of :data:`Rates` for a run: its SAM's architecture, or CLIP's config."""
    towers = project.scale.towers
    return towers.clip.config if sam is None else towers.sam[sam].architecture


def load_plan(project: Project) -> tuple[PlanParams, HardwareParams]:
    """The file, and its first hardware with training rates of all the scale's towers."""
    path = project.folder / "plan.yaml"
    params = validate(PlanParams, read_yaml(path), source=str(path))
    towers = {tower_key(project, size) for size in (*project.scale.towers.sam, None)}
    fitting = [h for h in params.hardware.values() if towers <= h.training.keys()]
    if not fitting:
        raise InputError(
            f"{path}: hardware: no block has the rates of all towers of scale {project.name}: "
            f"{', '.join(sorted(towers))}"
        )
    hardware = fitting[0]
    if not hardware.per_job:
        asked = Allocations(folder=project.folder)
        jobs = {kind: asked.of(project.name, kind) for kind in get_args(Kind)}
        gpus = {kind: job.nodes * job.gpus for kind, job in jobs.items() if job.gpus}
        hardware = hardware.model_copy(update={"per_job": gpus})
    return params, hardware
