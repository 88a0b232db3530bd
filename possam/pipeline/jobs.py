"""The jobs of the pipeline as data: which one makes a file, and from what."""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from possam.params.layout import (
    ASSET,
    DATASET,
    EVALUATION,
    EXTERNAL_EVALUATION,
    FEATURES,
    FIGURE_CARD,
    REPORT,
    RUN,
    TABLE_CSV,
    TRACKING,
    WORLD,
)
from possam.pipeline.graph import Pipeline

TARGETS = {
    "world": WORLD,
    "download": ASSET,
    "convert": DATASET,
    "features": FEATURES,
    "train": RUN,
    "external": EXTERNAL_EVALUATION,  # before the pattern that fits it, too
    "evaluate": EVALUATION,
    "table": TABLE_CSV,
    "figure": FIGURE_CARD,
    "track": TRACKING,
    "report": REPORT,
}
"""The tracked file of each Snakemake rule, in the order of the pipeline."""


class Job(NamedTuple):
    """One Snakemake job."""

    rule: str
    wildcards: tuple[tuple[str, str], ...]

    def of(self, wildcard: str) -> str:
        """The value of a wildcard."""
        return dict(self.wildcards)[wildcard]


def find_job(path: str) -> Job | None:
    """The job that makes ``path``; None for a file that is there from the start."""
    for rule, pattern in TARGETS.items():
        text = re.escape(pattern).replace(r"\{prefix\}", r"(?P<prefix>(?:\w+/)?)")
        found = re.fullmatch(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>\\w+)", text), path)
        if found:
            return Job(rule, tuple(sorted(found.groupdict().items())))
    return None


def inputs_of(plan: Pipeline, scale: str, job: Job) -> list[str]:
    """What ``job`` reads, as the rules are told."""
    which = {k: v for k, v in job.wildcards if k not in ("scale", "prefix")}
    prefix = plan.project(scale).prefix
    match job.rule:
        case "download":
            return plan.asset_inputs(scale, **which)
        case "convert":
            return plan.dataset_inputs(scale, **which)
        case "features":
            return plan.features_inputs(scale, **which)
        case "train":
            return plan.training_inputs(prefix, which["run"])
        case "evaluate":
            return plan.evaluation_inputs(prefix, **which)
        case "external":
            entry = plan.project(scale).external[which["external"]]
            predictions = entry.paths(which["benchmark"]).values()
            return [*plan.external_datasets(prefix, **which), *predictions]
        case "table":
            return plan.table_inputs(prefix, **which)
        case "figure":
            return plan.figure_inputs(prefix, **which)
        case "track":
            return [TABLE_CSV.format(prefix=prefix, **which)]
        case "report":
            return plan.report_inputs(prefix)
    return []


def graph(plan: Pipeline, scale: str, targets: Iterable[str]) -> dict[str, list[str]]:
    """Every file that a job makes on the way to ``targets``, after those that it is made from, with
    these. Files that are there from the start are left out.
    """
    made: dict[str, list[str]] = {}

    def visit(path: str) -> Iterator[str]:
        job = find_job(path)
        if job is None:
            return
        if path not in made:
            needs = [need for found in inputs_of(plan, scale, job) for need in visit(found)]
            made[path] = needs
        yield path

    for target in targets:
        list(visit(target))
    return made
