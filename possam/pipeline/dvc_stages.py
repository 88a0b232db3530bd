"""The stages of ``dvc.yaml``: what DVC pins and stores, from ``params/``.

Snakemake is the only graph. A DVC stage asks it for targets and says exactly what they depend on:
keys of parameter files, code, and results of other stages. One stage each for a data set, a frozen
tower, a training, a run (or external predictions) on a benchmark, a table and a figure, so that a
table needs only what it shows. What is cheap to make again (archives of the synthetic world,
features of frozen towers) is not stored.

Every out is kept (``persist``): DVC would remove it before each command, and Snakemake would have
to make everything again. Snakemake's record of a result (of which parameters and code it is) lies
in ``.snakemake/metadata`` and is stored with the result, or a result that DVC fetched would pass
for one of the parameters at hand.
"""

import os
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from possam.params.figures import find_figure, load_figures
from possam.params.layout import (
    FIGURE_CARD,
    FIGURE_PDF,
    FIGURE_PNG,
    RAW,
    TABLE_CARD,
    TABLE_CSV,
    TABLE_MD,
    TABLE_METRICS,
    TABLE_TEX,
)
from possam.pipeline.codehash import module_closure
from possam.pipeline.graph import CODE, Pipeline
from possam.pipeline.jobs import Job, find_job, inputs_of

RECORDS = Path(".snakemake/metadata")

_STORED = ("convert", "train", "evaluate", "external")
"""Rules whose results DVC keeps, besides the fetched towers; stages depend on each other's."""

_TRAINED_FROM = ("loss", "model", "seeds", "templates", "threads", "towers", "training")
_SCALE_KEYS: Mapping[str, tuple[str, ...]] = {
    "world": ("world",),
    "download": (),
    "convert": (),
    "features": ("towers", "training"),
    "train": _TRAINED_FROM,
    "evaluate": ("evaluation", "inference", "seeds", "templates", "towers"),
    "external": ("evaluation",),
    "table": ("evaluation", "seeds", "synthetic", "title"),
    "figure": ("seeds", "synthetic", "title"),
}
"""Keys of a scale's file that each rule's jobs depend on."""

_SHOWN_IMAGES = ("automatic_masks", "inference", "templates", "towers")
"""Further keys of a figure that runs models."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of ``dvc.yaml``.

    Attributes:
        targets: what Snakemake is asked for.
        jobs: the jobs behind them, up to results of other stages.
        deps: results of other stages, and the files and code behind the jobs.
        params: by parameter file, the keys that the jobs depend on.
        stored: outs that DVC stores.
        hashed: outs of which DVC keeps the hash alone.
        metrics: of a table, its figures; hashed as well.
        plot: of a table its CSV and how it is drawn, of a figure its PNG; hashed as well.
    """

    targets: tuple[str, ...]
    jobs: frozenset[Job]
    deps: tuple[str, ...]
    params: Mapping[str, tuple[str, ...]]
    stored: tuple[str, ...]
    hashed: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    plot: Mapping[str, Mapping[str, Any]] | None = None

    def content(self) -> dict[str, Any]:
        """The stage as in ``dvc.yaml``."""
        snakemake = f"snakemake {' '.join(self.targets)}"
        kept = {"cache": False, "persist": True}  # copied: YAML would refer to it by an anchor
        content: dict[str, Any] = {
            "cmd": ["possam check", snakemake] if self.metrics else snakemake,
            "deps": list(self.deps),
            "params": [{file: list(keys)} for file, keys in self.params.items()],
            "outs": [
                *({path: {"persist": True}} for path in self.stored),
                *({path: dict(kept)} for path in self.hashed),
            ],
        }
        if self.metrics:
            content["metrics"] = [{path: dict(kept)} for path in self.metrics]
        if self.plot is not None:
            content["plots"] = [{path: {**kept, **how}} for path, how in self.plot.items()]
        return content


