"""The one graph: which job makes a file, from which files, and the identity that decides a rerun.

The Snakemake rules and the plan ask it. An identity is the hash of the parameters that a job uses
and of the code behind it (:mod:`possam.pipeline.codehash`). Snakemake records it with each output
and reruns a job when it differs; inputs are small JSON files that it compares by content.
"""

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

from possam.params.project import Project
from possam.params.reading import scale_names
from possam.pipeline.codehash import code_hash
from possam.pipeline.declarations import CONSTRAINTS, STAGES, Wildcards
from possam.runtime.files import hash_json, read_json

PAPER = "paper"
"""The scale whose results lie directly in ``results/``: its prefix is empty."""


class Job(NamedTuple):
    """One job: a stage and its wildcards, sorted by name."""

    stage: str
    wildcards: tuple[tuple[str, str], ...]

    def of(self, wildcard: str) -> str:
        return dict(self.wildcards)[wildcard]

    @property
    def scale(self) -> str:
        return scale_of(dict(self.wildcards))

    @property
    def path(self) -> str:
        """The first file that it makes."""
        return STAGES[self.stage].outputs[0].format_map(dict(self.wildcards))


def scale_of(wildcards: Wildcards) -> str:
    """The scale that wildcards name: ``{"prefix": "mini/"}`` -> ``"mini"``."""
    return wildcards.get("scale") or wildcards["prefix"].rstrip("/") or PAPER


def find_job(path: str) -> Job | None:
    """The job that makes ``path``; None for a file that no stage makes."""
    for stage, pattern in _patterns():
        if found := pattern.fullmatch(path):
            return Job(stage, tuple(sorted(found.groupdict().items())))
    return None


@cache
def _patterns() -> list[tuple[str, re.Pattern[str]]]:
    """Stages with the patterns of their outputs, as regular expressions."""
    valid = {"scale": r"\w+", "prefix": r"(?:\w+/)?", **CONSTRAINTS}

    def group(match: re.Match[str]) -> str:
        return f"(?P<{match[1]}>{valid[match[1]]})"

    return [
        (stage.name, re.compile(re.sub(r"\\\{(\w+)\\\}", group, re.escape(output))))
        for stage in STAGES.values()
        for output in stage.outputs
    ]


class Graph:
    """The graph of every scale in ``folder``/scales; a scale is loaded when it is first asked for.

    ``project``: a project of ``folder`` that is loaded already.
    """

    def __init__(self, *, folder: Path = Path("params"), project: Project | None = None) -> None:
        self.folder = folder
        self.scales = scale_names(folder)
        self._projects = {} if project is None else {project.name: project}
        self._code = cache(code_hash)

    def project(self, scale: str) -> Project:
        """The parameters of ``scale``; an InputError if there is none or a file is wrong."""
        if scale not in self._projects:
            self._projects[scale] = Project(scale, folder=self.folder)
        return self._projects[scale]

    def _job(self, wildcards: Wildcards) -> tuple[Project, dict[str, str]]:
        w = dict(wildcards.items())  # Snakemake's have fields instead of keys
        return self.project(scale_of(w)), w

    def inputs(self, stage: str, wildcards: Wildcards) -> list[str]:
        """The files that a job reads, after its stage has checked what must be there.

        Raises:
            InputError: something named does not exist or does not fit.
        """
        project, w = self._job(wildcards)
        inputs = STAGES[stage].inputs(project, w)
        STAGES[stage].check(project, w)
        return inputs

    def identity(self, stage: str, wildcards: Wildcards, *, device: str = "cpu") -> str:
        """SHA-256 (hex) of the parameters and code that decide a job's output; errors as above.

        ``device``: kind of the device that the job would compute on. What was made on another kind
        by code that has not changed since keeps its identity.
        """
        project, w = self._job(wildcards)
        declared = STAGES[stage]
        parameters, code = declared.parameters(project, w), declared.code(project, w)
        if declared.by_device:
            made = Path(declared.outputs[0].format_map(w))
            found = read_json(made) if made.is_file() else {}
            before = found.get("device")
            if before and found.get("code") == self._code(*code, device=before):
                device = before
            used = self._code(*code, device=device)
        else:
            used = self._code(*code)
        return hash_json({"stage": stage, "parameters": parameters, "code": used})

    def is_timed(self, wildcards: Wildcards) -> bool:
        """Whether an evaluation measures speed, and so must run with nothing beside it."""
        project, w = self._job(wildcards)
        found = project.benchmarks.get(w["benchmark"])
        return found is not None and found.images is not None

    def beside(self, wildcards: Wildcards, targets: Iterable[str]) -> list[str]:
        """Runs that ``targets`` need and that can be trained together with that of a training.

        They read the same features of the towers, and no file that the training does not read.
        """
        project, w = self._job(wildcards)
        own, files = project.run(w["run"]), set(self.inputs("train", w))
        found = []
        for job in self.walk(targets):
            if job.stage == "train" and job.scale == project.name and job.of("seed") == w["seed"]:
                name = job.of("run")
                needs = set(self.inputs("train", dict(job.wildcards)))
                if name != w["run"] and project.run(name).reads == own.reads and needs <= files:
                    found.append(name)
        return found

    def walk(self, targets: Iterable[str]) -> dict[Job, tuple[Job, ...]]:
        """Every job that ``targets`` need -> the jobs that it needs itself, which come before it.

        Raises:
            InputError: as :meth:`inputs`, but what only a running job needs may be missing.
        """
        jobs: dict[Job, tuple[Job, ...]] = {}

        def visit(path: str) -> Job | None:
            job = find_job(path)
            if job is not None and job not in jobs:
                inputs = STAGES[job.stage].inputs(self.project(job.scale), dict(job.wildcards))
                needs = dict.fromkeys(need for found in inputs if (need := visit(found)))
                jobs[job] = tuple(needs)
            return job

        for target in targets:
            visit(target)
        return jobs
