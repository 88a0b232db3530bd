"""What the Snakemake rules ask: inputs of each target, and the identity that decides a rerun.

An identity is the hash of the parameters that a stage uses and of the code behind it (comments and
docstrings do not count, see :mod:`possam.pipeline.codehash`). Snakemake stores it with each output
and reruns a job when it differs; inputs are small JSON files that it compares by content.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from possam.datasets.catalogue import module_of
from possam.model.options import CLIP
from possam.params.assets import AssetParams
from possam.params.figures import find_figure, load_figures
from possam.params.layout import (
    ASSET,
    DATASET,
    EVALUATION,
    FEATURES,
    FIGURE_CARD,
    RUN,
    TABLE_CARD,
    WORLD,
)
from possam.params.project import Project
from possam.params.published import read_published
from possam.pipeline.codehash import code_hash
from possam.pipeline.external import find_external, hash_predictions, prediction_files
from possam.runtime.errors import InputError
from possam.runtime.files import hash_json
from possam.runtime.options import Options

CODE: dict[str, tuple[str, ...]] = {
    "world": ("possam.stages.world",),
    "download": ("possam.stages.download",),
    "convert": ("possam.stages.convert",),
    "features": ("possam.stages.features",),
    "train": ("possam.stages.train",),
    "evaluate": ("possam.stages.evaluate",),
    "external": ("possam.stages.external",),
    "table": ("possam.stages.table",),
    "track": ("possam.stages.track",),
    "figure": ("possam.stages.figure",),
    "report": ("possam.stages.report",),
}
"""Modules where each stage's code begins; everything that they import counts too."""

PAPER = "paper"


def _plain(params: Options) -> dict[str, Any]:
    return params.model_dump(mode="json")