def stages(plan: Pipeline, scale: str) -> dict[str, Stage]:
    """Every stage of a scale, by name: its tables and figures, and what they need.

    Names are ``<scale>-data-<data set>``, ``<scale>-tower-<tower>``, ``<scale>-train-<run>``,
    ``<scale>-evaluate-<run>-<benchmark>``, ``<scale>-external-<system>-<benchmark>``,
    ``<scale>-<table>`` and ``<scale>-figure-<figure>``.
    """
    project = plan.project(scale)
    targets: dict[str, list[str]] = {}
    pending = [
        *(TABLE_CSV.format(prefix=project.prefix, table=name) for name in project.tables),
        *(FIGURE_CARD.format(prefix=project.prefix, figure=name) for name in load_figures(project)),
    ]
    seen = set(pending)
    while pending:
        path = pending.pop(0)
        job = find_job(path)
        if job is None:
            continue
        if job.rule in ("table", "figure") or _is_stored(plan, scale, job):
            targets.setdefault(_name(plan, scale, job), []).append(path)
        new = [found for found in inputs_of(plan, scale, job) if found not in seen]
        seen.update(new)
        pending += new
    return {name: _stage(plan, scale, sorted(found)) for name, found in sorted(targets.items())}


def _towers(plan: Pipeline, scale: str) -> dict[str, str]:
    """Assets that are files of a frozen tower, with the tower's name."""
    towers = plan.project(scale).scale.towers
    clip = [asset for asset in (towers.clip.asset, *towers.clip.files) if asset is not None]
    return {tower.asset: size for size, tower in towers.sam.items()} | dict.fromkeys(clip, "clip")


def _is_stored(plan: Pipeline, scale: str, job: Job) -> bool:
    towers = _towers(plan, scale)
    return job.rule in _STORED or (job.rule == "download" and job.of("asset") in towers)


def _name(plan: Pipeline, scale: str, job: Job) -> str:
    which = dict(job.wildcards)
    if job.rule == "download":
        which["tower"] = _towers(plan, scale)[which["asset"]]
    return {
        "download": "{scale}-tower-{tower}",
        "convert": "{scale}-data-{dataset}",
        "train": "{scale}-train-{run}",
        "evaluate": "{scale}-evaluate-{run}-{benchmark}",
        "external": "{scale}-external-{external}-{benchmark}",
        "table": "{scale}-{table}",
        "figure": "{scale}-figure-{figure}",
    }[job.rule].format(**{**which, "scale": scale})


def _stage(plan: Pipeline, scale: str, targets: list[str]) -> Stage:
    jobs, deps = _exclusive(plan, scale, targets)
    code = {path for rule in {job.rule for job in jobs} for path in _code(rule)}
    common: dict[str, Any] = {
        "jobs": frozenset(jobs),
        "deps": (*sorted(deps), *sorted(code)),
        "params": _params(plan, scale, jobs),
    }
    first = find_job(targets[0])
    assert first is not None
    if first.rule == "table":
        return _table(plan, scale, first.of("table"), common)
    if first.rule == "figure":
        return _figure(plan, scale, first.of("figure"), common)
    made = list(dict.fromkeys(path for target in targets for path in _made(plan, scale, target)))
    if first.rule == "convert":
        # A converted data set refers to the images in the unpacked archives.
        fetched = sorted(job.of("asset") for job in jobs if job.rule == "download")
        known = plan.project(scale).assets
        made += [RAW.format(scale=scale, asset=name) for name in fetched if known[name].unpack]
    # What others published stays theirs to give: DVC keeps its hash alone.
    real = first.rule in ("convert", "download") and not plan.project(scale).scale.synthetic
    return Stage(
        targets=tuple(targets),
        stored=(*(() if real else made), *map(_record, targets)),
        hashed=tuple(made) if real else (),
        **common,
    )


def _table(plan: Pipeline, scale: str, table: str, common: Mapping[str, Any]) -> Stage:
    project = plan.project(scale)
    csv, md, tex, card, metrics = (
        pattern.format(prefix=project.prefix, table=table)
        for pattern in (TABLE_CSV, TABLE_MD, TABLE_TEX, TABLE_CARD, TABLE_METRICS)
    )
    params = project.tables[table]
    column = params.columns[0]
    how = {
        "template": "bar_horizontal",
        "x": column.key,
        "y": "row",
        "title": f"{params.title}: {column.title} ({params.groups[column.group]})",
    }
    return Stage(
        targets=(csv,),
        stored=tuple(map(_record, (csv, md, tex, card, metrics))),
        hashed=(md, tex, card),
        metrics=(metrics,),
        plot={csv: how},
        **common,
    )


