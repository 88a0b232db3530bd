"""All parameters of one scale, cross-checked.

A scale file (``params/scales/<scale>.yaml``) holds the defaults of every run and evaluation.
``params/runs.yaml`` defines each run, and ``params/variants.yaml`` each inference variant, by its
difference from these defaults.
"""

from collections.abc import Collection, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from possam.datasets.catalogue import datasets, find_dataset, trainable, users_of_roles
from possam.evaluation.options import PROBES
from possam.model.options import InferenceOptions, ResolutionOptions
from possam.params.assets import AssetParams
from possam.params.benchmarks import (
    BenchmarkParams,
    ExternalParams,
    TrainingFreeParams,
    check_external,
)
from possam.params.reading import (
    P,
    choose,
    merge,
    read_entries,
    scale_names,
    validate,
)
from possam.params.scale import RunDefinition, RunParams, ScaleParams
from possam.params.tables import (
    DEFAULT_VARIANT,
    MEASURED,
    Evaluation,
    Origin,
    TableParams,
    check_table,
)
from possam.params.yaml import read_yaml
from possam.runtime.errors import InputError


class Project:
    """All parameters of one scale, from ``folder`` (``params/``); InputError if any is wrong.

    Attributes:
        name, scale: the scale's name and content.
        prefix: ``""`` for ``paper``, else ``"<scale>/"`` (in paths of results).
        data: name of the scale whose data it uses (in paths of data).
        assets, benchmarks: entries of ``assets.yaml`` and ``benchmarks.yaml``.
        external: entries of ``external.yaml``, of every scale.
        training_free: entries of ``training_free.yaml``.
        tables: those that this scale has the data for, with only its own external systems.
        unserved: for each of the other tables, which data the scale lacks.
        variants: every inference variant, resolved against the scale's ``inference`` block.
    """

    def __init__(self, scale: str, *, folder: Path = Path("params")) -> None:
        self.folder, self.name = folder, scale
        self.prefix = "" if scale == "paper" else f"{scale}/"
        scales = scale_names(folder)
        choose("scale", scale, scales, str(folder / "scales"), "scale")
        source = self._source = str(folder / "scales" / f"{scale}.yaml")
        self._scale_data = self._read_scale(Path(source))
        self.scale = validate(ScaleParams, self._scale_data, source=source)
        self.data = self.scale.data_of or scale
        choose("scale", self.data, scales, source, "data_of")
        self._run_data = read_entries(folder / "runs.yaml")
        self.variants = self._resolved_variants()
        self.assets = self._mapping("assets.yaml", AssetParams)
        self.benchmarks = self._mapping("benchmarks.yaml", BenchmarkParams)
        self._check_roles()
        for size, tower in self.scale.towers.sam.items():
            choose("asset", tower.asset, self.assets, source, f"towers.sam.{size}.asset")
        clip = self.scale.towers.clip
        for name in (*clip.files, *([clip.asset] if clip.asset is not None else [])):
            choose("asset", name, self.assets, source, "towers.clip")
        measured = {name: benchmark.metrics for name, benchmark in self.benchmarks.items()}
        names = {"scale": scales, "trained_on": trainable()}
        self.external = self._mapping("external.yaml", ExternalParams, names, may_be_empty=True)
        path = str(folder / "external.yaml")
        check_external(self.external, path, self._run_data, scales, measured)
        path = str(folder / "training_free.yaml")
        self.training_free = self._mapping("training_free.yaml", TrainingFreeParams)
        for name, entry in self.training_free.items():
            choose("SAM size", entry.sam, self.scale.towers.sam, path, f"{name}.sam")
            choose("training set", entry.seen, trainable(), path, f"{name}.seen")
            if name in self._run_data or name in self.external:
                raise InputError(f"{path}: {name}: another system has this name; rename it")
        tables = self._checked_tables(measured)
        self.unserved = {
            name: f"{folder / 'tables.yaml'}: {name}: {lack}"
            for name, table in tables.items()
            if (lack := self.lack_of_evaluations(table.evaluations(self.scale.seeds)))
        }
        self.tables = {name: tables[name] for name in tables if name not in self.unserved}

    def _read_scale(self, path: Path) -> dict[str, Any]:
        """The scale's file, put over that of the scale which it is ``based_on``, if on any."""
        own = read_yaml(path)
        base = own.pop("based_on", None)
        if base is None:
            return own
        names = set(scale_names(self.folder)) - {self.name}
        choose("scale", str(base), names, str(path), "based_on")
        other = read_yaml(self.folder / "scales" / f"{base}.yaml")
        if "based_on" in other:
            raise InputError(f"{path}: based_on: {base} is itself based on another scale")
        return merge(other, own)

    def _check_roles(self) -> None:
        """Check that the scale's roles and assets are known, and that no data set is incomplete.

        A data set may lack all of its own roles; if it has some, one split must have all of its.
        """
        source, assets, users = self._source, self.scale.assets, users_of_roles()
        for role, asset in assets.items():
            choose("role", role, users, source, "assets")
            choose("asset", asset, self.assets, source, f"assets.{role}")
        for name, declared in datasets().items():
            own = [r for r, using in users.items() if {dataset for dataset, _ in using} == {name}]
            lacks = [self.lack_of_dataset(name, split) for split in declared.splits]
            if any(role in assets for role in own) and all(lacks):
                raise InputError(lacks[-1])

    def lack_of_dataset(self, dataset: str, split: str) -> str:
        """What the scale lacks for one split of a data set, and the remedy; empty if nothing."""
        for role in find_dataset(dataset, split).parts(split).values():
            if role not in self.scale.assets:
                return (
                    f"{self._source}: assets.{role}: missing; data set {dataset} needs it for its "
                    f"split {split}: name the asset of assets.yaml that plays this role, or choose "
                    "a scale that has one"
                )
        return ""

    def lack_of_evaluations(self, evaluations: Iterable[Evaluation]) -> str:
        """What the scale lacks for test and training sets of ``evaluations``; empty if nothing."""
        for key in evaluations:
            if lack := self.lack_of_benchmark(key.benchmark):
                return lack
            if lack := self.lack_of_dataset(self._seen_from(key), "train"):
                return f"{key.run}: {lack}"
        return ""

    def _seen_from(self, key: Evaluation) -> str:
        """The data set whose classes count as seen in an evaluation."""
        if key.is_external:
            return self.external[key.run].trained_on
        return self.runs[key.run].train if key.is_trained else self.training_free[key.run].seen

    def lack_of_benchmark(self, name: str) -> str:
        """What the scale lacks for the test set of a benchmark; empty if nothing."""
        test = self.benchmarks[name]
        lack = self.lack_of_dataset(test.dataset, test.split)
        return lack and f"benchmark {name}: {lack}"

    def dataset_assets(self, dataset: str, split: str) -> dict[str, str]:
        """The asset of each part of one split; an InputError if the scale has no such split."""
        if lack := self.lack_of_dataset(dataset, split):
            raise InputError(lack)
        roles = find_dataset(dataset, split).parts(split)
        return {part: self.scale.assets[role] for part, role in roles.items()}

    def images(self, dataset: str, split: str) -> int:
        """Images of a split of a data set, as its release has them, or the synthetic world."""
        made = None if self.scale.world is None else self.scale.world.images(dataset, split)
        return find_dataset(dataset, split).images[split] if made is None else made

    def benchmark(self, name: str) -> BenchmarkParams:
        """The benchmark ``name``; an InputError if there is none or the scale lacks its data."""
        path = str(self.folder / "benchmarks.yaml")
        choose("benchmark", name, self.benchmarks, path, "benchmark")
        if lack := self.lack_of_benchmark(name):
            raise InputError(lack)
        return self.benchmarks[name]

    def _checked_tables(self, measured: Mapping[str, Collection[str]]) -> dict[str, TableParams]:
        names: dict[str, Collection[str]] = {
            "run": self._run_data,
            "benchmark": self.benchmarks,
            "variant": self.variants,
            "external": self.external,
            "training_free": self.training_free,
        }
        tables = self._mapping("tables.yaml", TableParams, names)
        source = str(self.folder / "tables.yaml")
        predicted = {name: entry.predictions for name, entry in self.external.items()}
        for name, table in tables.items():
            check_table(name, table, source, names, measured, predicted)
            for group, benchmark in table.budget.items():
                run, test = table.budget_of(group)[MEASURED].run, self.benchmarks[benchmark]
                if test.dataset != (trained := self._run_data[run].get("train")):
                    raise InputError(
                        f"{source}: {name}.budget.{group}: {benchmark!r} is a test set of "
                        f"{test.dataset}, but {run} is trained on {trained}; name one of that"
                    )
        here = [name for name, entry in self.external.items() if entry.scale == self.name]
        return {name: self._served(table.showing(here)) for name, table in tables.items()}

    def _served(self, table: TableParams) -> TableParams:
        """The table without budgets whose closed set the scale lacks: no reason to lack all."""
        budget = {g: test for g, test in table.budget.items() if not self.lack_of_benchmark(test)}
        return table.model_copy(update={"budget": budget})

    def _mapping(
        self,
        file: str,
        model: type[P],
        choices: Mapping[str, Collection[str]] | None = None,
        *,
        may_be_empty: bool = False,
    ) -> dict[str, P]:
        path = self.folder / file
        return {
            name: validate(model, data, source=f"{path}: {name}", choices=choices)
            for name, data in read_entries(path, may_be_empty=may_be_empty).items()
        }

    def _resolved_variants(self) -> dict[str, InferenceOptions]:
        path = self.folder / "variants.yaml"
        differences = read_entries(path)
        if differences.get(DEFAULT_VARIANT) != {}:
            raise InputError(
                f"{path}: {DEFAULT_VARIANT}: must be there and be {{}}: it is the scale's "
                "inference block as it stands; give a difference a name of its own"
            )
        for name, difference in differences.items():
            if name in PROBES:
                raise InputError(
                    f"{path}: {name}: a probe of the error budget has this name; rename the variant"
                )
            if "resolution" in difference:
                valid = sorted(InferenceOptions.model_fields.keys() - {"resolution"})
                raise InputError(
                    f"{path}: {name}.resolution: variants share one forward pass of an image; set "
                    f"inference.resolution in {self._source}; valid keys: {', '.join(valid)}"
                )
        default = self._scale_data["inference"]
        merged = {name: merge(default, difference) for name, difference in differences.items()}
        return {
            name: validate(InferenceOptions, data, source=f"{path}: {name}")
            for name, data in merged.items()
        }

    def table(self, name: str) -> TableParams:
        """The table ``name``; an InputError if there is none or the scale lacks its data."""
        if name in self.unserved:
            raise InputError(self.unserved[name])
        choose("table", name, self.tables, str(self.folder / "tables.yaml"), "table")
        return self.tables[name]

    def variants_at(self, run: str, benchmark: str, condition: str) -> dict[str, InferenceOptions]:
        """The variants to compute in an evaluation: the default, and all that any table shows."""
        origins = [origin for table in self.tables.values() for origin in table.origins()]
        key = (run, benchmark, condition)
        shown = {one.variant for one in origins if (one.run, one.benchmark, one.condition) == key}
        shown.add(DEFAULT_VARIANT)
        changes = {"resolution": self.resolution(run)}
        return {
            name: options.model_copy(update=changes)
            for name, options in self.variants.items()
            if name in shown
        }

    def resolution(self, run: str) -> ResolutionOptions:
        """The test resolution of a run's evaluations: its own, or that of the inference block."""
        name = self.runs[run].test_resolution
        scale = self.scale
        return scale.inference.resolution if name is None else scale.test_resolutions[name]

    def has_budget(self, run: str, benchmark: str, condition: str) -> bool:
        """Whether a table shows the error budget of an evaluation (of its default inference)."""
        probes = {Origin(run, benchmark, condition, probe) for probe in PROBES}
        return any(probes & {*table.origins()} for table in self.tables.values())

    @cached_property
    def runs(self) -> dict[str, RunParams]:
        """Every run, resolved against the scale's defaults, with the first seed."""
        return {name: self.run(name) for name in self._run_data}

    def run(self, name: str, *, seed: int | None = None) -> RunParams:
        """One resolved run: the scale's defaults with the run's difference put over them.

        Args:
            seed: one of the scale's; None: the first.

        Raises:
            InputError: an unknown run or seed, or a difference that does not fit.
        """
        path = str(self.folder / "runs.yaml")
        choose("run", name, self._run_data, path, "run")
        keys = ("model", "loss", "training", "templates")
        merged = merge({key: self._scale_data[key] for key in keys}, self._run_data[name])
        definition = validate(RunDefinition, merged, source=f"{path}: {name}")
        if definition.sam is not None:
            choose("SAM size", definition.sam, self.scale.towers.sam, path, f"{name}.sam")
        if definition.test_resolution is not None:
            valid = self.scale.test_resolutions
            choose("resolution", definition.test_resolution, valid, path, f"{name}.test_resolution")
        if definition.start_from is not None:
            self._check_start(name, definition.start_from, path)
        seeds = self.scale.seeds
        seed = seeds[0] if seed is None else seed
        choose("seed", str(seed), [*map(str, seeds)], self._source, "seeds")
        return RunParams(**dict(definition), seed=seed)

    def starting_run(self, run: RunDefinition) -> str | None:
        """The run whose trained weights ``run`` starts from; None if it starts from none."""
        return run.start_from if run.start_from in self._run_data else None

    def _check_start(self, name: str, start: str, path: str) -> None:
        """Check that ``start`` is one asset or one run, and that no run starts from itself."""
        field = f"{name}.start_from"
        choose("asset or run", start, [*self.assets, *self._run_data], path, field)
        if start in self.assets and start in self._run_data:
            raise InputError(f"{path}: {field}: {start} is an asset and a run; rename the run")
        chain = [name, start]
        while (earlier := self._run_data.get(chain[-1], {}).get("start_from")) is not None:
            if earlier in chain:
                raise InputError(f"{path}: {field}: {' -> '.join([*chain, earlier])}: a circle")
            chain.append(earlier)
