"""Figures of ``params/figures.yaml``: what each kind shows and needs, checked when read."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

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
    """What a figure is made from; each name once."""

    runs: tuple[tuple[str, int], ...] = ()  # trained, with seed
    evaluations: tuple[Evaluation, ...] = ()  # of trained weights
    datasets: tuple[tuple[str, str], ...] = ()  # with split
    towers: tuple[str, ...] = ()  # sizes of SAM, and clip
    published: tuple[str, ...] = ()  # files below params/published


_NAMED = {
    **{"run": "run", "benchmark": "benchmark", "benchmarks": "benchmark"},
    **{"sam": "SAM size", "tables": "table"},
}
"""Fields that hold names declared in other files, and what they name."""


class FigureParams(Options):
    """What all figures have."""

    kind: str
    title: str

    def needs(self, project: Project) -> Needs:
        """What has to exist before the figure can be made."""
        raise NotImplementedError

    def names(self) -> Names:
        """Names that other files declare: key -> (what they name, the names)."""
        given = ((key, what, getattr(self, key, ())) for key, what in _NAMED.items())
        return {key: (what, (v,) if isinstance(v, str) else v) for key, what, v in given}


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


class ClustersParams(ImagesParams):
    """k-means clusters of SAM's features, beside CLIP's (Fig. 2) or SAM's masks (Fig. 0.B.1)."""

    kind: Literal["feature_clusters", "encoder_vs_decoder"]
    sam: str
    benchmark: str
    clusters: Annotated[int, Field(ge=2)]

    def needs(self, project: Project) -> Needs:
        other = (CLIP,) if self.kind == "feature_clusters" else ()
        return Needs(datasets=_datasets(project, (self.benchmark,)), towers=(self.sam, *other))


class QualitativeParams(ImagesParams):
    """PosSAM's segments and the ground truth; ``images`` of each benchmark."""

    kind: Literal["qualitative"]
    run: str
    benchmarks: Annotated[tuple[str, ...], Field(min_length=1)]

    def needs(self, project: Project) -> Needs:
        return _run_needs(project, self.run, self.benchmarks)


class BarParams(CellParams):
    """One pair of bars and its printed name; it shows a variant of a trained run."""

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
        found = dict.fromkeys(key for bar in self.bars for key in bar.origin.evaluations(seeds))
        return Needs(evaluations=tuple(found), published=(self.published.file,))

    def names(self) -> Names:
        fields = ("run", "variant", "benchmark")
        return {f"bars.{f}": (f, tuple(getattr(bar, f) for bar in self.bars)) for f in fields}


class TrainingCurvesParams(FigureParams):
    """Losses of all runs that the tables show, with every seed."""

    kind: Literal["training_curves"]
    tables: Annotated[tuple[str, ...], Field(min_length=1)]

    def needs(self, project: Project) -> Needs:
        seeds = project.scale.seeds
        found = [key for name in self.tables for key in project.tables[name].evaluations(seeds)]
        runs = dict.fromkeys((key.run, key.seed) for key in found if key.is_trained)
        return Needs(runs=tuple(runs))


class ErrorBudgetParams(FigureParams):
    """The error budgets of the reference rows of ``tables``."""

    kind: Literal["error_budget"]
    tables: Annotated[tuple[str, ...], Field(min_length=1)]

    def needs(self, project: Project) -> Needs:
        seeds, tables = project.scale.seeds, [project.tables[name] for name in self.tables]
        origins = (o for t in tables for group in t.budget for o in t.budget_of(group).values())
        found = dict.fromkeys(key for origin in origins for key in origin.evaluations(seeds))
        return Needs(evaluations=tuple(found))


KINDS: dict[str, type[FigureParams]] = {
    kind: model
    for model in (
        *(OversegmentationParams, ClustersParams, SeenUnseenParams),
        *(QualitativeParams, TrainingCurvesParams, ErrorBudgetParams),
    )
    for kind in get_args(model.model_fields["kind"].annotation)
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


def _read_figures(project: Project) -> tuple[dict[str, FigureParams], dict[str, str]]:
    """All figures, and what the scale lacks for those that it cannot make, by name."""
    path = project.folder / "figures.yaml"
    valid: dict[str, Collection[str]] = {
        "run": project.runs,
        "benchmark": project.benchmarks,
        "variant": project.variants,
        "SAM size": project.scale.towers.sam,
        "table": [*project.tables, *project.unserved],
    }
    figures, lacks = {}, {}
    for name, data in read_entries(path).items():
        kind = str(data.get("kind", ""))
        choose("kind", kind, KINDS, str(path), f"{name}.kind")
        figures[name] = validate(KINDS[kind], data, source=f"{path}: {name}")
        for key, (what, used) in figures[name].names().items():
            for one in used:
                choose(what, one, valid[what], str(path), f"{name}.{key}")
        if lack := _lack(project, figures[name]):
            lacks[name] = f"{path}: {name}: {lack}"
    return figures, lacks


def _lack(project: Project, figure: FigureParams) -> str:
    """What the scale lacks for a figure; empty if nothing."""
    for what, used in figure.names().values():
        for one in used:
            if what == "table" and one in project.unserved:
                return project.unserved[one]
            if what == "benchmark" and (lack := project.lack_of_benchmark(one)):
                return lack
            train = project.runs[one].train if what == "run" else ""
            if train and (lack := project.lack_of_dataset(train, "train")):
                return f"{one}: {lack}"
    return ""


def load_figures(project: Project) -> dict[str, FigureParams]:
    """The figures of ``figures.yaml`` that the scale has the data for.

    Raises:
        InputError: an unknown key, kind, run, benchmark, SAM size or table, with valid choices.
    """
    figures, lacks = _read_figures(project)
    return {name: figure for name, figure in figures.items() if name not in lacks}


def unserved_figures(project: Project) -> dict[str, str]:
    """For each figure that the scale lacks data for: what it lacks."""
    return _read_figures(project)[1]


def find_figure(project: Project, name: str) -> FigureParams:
    """The figure called ``name``; an InputError if there is none, or the scale lacks its data."""
    figures, lacks = _read_figures(project)
    choose("figure", name, figures, str(project.folder / "figures.yaml"), "figure")
    if name in lacks:
        raise InputError(lacks[name])
    return figures[name]