def _figure(plan: Pipeline, scale: str, figure: str, common: Mapping[str, Any]) -> Stage:
    png, pdf, card = (
        pattern.format(prefix=plan.project(scale).prefix, figure=figure)
        for pattern in (FIGURE_PNG, FIGURE_PDF, FIGURE_CARD)
    )
    return Stage(
        targets=(card,),
        stored=tuple(map(_record, (png, pdf, card))),
        hashed=(pdf, card),
        plot={png: {}},
        **common,
    )


def _exclusive(plan: Pipeline, scale: str, targets: list[str]) -> tuple[set[Job], set[str]]:
    """The jobs behind ``targets`` up to results of other stages; these results and plain files."""
    jobs: set[Job] = set()
    deps: set[str] = set()
    pending = list(targets)
    while pending:
        path = pending.pop()
        job = find_job(path)
        if job is None:
            deps.add(path)
        elif path not in targets and _is_stored(plan, scale, job):
            # The record of a fetched file holds its hash.
            deps.add(path if job.rule == "download" else os.path.dirname(path))
        elif job not in jobs:
            jobs.add(job)
            pending += inputs_of(plan, scale, job)
    return jobs, deps


def _made(plan: Pipeline, scale: str, target: str) -> list[str]:
    """What belongs to a target: its folder (of an evaluation, with all its conditions) or files."""
    job, folder = find_job(target), os.path.dirname(target)
    assert job is not None
    if job.rule == "download":
        return [target, f"{folder}/{plan.project(scale).assets[job.of('asset')].file}"]
    return [os.path.dirname(folder) if job.rule in ("evaluate", "external") else folder]


def _record(path: str) -> str:
    """Where Snakemake keeps its record of ``path`` (Snakemake 9, ``persistence/file.py``)."""
    name = urlsafe_b64encode(path.encode()).decode()
    parts = [name[start : start + 254] for start in range(0, len(name), 254)]
    return RECORDS.joinpath(*(f"@{part}" for part in parts[:-1]), parts[-1]).as_posix()


def _code(rule: str) -> Iterator[str]:
    """The code behind a rule: files of the package, and its subpackages as folders."""
    for module in module_closure(*CODE[rule]):
        _, *parts = module.split(".")
        path = Path("possam", *parts)
        if len(parts) > 1 and parts[0] != "stages":
            yield path.parent.as_posix()
        elif path.with_suffix(".py").is_file():
            yield path.with_suffix(".py").as_posix()


def _params(plan: Pipeline, scale: str, jobs: set[Job]) -> dict[str, tuple[str, ...]]:
    found: dict[str, set[str]] = {}
    for job in jobs:
        for file, keys in _keys(plan, scale, job).items():
            found.setdefault((plan.folder / file).as_posix(), set()).update(keys)
    return {file: tuple(sorted(keys)) for file, keys in sorted(found.items()) if keys}


def _keys(plan: Pipeline, scale: str, job: Job) -> dict[str, tuple[str, ...]]:
    """Files below ``params/`` and their keys that decide what ``job`` makes."""
    which, file = dict(job.wildcards), f"scales/{scale}.yaml"
    keys: dict[str, tuple[str, ...]] = {file: _SCALE_KEYS[job.rule]}
    match job.rule:
        case "download":
            keys["assets.yaml"] = (which["asset"],)
        case "convert":
            sources = {
                found.of("asset")
                for path in inputs_of(plan, scale, job)
                if (found := find_job(path))
            }
            roles = plan.project(scale).scale.assets
            keys[file] = tuple(
                f"assets.{role}" for role, asset in roles.items() if asset in sources
            )
        case "train":
            keys["runs.yaml"] = (which["run"],)
        case "evaluate":
            place = (which["run"], which["benchmark"], which["condition"])
            keys["benchmarks.yaml"] = (which["benchmark"],)
            keys["variants.yaml"] = tuple(plan.project(scale).variants_at(*place))
            if which["condition"] == "untrained":
                keys["runs.yaml"] = (which["run"],)
                keys[file] = (*keys[file], *_TRAINED_FROM)
        case "external":
            keys["benchmarks.yaml"] = (which["benchmark"],)
            keys["external.yaml"] = (which["external"],)
        case "table":
            keys["tables.yaml"] = (which["table"],)
        case "figure":
            keys["figures.yaml"] = (which["figure"],)
            needs = find_figure(plan.project(scale), which["figure"]).needs(plan.project(scale))
            if needs.evaluations:
                keys[file] = (*keys[file], "evaluation")
            if needs.datasets:
                keys[file] = (*keys[file], *_SHOWN_IMAGES)
    return keys
