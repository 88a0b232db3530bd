"""What it takes to make some targets: jobs, machine hours, wall time on N nodes, disk space.

Numbers are the estimates of ``params/plan.yaml``, or measured in finished runs or a rehearsal of
the same scale.
A file that exists counts as done; only Snakemake knows whether it is up to date.
"""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from possam.assets.inventory import Held, take_inventory, unpacked_bytes
from possam.model.options import CLIP
from possam.params.data import load_data
from possam.params.figures import load_figures, unserved_figures
from possam.params.layout import FIGURE_CARD, REPORT, RUN, TABLE_CSV, Layout
from possam.params.plan import (
    HardwareParams,
    PlanParams,
    Rates,
    load_plan,
    operations_of,
    tower_key,
)
from possam.params.project import Project
from possam.params.slurm import Allocations
from possam.pipeline.graph import Graph, Job, find_job
from possam.runtime.errors import InputError
from possam.runtime.files import read_json
from possam.training.checkpoint_paths import finished_steps


@dataclass(frozen=True, kw_only=True)
class Step:
    """One job of the plan.

    Attributes:
        needs: jobs whose files it reads.
        state: ``done``, ``begun`` (a training with checkpoints) or ``to do``.
        units: GPUs or cores that it occupies; 0 where that does not matter.
        hours: wall time that is left.
        whole_hours: wall time of the whole job.
    """

    job: Job
    needs: tuple[Job, ...]
    state: str
    units: int
    hours: float
    whole_hours: float

    @property
    def unit_hours(self) -> float:
        """GPU-hours or core-hours that are left."""
        return self.units * self.hours


class Amount(NamedTuple):
    """Room on a disk; file systems and quotas limit both."""

    bytes: int
    files: int


UNPACKED = "unpack"
"""Of :attr:`Disk.left`: what ``download`` unpacks."""


@dataclass(frozen=True, kw_only=True)
class Disk:
    """Room that everything takes which the targets need, once all of it exists.

    Attributes:
        left: by stage, what its jobs leave. An archive counts as empty before it is unpacked if
            nobody declares what is needed of it.
        to_write: what is not there yet.
    """

    left: Mapping[str, Amount]
    to_write: Amount

    @property
    def total(self) -> Amount:
        return _sum(self.left.values())


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The whole plan.

    Attributes:
        measured: images per second of one unit by tower, of ``training`` (in finished runs, else in
            a rehearsal) and ``evaluation`` (in a rehearsal), in place of the estimates.
        shares_towers: whether trainings that read the same features are planned behind one pass of
            the towers.
    """

    targets: tuple[str, ...]
    steps: tuple[Step, ...]
    held: tuple[Held, ...]
    disk: Disk
    hardware: HardwareParams
    params: PlanParams
    measured: Mapping[str, Rates]
    shares_towers: bool

    def unit_hours(self, *stages: str) -> float:
        """GPU-hours or core-hours that are left, of ``stages`` (default: all)."""
        steps = (step for step in self.steps if not stages or step.job.stage in stages)
        return sum(step.unit_hours for step in steps)


def resolve_targets(project: Project, names: Sequence[str]) -> list[str]:
    """The files of targets: tables (default: all), figures, runs (all seeds), ``report``, or files.

    Raises:
        InputError: no such target at this scale.
    """
    prefix, figures = project.prefix, load_figures(project)
    unserved = project.unserved | unserved_figures(project)
    found: list[str] = []
    for name in names or project.tables:
        if name in unserved:
            raise InputError(unserved[name])
        if name in project.tables:
            found.append(TABLE_CSV.format(prefix=prefix, table=name))
        elif name in figures:
            found.append(FIGURE_CARD.format(prefix=prefix, figure=name))
        elif name in project.runs:
            seeds = project.scale.seeds
            found += [RUN.format(prefix=prefix, run=name, seed=seed) for seed in seeds]
        elif name == "report":
            found.append(REPORT.format(prefix=prefix))
        elif (job := find_job(name)) is not None and job.scale == project.name:
            found.append(name)
        else:
            valid = ", ".join([*project.tables, *figures, *project.runs, "report"])
            raise InputError(
                f"{name}: no target of scale {project.name}; give a file of the pipeline, or one "
                f"of {valid}"
            )
    return list(dict.fromkeys(found))


def make_plan(
    graph: Graph, scale: str, names: Sequence[str], *, share_towers: bool | None = None
) -> Plan:
    """Plan targets of ``scale``; names and errors as in :func:`resolve_targets`.

    ``share_towers``: of trainings; None: as ``slurm.yaml`` says.
    """
    project = graph.project(scale)
    targets = resolve_targets(project, names)
    params, hardware = load_plan(project)
    jobs = graph.walk(targets)
    assets = [job.of("asset") for job in jobs if job.stage == "download"]
    held = {one.name: one for one in take_inventory(project, assets, load_data(project))}
    if share_towers is None:
        share_towers = Allocations(folder=project.folder).of(scale, "train").share_towers
    groups = _groups(project, jobs) if share_towers else {}
    cost = _Cost(project, params, hardware, held, _measured(project, hardware), groups)
    steps = tuple(cost.step(job, needs) for job, needs in jobs.items())
    return Plan(
        targets=tuple(targets),
        steps=steps,
        held=tuple(held.values()),
        disk=cost.disk(steps),
        hardware=hardware,
        params=params,
        measured=cost.measured,
        shares_towers=share_towers,
    )


def _groups(project: Project, jobs: Iterable[Job]) -> dict[Job, int]:
    """For each training that is to do: how many of them read the same features, with itself."""
    trainings = [job for job in jobs if job.stage == "train" and not Path(job.path).is_file()]
    reads = {job: (job.of("seed"), project.run(job.of("run")).reads) for job in trainings}
    return {job: list(reads.values()).count(own) for job, own in reads.items()}


def _measured(project: Project, hardware: HardwareParams) -> dict[str, Rates]:
    """Rates of a rehearsal on this kind of hardware; of training, those of finished runs first."""
    path, found = Layout(project).rehearsal, dict[str, Rates]()
    if path.is_file():
        record = read_json(path)
        if record["unit"] == hardware.unit and (hardware.unit == "GPU") == (
            record["device"] == "cuda"
        ):
            found = record["rates"]
    return {**found, "training": {**found.get("training", {}), **_trained(project)}}


def _trained(project: Project) -> Rates:
    """Images per second of one process, by tower, averaged over the scale's finished runs."""
    sums: dict[str, tuple[float, float]] = {}
    layout = Layout(project)
    for name, run in project.runs.items():
        for seed in project.scale.seeds:
            folder = layout.run(name, seed)
            if (folder / "run.json").is_file() and (folder / "training.json").is_file():
                summary = read_json(folder / "training.json")
                if summary.get("together", 1) > 1:
                    continue  # its seconds hold other runs' steps
                spent = summary["seconds"] * summary.get("processes", 1)
                key = tower_key(project, run.sam)
                images, seconds = sums.get(key, (0.0, 0.0))
                sums[key] = (images + summary["images"], seconds + spent)
    return {key: images / seconds for key, (images, seconds) in sums.items() if seconds > 0}


