"""What it takes to make some targets: jobs, machine hours, wall time on N nodes, disk space.

Numbers are estimates (``params/plan.yaml``) unless finished runs of the same scale tell the
throughput. What exists counts as done; whether it is still up to date is Snakemake's to say.
"""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from possam.assets.inventory import Held, take_inventory, unpacked_bytes
from possam.datasets.catalogue import datasets
from possam.model.options import CLIP
from possam.params.data import load_data
from possam.params.figures import load_figures, unserved_figures
from possam.params.layout import FIGURE_CARD, REPORT, RUN, TABLE_CSV, Layout
from possam.params.plan import HardwareParams, PlanParams, load_plan, tower_key
from possam.params.project import Project
from possam.pipeline.graph import Pipeline
from possam.pipeline.jobs import Job, find_job, graph
from possam.runtime.errors import InputError
from possam.runtime.files import read_json

_BYTES = 4
"""Of a weight in fp32."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One job of the plan.

    Attributes:
        path: the file that it makes.
        job: rule and wildcards.
        needs: files that it is made from.
        state: ``done``, ``begun`` (a training with checkpoints) or ``to do``.
        units: GPUs or cores that it occupies; 0 where that does not matter.
        hours: wall time that is left.
        whole_hours: wall time of all of it.
    """

    path: str
    job: Job
    needs: tuple[str, ...]
    state: str
    units: int
    hours: float
    whole_hours: float

    @property
    def unit_hours(self) -> float:
        """GPU-hours or core-hours that are left."""
        return self.units * self.hours


