"""Figures of ``params/figures.yaml``: what each kind shows, checked when it is read.

Kept apart from :class:`~possam.params.project.Project`: only the figures, ``possam check`` and the
rules of the figures need them.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from possam.model.options import CLIP
from possam.params.project import Project
from possam.params.reading import choose, read_entries, validate
from possam.params.tables import CellParams, Evaluation
from possam.runtime.errors import InputError
from possam.runtime.options import Count, Options, Positive

Names = dict[str, tuple[str, tuple[str, ...]]]


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a figure is made from; each name once.

    Attributes:
        runs: (run, seed), trained.
        evaluations: of trained weights.
        datasets: (data set, split).
        towers: SAM sizes, and ``clip``.
        published: file names below ``params/published``.
    """

    runs: tuple[tuple[str, int], ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    datasets: tuple[tuple[str, str], ...] = ()
    towers: tuple[str, ...] = ()
    published: tuple[str, ...] = ()


class FigureParams(Options):
    """What all figures have."""

    kind: str
    title: str

    def needs(self, project: Project) -> Needs:
        """What has to be there before the figure can be made."""
        raise NotImplementedError

    def names(self) -> Names:
        """Names that other files declare: key -> (what they name, the names)."""
        raise NotImplementedError


class ImagesParams(FigureParams):
    """Figures of ``images`` images per benchmark, drawn by lot with ``seed``."""

    images: Positive
    seed: Count


class OversegmentationParams(ImagesParams):
    """SAM's automatic masks, PosSAM's segments, ground truth (paper, Fig. 1)."""

    kind: Literal["oversegmentation"]
    run: str
    benchmark: str

    def needs(self, project: Project) -> Needs:
        return _run_needs(project, self.run, (self.benchmark,))

    def names(self) -> Names:
        return {"run": ("run", (self.run,)), "benchmark": ("benchmark", (self.benchmark,))}


class ClustersParams(ImagesParams):
    """k-means clusters of SAM's features, beside CLIP's (Fig. 2) or SAM's masks (Fig. 0.B.1)."""

    kind: Literal["feature_clusters", "encoder_vs_decoder"]
    sam: str
    benchmark: str
    clusters: Annotated[int, Field(ge=2)]

    def needs(self, project: Project) -> Needs:
        other = (CLIP,) if self.kind == "feature_clusters" else ()
        return Needs(datasets=_datasets(project, (self.benchmark,)), towers=(self.sam, *other))

    def names(self) -> Names:
        return {"sam": ("SAM size", (self.sam,)), "benchmark": ("benchmark", (self.benchmark,))}


class QualitativeParams(ImagesParams):
    """PosSAM's segments and the ground truth; ``images`` of each benchmark."""

    kind: Literal["qualitative"]
    run: str
    benchmarks: Annotated[tuple[str, ...], Field(min_length=1)]

    def needs(self, project: Project) -> Needs:
        return _run_needs(project, self.run, self.benchmarks)

    def names(self) -> Names:
        return {"run": ("run", (self.run,)), "benchmarks": ("benchmark", self.benchmarks)}


class BarParams(CellParams):
    """One pair of bars with its printed name: a variant of a trained run."""

    name: str


class PublishedParams(Options):
    """Published values: their source, a file in ``params/published``, two columns in percent."""

    source: str
    file: str
    seen: str
    unseen: str


class SeenUnseenParams(FigureParams):
    """PQ of seen and unseen classes, measured and published (paper, Fig. 6)."""

    kind: Literal["seen_unseen"]
    bars: Annotated[tuple[BarParams, ...], Field(min_length=1)]
    published: PublishedParams

    def needs(self, project: Project) -> Needs:
        seeds = project.scale.seeds
        found = [key for bar in self.bars for key in bar.origin.evaluations(seeds)]
        return Needs(evaluations=tuple(dict.fromkeys(found)), published=(self.published.file,))

    def names(self) -> Names:
        return {
            "bars.run": ("run", tuple(bar.run for bar in self.bars)),
            "bars.variant": ("variant", tuple(bar.variant for bar in self.bars)),
            "bars.benchmark": ("benchmark", tuple(bar.benchmark for bar in self.bars)),
        }


class TrainingCurvesParams(FigureParams):
    """Losses of all runs that the tables show, with every seed."""

    kind: Literal["training_curves"]
    tables: Annotated[tuple[str, ...], Field(min_length=1)]

    def needs(self, project: Project) -> Needs:
        seeds = project.scale.seeds
        found = [key for name in self.tables for key in project.tables[name].evaluations(seeds)]
        runs = dict.fromkeys((key.run, key.seed) for key in found if not key.is_external)
        return Needs(runs=tuple(runs))

    def names(self) -> Names:
        return {"tables": ("table", self.tables)}


KINDS: dict[str, type[FigureParams]] = {
    "oversegmentation": OversegmentationParams,
    "feature_clusters": ClustersParams,
    "encoder_vs_decoder": ClustersParams,
    "seen_unseen": SeenUnseenParams,
    "qualitative": QualitativeParams,
    "training_curves": TrainingCurvesParams,
}
"""The model of each ``kind``."""


def _datasets(project: Project, benchmarks: Collection[str]) -> tuple[tuple[str, str], ...]:
    tests = [project.benchmarks[name] for name in benchmarks]
    return tuple(dict.fromkeys((test.dataset, test.split) for test in tests))


def _run_needs(project: Project, run: str, benchmarks: Collection[str]) -> Needs:
    sam = project.run(run).sam
    return Needs(
        runs=((run, project.scale.seeds[0]),),
        datasets=_datasets(project, benchmarks),
        towers=(CLIP,) if sam is None else (sam, CLIP),
    )


def _read_figures(project: Project) -> dict[str, FigureParams]:
    path = project.folder / "figures.yaml"
    valid: dict[str, Collection[str]] = {
        "run": project.runs,
        "benchmark": project.benchmarks,
        "variant": project.variants,
        "SAM size": project.scale.towers.sam,
        "table": [*project.tables, *project.unserved],
    }
    figures = {}
    for name, data in read_entries(path).items():
        kind = str(data.get("kind", ""))
        choose("kind", kind, KINDS, str(path), f"{name}.kind")
        figures[name] = validate(KINDS[kind], data, source=f"{path}: {name}")
        for key, (what, used) in figures[name].names().items():
            for one in used:
                choose(what, one, valid[what], str(path), f"{name}.{key}")
    return figures


def _lack(project: Project, figure: FigureParams) -> str:
    """What the scale lacks for a figure; empty if nothing."""
    for what, used in figure.names().values():
        for one in used:
            if what == "table" and one in project.unserved:
                return project.unserved[one]
            if what == "benchmark" and (lack := project.lack_of_benchmark(one)):
                return lack
            if what == "run" and (
                lack := project.lack_of_dataset(project.runs[one].train, "train")
            ):
                return f"{one}: {lack}"
    return ""


def load_figures(project: Project) -> dict[str, FigureParams]:
    """The figures of ``figures.yaml`` that the scale has the data for.

    Raises:
        InputError: an unknown key, kind, run, benchmark, SAM size or table, with valid choices.
    """
    found = _read_figures(project)
    return {name: figure for name, figure in found.items() if not _lack(project, figure)}


def unserved_figures(project: Project) -> dict[str, str]:
    """For each figure that the scale lacks data for: what it lacks."""
    path, found = project.folder / "figures.yaml", _read_figures(project)
    lacks = {name: _lack(project, figure) for name, figure in found.items()}
    return {name: f"{path}: {name}: {lack}" for name, lack in lacks.items() if lack}


def find_figure(project: Project, name: str) -> FigureParams:
    """The figure called ``name``.

    Raises:
        InputError: no such figure (with those that are there), or the scale lacks its data.
    """
    figures = _read_figures(project)
    choose("figure", name, figures, str(project.folder / "figures.yaml"), "figure")
    if name in (unserved := unserved_figures(project)):
        raise InputError(unserved[name])
    return figures[name]
