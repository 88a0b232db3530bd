"""Every stage of the pipeline, declared once: its files, their inputs, and what decides them.

A stage is one Snakemake rule and one line of the plan, which both ask
:class:`possam.pipeline.graph.Graph`. A new stage is one class here, one rule, and the command
``possam STAGE`` that the rule calls.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from possam.datasets.catalogue import module_of
from possam.model.options import CLIP
from possam.params import layout
from possam.params.data import load_data, needed_parts, selection
from possam.params.figures import find_figure, load_figures
from possam.params.project import Project
from possam.params.published import read_published
from possam.params.tables import CONDITIONS
from possam.pipeline import lookup
from possam.pipeline.external import find_external, hash_predictions, prediction_files
from possam.runtime.secrets import redact

Wildcards = Mapping[str, str]
"""A job's wildcards by name: ``scale`` or ``prefix`` is one of them."""

CONSTRAINTS: Mapping[str, str] = {
    **{"table": r"table\d+", "seed": r"\d+", "split": "train|val"},
    "condition": "|".join(CONDITIONS),
    **dict.fromkeys(("asset", "dataset", "tower", "run", "benchmark"), r"\w+"),
    **dict.fromkeys(("external", "system", "figure"), r"\w+"),
}
"""Regular expressions of the wildcards; ``scale`` and ``prefix`` follow from params/scales."""


class Stage:
    """One stage; the methods get the project of the job's scale and the job's wildcards.

    ``name``: of the Snakemake rule, of the command, and of the module in ``possam/stages``.
    ``outputs``: patterns of the files that a job makes; the plan names a job by the first.
    ``stored``: whether DVC or git stores what the stage makes.
    ``by_device``: whether the output names the ``device`` that computed it, and the hash of the
        ``code`` for it; code for other kinds of devices is then no part of a job's identity.
    """

    name: ClassVar[str]
    outputs: ClassVar[tuple[str, ...]]
    stored: ClassVar[bool] = False
    by_device: ClassVar[bool] = False

    def inputs(self, project: Project, w: Wildcards) -> list[str]:
        """The files that a job reads; an InputError if something named does not exist."""
        return []

    def check(self, project: Project, w: Wildcards) -> None:
        """Raise an InputError if something is missing that jobs need but the plan does not."""

    def parameters(self, project: Project, w: Wildcards) -> Any:
        """All parameters that decide a job's output, as JSON; by default only its wildcards."""
        return {name: value for name, value in w.items() if name not in ("scale", "prefix")}

    def code(self, project: Project, w: Wildcards) -> tuple[str, ...]:
        """The modules where a job's code begins; everything that they import counts too."""
        return (f"possam.stages.{self.name}",)


class World(Stage):
    """The archives of the procedural world."""

    name = "world"
    outputs = (layout.WORLD,)

    def parameters(self, project: Project, w: Wildcards) -> Any:
        return None if project.scale.world is None else lookup.plain(project.scale.world)


class Download(Stage):
    """One upstream file, fetched and verified."""

    name = "download"
    outputs = (layout.ASSET,)
    stored = True

    def inputs(self, project: Project, w: Wildcards) -> list[str]:
        from_world = any("{world}" in url for url in lookup.asset(project, w["asset"]).urls)
        return [layout.WORLD.format(scale=project.data)] if from_world else []

    def check(self, project: Project, w: Wildcards) -> None:
        """The file of the data that a user has already must be right."""
        load_data(project)

    def parameters(self, project: Project, w: Wildcards) -> Any:
        """A renewed password or token of an address is no other source.

        What conversions read of an archive decides what is unpacked.
        """
        asset = lookup.asset(project, w["asset"])
        values = asset.model_dump(mode="json", exclude={"about", "unpacked_about"})
        values["urls"] = [redact(url, frozenset()) for url in values["urls"]]
        return values | {"needed": selection(needed_parts(project, w["asset"]))}


class Convert(Stage):
    """One split of a data set in the common format."""

    name = "convert"
    outputs = (layout.DATASET,)
    stored = True

    def inputs(self, project: Project, w: Wildcards) -> list[str]:
        return lookup.records(project, [*project.dataset_assets(w["dataset"], w["split"]).values()])

    def code(self, project: Project, w: Wildcards) -> tuple[str, ...]:
        """The data set's own module; another data set's changes nothing."""
        return (*super().code(project, w), module_of(w["dataset"]))


class Features(Stage):
    """One frozen tower's features of one split."""

    name = "features"
    outputs = (layout.FEATURES,)

    def inputs(self, project: Project, w: Wildcards) -> list[str]:
        return [
            lookup.dataset(project, w["dataset"], w["split"]),
            *lookup.tower(project, w["tower"]),
        ]

    def parameters(self, project: Project, w: Wildcards) -> Any:
        tower = w["tower"]
        own = lookup.own_towers(project, None if tower == CLIP else tower)
        return [tower, own, project.scale.training.augmentation.policy]