@dataclass(frozen=True, kw_only=True)
class Disk:
    """Bytes of everything that the targets need, once all is there."""

    assets: int
    unpacked: int
    converted: int
    features: int
    runs: int
    to_write: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.assets + self.unpacked + self.converted + self.features + self.runs


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The whole plan; ``measured``: rates that earlier runs gave, by tower."""

    targets: tuple[str, ...]
    steps: tuple[Step, ...]
    held: tuple[Held, ...]
    disk: Disk
    hardware: HardwareParams
    params: PlanParams
    measured: Mapping[str, float]


def resolve_targets(pipeline: Pipeline, scale: str, names: Sequence[str]) -> list[str]:
    """Files for names of tables, figures, runs (all seeds) or ``report``, or files themselves.

    Default: every table.

    Raises:
        InputError: no such target at this scale.
    """
    project = pipeline.project(scale)
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
        else:
            job = find_job(name)
            if job is None or _scale_of(job) != scale:
                valid = ", ".join([*project.tables, *figures, *project.runs, "report"])
                raise InputError(
                    f"{name}: no target of scale {scale}; give a file of the pipeline, or one of "
                    f"{valid}"
                )
            found.append(name)
    return list(dict.fromkeys(found))


def _scale_of(job: Job) -> str:
    which = dict(job.wildcards)
    return which["scale"] if "scale" in which else Pipeline.scale_of(which["prefix"])


def make_plan(pipeline: Pipeline, scale: str, targets: Sequence[str]) -> Plan:
    """Plan the files ``targets``."""
    project = pipeline.project(scale)
    params, hardware = load_plan(project)
    data = load_data(project)
    files = graph(pipeline, scale, targets)
    jobs = {path: job for path in files if (job := find_job(path)) is not None}
    assets = [job.of("asset") for job in jobs.values() if job.rule == "download"]
    held = {one.name: one for one in take_inventory(project, assets, data)}
    measured = _measured(project)
    cost = _Cost(project, params, hardware, held, measured)
    steps = tuple(
        cost.step(path, jobs[path], tuple(need for need in needs if need in files))
        for path, needs in files.items()
    )
    return Plan(
        targets=tuple(targets),
        steps=steps,
        held=tuple(held.values()),
        disk=_disk(project, steps, held, params, hardware),
        hardware=hardware,
        params=params,
        measured=measured,
    )


def image_count(project: Project, dataset: str, split: str) -> int:
    """Images of a split: of the converted data set, else as declared."""
    manifest = Layout(project).dataset(dataset, split) / "manifest.json"
    if manifest.is_file():
        return int(read_json(manifest)["counts"]["images"])
    world = project.scale.world
    made = None if world is None else world.images(dataset, split)
    return datasets()[dataset].images[split] if made is None else made


def _measured(project: Project) -> dict[str, float]:
    """Images a second of one process, by tower, averaged over the finished runs of the scale."""
    sums: dict[str, tuple[float, float]] = {}
    layout = Layout(project)
    for name, run in project.runs.items():
        for seed in project.scale.seeds:
            folder = layout.run(name, seed)
            if not (folder / "run.json").is_file() or not (folder / "training.json").is_file():
                continue
            summary = read_json(folder / "training.json")
            spent = summary["seconds"] * summary.get("processes", 1)
            key = tower_key(project, run.sam)
            images, seconds = sums.get(key, (0.0, 0.0))
            sums[key] = (images + summary["images"], seconds + spent)
    return {key: images / seconds for key, (images, seconds) in sums.items() if seconds > 0}


@dataclass(frozen=True)
class _Cost:
    """How long the jobs of a scale take."""

    project: Project
    params: PlanParams
    hardware: HardwareParams
    held: Mapping[str, Held]
    measured: Mapping[str, float]

    def step(self, path: str, job: Job, needs: tuple[str, ...]) -> Step:
        units = self.hardware.per_job.get(job.rule, 0)
        whole = self._seconds(job, max(1, units)) / 3600
        state, left = "to do", whole
        if Path(path).is_file():
            state, left = "done", 0.0
        elif job.rule == "train" and (share := self._progress(job)) > 0:
            state, left = "begun", whole * (1 - share)
        elif job.rule == "download":
            left = self._transfer(self.held[job.of("asset")].to_download) / 3600
        return Step(
            path=path, job=job, needs=needs, state=state, units=units, hours=left,
            whole_hours=whole,
        )  # fmt: skip

    def _transfer(self, count: int) -> float:
        return count / (self.params.download_megabytes_per_second * 1e6)

    def _progress(self, job: Job) -> float:
        """Share of a training that its newest checkpoint holds."""
        run = job.of("run")
        folder = Layout(self.project).run(run, int(job.of("seed"))) / "checkpoints"
        steps = [int(p.name.removeprefix("step_")) for p in folder.glob("step_*") if p.is_dir()]
        return min(1.0, max(steps, default=0) / self.project.run(run).training.iterations)

    def _seconds(self, job: Job, units: int) -> float:
        """Wall time of the whole job on ``units``."""
        project, hardware = self.project, self.hardware
        match job.rule:
            case "download":
                return self._transfer(self.held[job.of("asset")].bytes or 0)
            case "convert":
                return self._images(job.of("dataset"), job.of("split")) / hardware.convert
            case "features":
                tower = job.of("tower")
                sam = None if tower == CLIP else tower
                rate = self._rate(hardware.features, sam, "features")
                return self._images(job.of("dataset"), job.of("split")) / rate / units
            case "train":
                run = project.run(job.of("run"))
                images = run.training.iterations * run.training.batch_size
                key = tower_key(project, run.sam)
                rate = self.measured.get(key) or self._rate(hardware.training, run.sam, "training")
                return images / rate / units
            case "evaluate":
                test = project.benchmarks[job.of("benchmark")]
                images = test.images or self._images(test.dataset, test.split)
                sam = project.run(job.of("run")).sam
                return images / self._rate(hardware.evaluation, sam, "evaluation") / units
        return 0.0  # tables, figures and the rest: minutes at most

    def _images(self, dataset: str, split: str) -> int:
        return image_count(self.project, dataset, split)

    def _rate(self, rates: Mapping[str, float], sam: str | None, field: str) -> float:
        key = tower_key(self.project, sam)
        if key not in rates:
            raise InputError(
                f"{self.project.folder / 'plan.yaml'}: hardware: {field}.{key}: missing; a job of "
                f"scale {self.project.name} needs it"
            )
        return rates[key]


def _disk(
    project: Project,
    steps: Iterable[Step],
    held: Mapping[str, Held],
    params: PlanParams,
    hardware: HardwareParams,
) -> Disk:
    sizes = {"convert": 0, "features": 0, "train": 0}
    to_write = sum(one.to_download + one.to_unpack for one in held.values())
    # Weights, and for each checkpoint that is kept the weights and Adam's two moments.
    run = hardware.trained_parameters * _BYTES * (1 + 3 * params.checkpoints)
    for step in steps:
        job = step.job
        if job.rule not in sizes:
            continue
        size = run
        if job.rule != "train":
            images = image_count(project, job.of("dataset"), job.of("split"))
            each = {
                "convert": params.converted_bytes_per_image,
                "features": hardware.feature_bytes_per_image,
            }
            size = images * each[job.rule]
        sizes[job.rule] += size
        to_write += 0 if step.state == "done" else size
    local = {one.name for one in held.values() if one.state == "on disk"}
    return Disk(
        assets=sum(one.bytes or 0 for one in held.values() if one.name not in local),
        unpacked=sum(unpacked_bytes(one) for one in held.values()),
        converted=sizes["convert"],
        features=sizes["features"],
        runs=sizes["train"],
        to_write=to_write,
    )


def wall_hours(steps: Sequence[Step], *, capacity: int) -> float:
    """Hours until all ``steps`` are done, on ``capacity`` units.

    Jobs start as soon as what they need is done and enough units are free; of those that could
    start, the one with the longest way to the end goes first (list scheduling). A job that asks for
    more units than there are takes all of them, and proportionally longer.
    """
    left = {step.path: step for step in steps if step.state != "done"}
    users: dict[str, list[str]] = {path: [] for path in left}
    waiting = dict.fromkeys(left, 0)
    for path, step in left.items():
        for need in step.needs:
            if need in left:
                users[need].append(path)
                waiting[path] += 1
    hours = {path: _hours_on(step, capacity) for path, step in left.items()}
    way: dict[str, float] = {}
    for path in reversed(list(left)):  # steps come after what they need
        way[path] = hours[path] + max((way[user] for user in users[path]), default=0.0)
    ready = [(-way[path], path) for path, count in waiting.items() if count == 0]
    heapq.heapify(ready)
    running: list[tuple[float, str]] = []
    now, free = 0.0, capacity
    while ready or running:
        blocked = []
        while ready:
            entry = heapq.heappop(ready)
            units = min(left[entry[1]].units, capacity)
            if units > free:
                blocked.append(entry)
                continue
            free -= units
            heapq.heappush(running, (now + hours[entry[1]], entry[1]))
        for entry in blocked:
            heapq.heappush(ready, entry)
        now, path = heapq.heappop(running)
        free += min(left[path].units, capacity)
        for user in users[path]:
            waiting[user] -= 1
            if waiting[user] == 0:
                heapq.heappush(ready, (-way[user], user))
    return now


def _hours_on(step: Step, capacity: int) -> float:
    return step.hours * max(1.0, step.units / capacity)