@dataclass(frozen=True)
class _Cost:
    """Time and disk space of the jobs of a scale."""

    project: Project
    params: PlanParams
    hardware: HardwareParams
    held: Mapping[str, Held]
    measured: Mapping[str, Rates]
    groups: Mapping[Job, int]

    def step(self, job: Job, needs: tuple[Job, ...]) -> Step:
        stage = "evaluate" if job.stage == "training_free" else job.stage
        units = self.hardware.per_job.get(stage, 0)
        whole = self._seconds(job, max(1, units)) / 3600
        state, left = "to do", whole
        if Path(job.path).is_file():
            state, left = "done", 0.0
        elif job.stage == "train" and (share := self._progress(job)) > 0:
            state, left = "begun", whole * (1 - share)
        elif job.stage == "download":
            left = self._transfer(self.held[job.of("asset")].to_download) / 3600
        return Step(job=job, needs=needs, state=state, units=units, hours=left, whole_hours=whole)

    def _transfer(self, size: int) -> float:
        return size / (self.params.download_megabytes_per_second * 1e6)

    def _progress(self, job: Job) -> float:
        """Share of a training that is done at its newest checkpoint, 0..1."""
        run = job.of("run")
        folder = Layout(self.project).run(run, int(job.of("seed"))) / "checkpoints"
        return min(1.0, finished_steps(folder) / self.project.run(run).training.iterations)

    def _seconds(self, job: Job, units: int) -> float:
        """Seconds of wall time for the whole job on ``units``."""
        project, hardware = self.project, self.hardware
        match job.stage:
            case "download":
                return self._transfer(self.held[job.of("asset")].bytes or 0)
            case "convert":
                return self._images(job.of("dataset"), job.of("split")) / hardware.convert
            case "features":
                sam = None if job.of("tower") == CLIP else job.of("tower")
                rate = self._rate(hardware.features, sam, "features")
                return self._images(job.of("dataset"), job.of("split")) / rate / units
            case "train":
                run = project.run(job.of("run"))
                images = run.training.iterations * run.training.batch_size
                seconds = images / self._rate(hardware.training, run.sam, "training") / units
                area = self._area(run.training.augmentation.size, "training", run.sam)
                return seconds * area * self._share(job, run.sam)
            case "evaluate" | "training_free":
                if job.stage == "evaluate":
                    sam = project.run(job.of("run")).sam
                    side = project.resolution(job.of("run")).size
                else:
                    sam = project.training_free[job.of("system")].sam
                    side = project.scale.inference.resolution.size
                area = self._area(side, "evaluation", sam)
                rate = self._rate(hardware.evaluation, sam, "evaluation")
                return self._tested(job) * area / rate / units
        return 0.0  # tables, figures and the rest: minutes at most

    def _area(self, side: int | None, field: str, sam: str | None) -> float:
        """Area of images of ``side`` relative to those of the rate that counts for ``field``."""
        usual = self.hardware.side
        measured = self.measured.get(field, {}).get(tower_key(self.project, sam))
        return 1.0 if measured or usual is None or side is None else (side / usual) ** 2

    def _share(self, job: Job, sam: str | None) -> float:
        """Cost of a training behind shared towers, relative to one by itself."""
        counted = self.hardware.operations
        if not counted or self.project.run(job.of("run")).training.feature_cache:
            return 1.0
        return operations_of(self.project, sam, counted).share(self.groups.get(job, 1))

    def disk(self, steps: Sequence[Step]) -> Disk:
        """What the files of ``steps`` take."""
        left: dict[str, list[Amount]] = {}
        to_write: list[Amount] = []
        for step in steps:
            whole = self._leaves(step.job)
            missing = Amount(0, 0) if step.state == "done" else whole
            if step.job.stage == "download":
                one = self.held[step.job.of("asset")]
                unpacked = Amount(unpacked_bytes(one), one.files or 0)
                left.setdefault(UNPACKED, []).append(unpacked)
                files = 0 if one.state == "here" else unpacked.files
                missing = Amount(one.to_download + one.to_unpack, missing.files + files)
            left.setdefault(step.job.stage, []).append(whole)
            to_write.append(missing)
        return Disk(
            left={stage: _sum(amounts) for stage, amounts in left.items()}, to_write=_sum(to_write)
        )

    def _leaves(self, job: Job) -> Amount:
        """What a job leaves, but for what it unpacks."""
        params, size = self.params, 0
        if (files := params.files_per_job.get(job.stage, 0)) == 0:
            path = self.project.folder / "plan.yaml"
            raise InputError(f"{path}: files_per_job.{job.stage}: missing; a job of it needs it")
        match job.stage:
            case "download":
                one = self.held[job.of("asset")]
                size = 0 if one.state == "on disk" else one.bytes or 0
            case "convert":
                images = self._images(job.of("dataset"), job.of("split"))
                size = images * params.converted_bytes_per_image
                files += images * params.converted_files_per_image
            case "features":
                images = self._images(job.of("dataset"), job.of("split"))
                size = images * self.hardware.feature_bytes_per_image
            case "train":
                # fp32 weights, and in each checkpoint that is kept Adam's two moments, too.
                size = self.hardware.trained_parameters * 4 * (1 + 3 * params.checkpoints)
            case "evaluate" | "training_free":
                size = self._tested(job) * params.evaluation_bytes_per_image
        return Amount(size, files)

    def _tested(self, job: Job) -> int:
        """Images of an evaluation."""
        test = self.project.benchmarks[job.of("benchmark")]
        return test.images or self._images(test.dataset, test.split)

    def _images(self, dataset: str, split: str) -> int:
        """Images of a split: of the converted data set, else as declared."""
        manifest = Layout(self.project).dataset(dataset, split) / "manifest.json"
        if manifest.is_file():
            return int(read_json(manifest)["counts"]["images"])
        return self.project.images(dataset, split)

    def _rate(self, rates: Mapping[str, float], sam: str | None, field: str) -> float:
        key = tower_key(self.project, sam)
        if measured := self.measured.get(field, {}).get(key):
            return measured
        if key not in rates:
            raise InputError(
                f"{self.project.folder / 'plan.yaml'}: hardware: {field}.{key}: missing; a job of "
                f"scale {self.project.name} needs it"
            )
        return rates[key]