class Train(Stage):
    """One run with one seed."""

    name = "train"
    outputs = (layout.RUN,)
    stored = by_device = True

    def inputs(self, project: Project, w: Wildcards) -> list[str]:
        """A data set and towers; cached features and a checkpoint where the run asks for them."""
        run = project.run(w["run"])
        inputs = [lookup.dataset(project, run.train, "train"), *lookup.towers(project, run.sam)]
        if run.training.feature_cache:
            where = {"scale": project.data, "dataset": run.train, "split": "train"}
            inputs += [layout.FEATURES.format(tower=tower, **where) for tower in run.towers]
        if (other := project.starting_run(run)) is not None:
            inputs.append(layout.RUN.format(prefix=project.prefix, run=other, seed=w["seed"]))
        elif run.start_from is not None:
            inputs += lookup.records(project, [run.start_from])
        return inputs

    def parameters(self, project: Project, w: Wildcards) -> Any:
        run = project.run(w["run"], seed=int(w["seed"]))
        return [lookup.plain(run), lookup.own_towers(project, run.sam), project.scale.threads]

    def code(self, project: Project, w: Wildcards) -> tuple[str, ...]:
        """The modules of the parts that the run chose; another pooling's changes nothing."""
        return (*super().code(project, w), *project.run(w["run"]).model.modules)


class External(Stage):
    """Another system's predictions on one benchmark; a hash of them is one of the parameters.

    They are no inputs: Snakemake would compare the time stamps of folders and large files.
    """

    name = "external"
    outputs = (layout.EXTERNAL_EVALUATION,)
    stored = True

    def inputs(self, project: Project, w: Wildcards) -> list[str]:
        """The test set, and the training set for seen classes."""
        source = find_external(project, w["external"], w["benchmark"]).trained_on
        test = project.benchmark(w["benchmark"])
        return [
            lookup.dataset(project, test.dataset, test.split),
            lookup.dataset(project, source, "train"),
        ]

    def check(self, project: Project, w: Wildcards) -> None:
        """The predictions must exist."""
        prediction_files(project, w["external"], w["benchmark"])

    def parameters(self, project: Project, w: Wildcards) -> Any:
        entry = find_external(project, w["external"], w["benchmark"])
        return [
            entry.trained_on,
            entry.category_ids,
            hash_predictions(prediction_files(project, w["external"], w["benchmark"])),
            lookup.plain(project.benchmarks[w["benchmark"]]),
            lookup.plain(project.scale.evaluation),
        ]


class TrainingFree(Stage):
    """SAM + CLIP on one benchmark, without a training."""

    name = "training_free"
    outputs = (layout.TRAINING_FREE_EVALUATION,)
    stored = by_device = True

    def inputs(self, project: Project, w: Wildcards) -> list[str]:
        """The test set, the data set whose classes count as seen, and the towers."""
        entry = lookup.training_free(project, w["system"])
        test = project.benchmark(w["benchmark"])
        return [
            lookup.dataset(project, test.dataset, test.split),
            lookup.dataset(project, entry.seen, "train"),
            *lookup.towers(project, entry.sam),
        ]

    def parameters(self, project: Project, w: Wildcards) -> Any:
        entry, scale = lookup.training_free(project, w["system"]), project.scale
        options = (entry, project.benchmark(w["benchmark"]), scale.inference, scale.evaluation)
        return [
            *map(lookup.plain, (*options, scale.automatic_masks)),
            list(scale.templates),
            list(scale.model.padding),
            lookup.own_towers(project, entry.sam),
        ]

    def code(self, project: Project, w: Wildcards) -> tuple[str, ...]:
        """Also the module of the ensemble."""
        return (*super().code(project, w), *project.scale.inference.modules)


class Evaluate(Stage):
    """One training on one benchmark under one condition, with every variant that tables show."""

    name = "evaluate"
    outputs = (layout.EVALUATION,)
    stored = by_device = True

    def inputs(self, project: Project, w: Wildcards) -> list[str]:
        """The test set, the training set (for seen classes), the towers and the trained run."""
        run, test = project.run(w["run"]), project.benchmark(w["benchmark"])
        inputs = [
            lookup.dataset(project, test.dataset, test.split),
            lookup.dataset(project, run.train, "train"),
            *lookup.towers(project, run.sam),
        ]
        if w["condition"] != "untrained":
            inputs.append(layout.RUN.format(prefix=project.prefix, run=w["run"], seed=w["seed"]))
        return inputs

    def parameters(self, project: Project, w: Wildcards) -> Any:
        run, condition, scale = w["run"], w["condition"], project.scale
        variants = project.variants_at(run, w["benchmark"], condition)
        return [
            condition,
            lookup.plain(project.benchmark(w["benchmark"])),
            {name: lookup.plain(inference) for name, inference in variants.items()},
            lookup.plain(scale.evaluation),
            project.has_budget(run, w["benchmark"], condition),
            list(scale.templates),
            lookup.own_towers(project, project.run(run).sam),
            Train().parameters(project, w) if condition == "untrained" else [run, w["seed"]],
        ]

    def code(self, project: Project, w: Wildcards) -> tuple[str, ...]:
        """Also the modules of the parts that the run and the inference variants choose."""
        own = project.run(w["run"]).model.modules
        variants = project.variants_at(w["run"], w["benchmark"], w["condition"]).values()
        return (*super().code(project, w), *own, *(m for one in variants for m in one.modules))