class Pipeline:
    """Answers the rules' questions for every scale in ``folder``/scales."""

    def __init__(self, *, folder: Path = Path("params"), project: Project | None = None) -> None:
        """``project``: one of ``folder`` that is loaded already."""
        self.folder = folder
        self.scales = sorted(path.stem for path in (folder / "scales").glob("*.yaml"))
        self._projects = {} if project is None else {project.name: project}
        self._code = cache(lambda *modules: code_hash(*modules))

    def project(self, scale: str) -> Project:
        """The parameters of ``scale`` (loaded once)."""
        if scale not in self._projects:
            self._projects[scale] = Project(scale, folder=self.folder)
        return self._projects[scale]

    @staticmethod
    def scale_of(prefix: str) -> str:
        """``"mini/"`` -> ``"mini"``; the empty prefix is the paper's."""
        return prefix.rstrip("/") or PAPER

    def identity(self, stage: str, scale: str, **wildcards: str) -> str:
        """Hash of the parameters and code that decide ``stage``'s output."""
        selectors: dict[str, Callable[..., Any]] = {
            "world": self._world,
            "download": self._asset,
            "convert": self._nothing,
            "features": self._features,
            "train": self._train,
            "evaluate": self._evaluate,
            "external": self._external,
            "table": self._table,
            "track": self._nothing,
            "figure": self._figure,
            "report": self._report,
        }
        parameters = selectors[stage](self.project(scale), **wildcards)
        # One data set's reader does not count for the others.
        reader = [module_of(wildcards["dataset"])] if stage == "convert" else []
        code = self._code(*CODE[stage], *reader)
        return hash_json({"stage": stage, "parameters": parameters, "code": code})

    def _nothing(self, project: Project, **wildcards: str) -> Any:
        return dict(wildcards)

    def _world(self, project: Project) -> Any:
        world = project.scale.world
        return None if world is None else _plain(world)

    def _asset(self, project: Project, *, asset: str) -> Any:
        params = self._known_asset(project, asset)
        return params.model_dump(mode="json", exclude={"about", "unpacked_about"})

    def _features(self, project: Project, *, tower: str) -> Any:
        scale = project.scale
        return [tower, _plain(scale.towers), scale.training.augmentation.policy]

    def _train(self, project: Project, *, run: str, seed: str) -> Any:
        resolved = project.run(run, seed=int(seed))
        towers = self._own_towers(project, resolved.sam)
        return [_plain(resolved), towers, project.scale.threads]

    @staticmethod
    def _own_towers(project: Project, sam: str | None) -> dict[str, Any]:
        """The towers that a run uses: another SAM's entry reruns nothing."""
        towers = _plain(project.scale.towers)
        return {**towers, "sam": None if sam is None else towers["sam"][sam]}

    def _evaluate(
        self, project: Project, *, run: str, seed: str, benchmark: str, condition: str
    ) -> Any:
        scale = project.scale
        variants = project.variants_at(run, benchmark, condition)
        return [
            condition,
            _plain(project.benchmarks[benchmark]),
            {name: _plain(inference) for name, inference in variants.items()},
            _plain(scale.evaluation),
            list(scale.templates),
            self._own_towers(project, project.run(run).sam),
            self._train(project, run=run, seed=seed) if condition == "untrained" else [run, seed],
        ]

    def _external(self, project: Project, *, external: str, benchmark: str) -> Any:
        entry = find_external(project, external, benchmark)
        return [
            entry.trained_on,
            entry.category_ids,
            hash_predictions(prediction_files(project, external, benchmark)),
            _plain(project.benchmarks[benchmark]),
            _plain(project.scale.evaluation),
        ]

    def _table(self, project: Project, *, table: str) -> Any:
        scale = project.scale
        return [
            _plain(project.table(table)),
            [scale.title, scale.synthetic, list(scale.seeds)],
            _plain(scale.evaluation),
        ]

    def _report(self, project: Project) -> Any:
        scale = project.scale
        return [scale.title, scale.synthetic, list(scale.seeds), _plain(scale.evaluation)]

    def _figure(self, project: Project, *, figure: str) -> Any:
        scale, params = project.scale, find_figure(project, figure)
        needs = params.needs(project)
        parts = [_plain(params), [scale.title, scale.synthetic, list(scale.seeds)]]
        if needs.evaluations:
            parts.append(_plain(scale.evaluation))
        if needs.datasets:
            blocks = (scale.inference, scale.automatic_masks, scale.towers)
            parts += [*map(_plain, blocks), list(scale.templates)]
        return parts

    @staticmethod
    def _known_asset(project: Project, asset: str) -> AssetParams:
        if asset not in project.assets:
            raise InputError(
                f"params/assets.yaml: unknown asset {asset!r}; "
                f"valid choices: {', '.join(sorted(project.assets))}"
            )
        return project.assets[asset]

    def _records(self, scale: str, assets: list[str]) -> list[str]:
        return [ASSET.format(scale=scale, asset=asset) for asset in assets]

    def asset_inputs(self, scale: str, asset: str) -> list[str]:
        """The world's manifest for an asset that it writes; nothing for the others."""
        params = self._known_asset(self.project(scale), asset)
        from_world = any("{world}" in url for url in params.urls)
        return [WORLD.format(scale=scale)] if from_world else []

    def dataset_inputs(self, scale: str, dataset: str, split: str) -> list[str]:
        """Records of the assets that a converted data set is made from."""
        return self._records(scale, [*self.project(scale).dataset_assets(dataset, split).values()])

    def _clip(self, scale: str) -> list[str]:
        clip = self.project(scale).scale.towers.clip
        return self._records(scale, [a for a in (clip.asset, *clip.files) if a is not None])

    def _tower(self, scale: str, tower: str) -> list[str]:
        if tower == CLIP:
            return self._clip(scale)
        sizes = self.project(scale).scale.towers.sam
        if tower not in sizes:
            valid = ", ".join((CLIP, *sizes))
            raise InputError(f"unknown tower {tower!r}; valid choices: {valid}")
        return self._records(scale, [sizes[tower].asset])

    def _towers(self, scale: str, sam: str | None) -> list[str]:
        return [*(() if sam is None else self._tower(scale, sam)), *self._clip(scale)]

    def features_inputs(self, scale: str, tower: str, dataset: str, split: str) -> list[str]:
        """A data set and a tower."""
        data = DATASET.format(scale=scale, dataset=dataset, split=split)
        return [data, *self._tower(scale, tower)]

    def training_inputs(self, prefix: str, run: str) -> list[str]:
        """A data set, the towers and, where the run asks for them, their cached features and the
        checkpoint that it starts from.
        """
        scale = self.scale_of(prefix)
        resolved = self.project(scale).run(run)
        where = {"scale": scale, "dataset": resolved.train, "split": "train"}
        inputs = [DATASET.format(**where), *self._towers(scale, resolved.sam)]
        if resolved.training.feature_cache:
            inputs += [FEATURES.format(tower=tower, **where) for tower in resolved.towers]
        if resolved.start_from is not None:
            inputs += self._records(scale, [resolved.start_from])
        return inputs

    def evaluation_inputs(
        self, prefix: str, run: str, seed: str, benchmark: str, condition: str
    ) -> list[str]:
        """The test set, the training set (for seen classes), the towers and the trained run."""
        scale = self.scale_of(prefix)
        project = self.project(scale)
        resolved = project.run(run)
        test = project.benchmark(benchmark)
        inputs = [
            DATASET.format(scale=scale, dataset=test.dataset, split=test.split),
            DATASET.format(scale=scale, dataset=resolved.train, split="train"),
            *self._towers(scale, resolved.sam),
        ]
        if condition != "untrained":
            inputs.append(RUN.format(prefix=prefix, run=run, seed=seed))
        return inputs

    def external_inputs(self, prefix: str, external: str, benchmark: str) -> list[str]:
        """The test set, and the training set for seen classes.

        The predictions are no inputs: Snakemake would compare the time stamps of folders and large
        files. Their content is in the identity.

        Raises:
            InputError: no such system or benchmark, or the predictions are not there.
        """
        prediction_files(self.project(self.scale_of(prefix)), external, benchmark)
        return self.external_datasets(prefix, external, benchmark)

    def external_datasets(self, prefix: str, external: str, benchmark: str) -> list[str]:
        """As :meth:`external_inputs`, whether the predictions are there or not."""
        scale = self.scale_of(prefix)
        entry = find_external(self.project(scale), external, benchmark)
        test = self.project(scale).benchmark(benchmark)
        return [
            DATASET.format(scale=scale, dataset=test.dataset, split=test.split),
            DATASET.format(scale=scale, dataset=entry.trained_on, split="train"),
        ]

    def is_timed(self, scale: str, benchmark: str) -> bool:
        """Does the benchmark measure speed? An unknown one is an error of its inputs."""
        found = self.project(scale).benchmarks.get(benchmark)
        return found is not None and found.images is not None

    def table_inputs(self, prefix: str, table: str) -> list[str]:
        """Every evaluation that a table shows, and the published figures beside it.

        Raises:
            InputError: an unknown table, or published figures that do not fit it.
        """
        project = self.project(self.scale_of(prefix))
        params = project.table(table)
        published = self.folder / "published" / params.published
        read_published(published, params)
        cells = [
            EVALUATION.format(prefix=prefix, **key._asdict())
            for key in params.evaluations(project.scale.seeds)
        ]
        return [*cells, str(published)]

    def report_inputs(self, prefix: str) -> list[str]:
        """Cards of every table and figure, and the reproduction decisions."""
        project = self.project(self.scale_of(prefix))
        return [
            *(TABLE_CARD.format(prefix=prefix, table=table) for table in project.tables),
            *(FIGURE_CARD.format(prefix=prefix, figure=figure) for figure in load_figures(project)),
            str(self.folder / "decisions.md"),
        ]

    def figure_inputs(self, prefix: str, figure: str) -> list[str]:
        """Trainings, evaluations, data sets, towers and published values that a figure shows.

        Raises:
            InputError: an unknown figure, or something unknown in it.
        """
        scale = self.scale_of(prefix)
        project = self.project(scale)
        needs = find_figure(project, figure).needs(project)
        return [
            *(RUN.format(prefix=prefix, run=run, seed=seed) for run, seed in needs.runs),
            *(EVALUATION.format(prefix=prefix, **key._asdict()) for key in needs.evaluations),
            *(DATASET.format(scale=scale, dataset=d, split=s) for d, s in needs.datasets),
            *(record for tower in needs.towers for record in self._tower(scale, tower)),
            *(str(self.folder / "published" / file) for file in needs.published),
        ]