def _sum(amounts: Iterable[Amount]) -> Amount:
    bytes_, files = zip(*amounts, strict=True)
    return Amount(sum(bytes_), sum(files))


def wall_hours(steps: Sequence[Step], *, capacity: int) -> float:
    """Hours until all ``steps``, each after those that it needs, are done on ``capacity`` units.

    Jobs start as soon as what they need is done and enough units are free; of those that could
    start, the one with the longest way to the end goes first (list scheduling). A job that asks for
    more units than exist takes all of them, and proportionally longer.
    """
    left = {step.job: step for step in steps if step.state != "done"}
    needs = {job: left.keys() & set(step.needs) for job, step in left.items()}
    hours = {job: step.hours * max(1.0, step.units / capacity) for job, step in left.items()}
    way = dict(hours)
    for job in reversed(left):
        for need in needs[job]:
            way[need] = max(way[need], hours[need] + way[job])
    waiting = sorted(left, key=lambda job: -way[job])
    running: list[tuple[float, Job]] = []
    now, free = 0.0, capacity
    while waiting or running:
        for job in waiting.copy():
            units = min(left[job].units, capacity)
            if not needs[job] and units <= free:
                waiting.remove(job)
                free -= units
                heapq.heappush(running, (now + hours[job], job))
        now, done = heapq.heappop(running)
        free += min(left[done].units, capacity)
        for job in waiting:
            needs[job].discard(done)
    return now