class Table(Stage):
    """One table; published values stand beside ours."""

    name = "table"
    outputs = (
        *(layout.TABLE_CSV, layout.TABLE_MD, layout.TABLE_TEX),
        *(layout.TABLE_CARD, layout.TABLE_METRICS),
    )
    stored = True

    def inputs(self, project: Project, w: Wildcards) -> list[str]:
        params = project.table(w["table"])
        cells = params.evaluations(project.scale.seeds)
        return [*lookup.evaluations(project, cells), *lookup.published(project, [params.published])]

    def check(self, project: Project, w: Wildcards) -> None:
        """The published values must fit the table."""
        params = project.table(w["table"])
        read_published(project.folder / "published" / params.published, params)

    def parameters(self, project: Project, w: Wildcards) -> Any:
        evaluation = lookup.plain(project.scale.evaluation)
        return [lookup.plain(project.table(w["table"])), lookup.about(project), evaluation]


class Track(Stage):
    """One table, and the scale's results so far, in MLflow."""

    name = "track"
    outputs = (layout.TRACKING,)

    def inputs(self, project: Project, w: Wildcards) -> list[str]:
        return [layout.TABLE_CSV.format(prefix=project.prefix, table=w["table"])]


class Figure(Stage):
    """One figure; only figures of images run models."""

    name = "figure"
    outputs = (layout.FIGURE_CARD, layout.FIGURE_PNG, layout.FIGURE_PDF)
    stored = True

    def inputs(self, project: Project, w: Wildcards) -> list[str]:
        needs, prefix = find_figure(project, w["figure"]).needs(project), project.prefix
        return [
            *(layout.RUN.format(prefix=prefix, run=run, seed=seed) for run, seed in needs.runs),
            *lookup.evaluations(project, needs.evaluations),
            *(lookup.dataset(project, dataset, split) for dataset, split in needs.datasets),
            *(record for tower in needs.towers for record in lookup.tower(project, tower)),
            *lookup.published(project, needs.published),
        ]

    def parameters(self, project: Project, w: Wildcards) -> Any:
        scale, params = project.scale, find_figure(project, w["figure"])
        needs, parts = params.needs(project), [lookup.plain(params), lookup.about(project)]
        if needs.evaluations:
            parts.append(lookup.plain(scale.evaluation))
        if needs.datasets:
            options = (scale.inference, scale.automatic_masks, scale.towers)
            parts += [*map(lookup.plain, options), list(scale.templates)]
        return parts

    def code(self, project: Project, w: Wildcards) -> tuple[str, ...]:
        """Also the modules of the parts of the models that it runs."""
        needs = find_figure(project, w["figure"]).needs(project)
        models = [project.run(run).model for run, _ in needs.runs if needs.datasets]
        return (*super().code(project, w), *(name for model in models for name in model.modules))


class Report(Stage):
    """The page of all tables and figures."""

    name = "report"
    outputs = (layout.REPORT,)

    def inputs(self, project: Project, w: Wildcards) -> list[str]:
        """Cards of every table and figure, and the reproduction decisions."""
        prefix, figures = project.prefix, load_figures(project)
        return [
            *(layout.TABLE_CARD.format(prefix=prefix, table=table) for table in project.tables),
            *(layout.FIGURE_CARD.format(prefix=prefix, figure=figure) for figure in figures),
            str(project.folder / "decisions.md"),
        ]

    def parameters(self, project: Project, w: Wildcards) -> Any:
        return [lookup.about(project), lookup.plain(project.scale.evaluation)]


STAGES: Mapping[str, Stage] = {
    stage.name: stage
    for stage in (
        *(World(), Download(), Convert(), Features(), Train()),
        # The pattern of evaluations fits those of systems that are not trained here, too.
        *(External(), TrainingFree(), Evaluate()),
        *(Table(), Figure(), Track(), Report()),
    )
}
"""In the order of the pipeline. The first stage with a pattern that fits a file makes it."""
