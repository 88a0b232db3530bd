"""All parameters of one scale, cross-checked.

A scale file (``params/scales/<scale>.yaml``) holds the defaults of every run and evaluation;
``params/runs.yaml`` writes each run, and ``params/variants.yaml`` each inference variant, as its
difference from them. Unknown keys, wrong types and dangling references are errors that name the
file, the key and the valid choices.
"""

from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path

from possam.datasets.catalogue import ROLES, TRAINABLE
from possam.model.options import InferenceOptions
from possam.params.assets import AssetParams
from possam.params.benchmarks import BenchmarkParams
from possam.params.external import ExternalParams, check_external
from possam.params.reading import P, choose, merge, read_entries, read_yaml, validate
from possam.params.runs import RunDefinition, RunParams
from possam.params.scale import ScaleParams
from possam.params.tables import DEFAULT_VARIANT, TableParams, check_table
from possam.runtime.errors import InputError


class Project:
    """All parameters of one scale, loaded from ``folder`` (``params/``) and cross-checked.

    Attributes:
        name, scale: the scale's name and content.
        prefix: ``""`` for ``paper``, else ``"<scale>/"`` (paths of results).
        assets, benchmarks: entries of these files.
        external: entries of that file, of every scale.
        tables: entries of that file, with the cells of external systems of this scale alone.
        variants: every inference variant, resolved against the scale's ``inference`` block.
    """

    def __init__(self, scale: str, *, folder: Path = Path("params")) -> None:
        self.folder, self.name = folder, scale
        self.prefix = "" if scale == "paper" else f"{scale}/"
        scales = sorted(path.stem for path in (folder / "scales").glob("*.yaml"))
        choose("scale", scale, scales, str(folder / "scales"), "scale")
        source = self._source = str(folder / "scales" / f"{scale}.yaml")
        self._scale_data = read_yaml(Path(source))
        self.scale = validate(ScaleParams, self._scale_data, source=source)
        self._run_data = read_entries(folder / "runs.yaml")
        self.variants = self._resolved_variants()
        self.assets = self._mapping("assets.yaml", AssetParams)
        self.benchmarks = self._mapping("benchmarks.yaml", BenchmarkParams)
        for role, dataset in ROLES.items():
            if role not in self.scale.assets:
                raise InputError(f"{source}: assets.{role}: missing; data set {dataset} needs it")
        for role, asset in self.scale.assets.items():
            choose("role", role, ROLES, source, "assets")
            choose("asset", asset, self.assets, source, f"assets.{role}")
        for size, tower in self.scale.towers.sam.items():
            choose("asset", tower.asset, self.assets, source, f"towers.sam.{size}.asset")
        clip = self.scale.towers.clip
        for name in (*clip.files, *([clip.asset] if clip.asset is not None else [])):
            choose("asset", name, self.assets, source, "towers.clip")
        measured = {name: benchmark.metrics for name, benchmark in self.benchmarks.items()}
        self.external = self._mapping(
            "external.yaml",
            ExternalParams,
            choices={"scale": scales, "trained_on": TRAINABLE},
            may_be_empty=True,
        )
        check_external(
            self.external,
            source=str(folder / "external.yaml"),
            runs=self._run_data,
            scales=scales,
            measured=measured,
        )
        self.tables = self._checked_tables(measured)

    def _checked_tables(self, measured: Mapping[str, Collection[str]]) -> dict[str, TableParams]:
        names: dict[str, Collection[str]] = {
            "run": self._run_data,
            "benchmark": self.benchmarks,
            "variant": self.variants,
            "external": self.external,
        }
        tables = self._mapping("tables.yaml", TableParams, choices=names)
        for name, table in tables.items():
            check_table(
                name,
                table,
                source=str(self.folder / "tables.yaml"),
                choices=names,
                measured=measured,
                predicted={name: entry.predictions for name, entry in self.external.items()},
            )
        here = [name for name, entry in self.external.items() if entry.scale == self.name]
        return {name: table.showing(here) for name, table in tables.items()}

    def _mapping(
        self,
        file: str,
        model: type[P],
        *,
        choices: Mapping[str, Collection[str]] | None = None,
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
            if "resolution" in difference:
                valid = sorted(InferenceOptions.model_fields.keys() - {"resolution"})
                raise InputError(
                    f"{path}: {name}.resolution: variants share one forward pass of an image; set "
                    f"inference.resolution in {self._source}; valid keys: {', '.join(valid)}"
                )
        return {
            name: validate(
                InferenceOptions,
                merge(self._scale_data["inference"], difference),
                source=f"{path}: {name}",
            )
            for name, difference in differences.items()
        }

    def table(self, name: str) -> TableParams:
        """The table called ``name``.

        Raises:
            InputError: no such table.
        """
        choose("table", name, self.tables, str(self.folder / "tables.yaml"), "table")
        return self.tables[name]

    def variants_at(self, run: str, benchmark: str, condition: str) -> dict[str, InferenceOptions]:
        """The variants to compute there: the default, and all that any table asks for."""
        wanted = {
            origin.variant
            for table in self.tables.values()
            for origin in table.origins()
            if (origin.run, origin.benchmark, origin.condition) == (run, benchmark, condition)
        }
        return {
            name: inference
            for name, inference in self.variants.items()
            if name in wanted | {DEFAULT_VARIANT}
        }

    @cached_property
    def runs(self) -> dict[str, RunParams]:
        """Every run, resolved against the scale's defaults, with the first seed."""
        return {name: self.run(name) for name in self._run_data}

    def run(self, name: str, *, seed: int | None = None) -> RunParams:
        """One resolved run: the scale's defaults with the run's difference put over them.

        Args:
            seed: one of the scale's; default: the first.

        Raises:
            InputError: an unknown run or seed, or a difference that does not fit.
        """
        path = str(self.folder / "runs.yaml")
        choose("run", name, self._run_data, path, "run")
        keys = ("model", "loss", "training", "templates")
        defaults = {key: self._scale_data[key] for key in keys}
        definition = validate(
            RunDefinition, merge(defaults, self._run_data[name]), source=f"{path}: {name}"
        )
        if definition.sam is not None:
            choose("SAM size", definition.sam, self.scale.towers.sam, path, f"{name}.sam")
        if definition.start_from is not None:
            choose("asset", definition.start_from, self.assets, path, f"{name}.start_from")
        seeds = self.scale.seeds
        if seed is None:
            seed = seeds[0]
        choose("seed", str(seed), [str(known) for known in seeds], self._source, "seeds")
        return RunParams(**dict(definition), seed=seed)
