"""Tables of ``params/tables.yaml``: rows, columns, controls, and the evaluations behind them."""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, get_args

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from possam.evaluation.metrics import METRICS, METRICS_OF
from possam.evaluation.options import PROBES, Condition
from possam.params.reading import choose, refuse_twins
from possam.runtime.errors import InputError
from possam.runtime.options import Options

CONDITIONS: tuple[str, ...] = get_args(Condition)
TRAINED = "trained"
EXTERNAL = "external"
"""The condition of predictions of a system that is not trained here."""
TRAINING_FREE = "training_free"
"""The condition of a system of ``training_free.yaml``, which trains nothing."""
LATER = "later"
"""The source of published rows of work that came after the paper."""
NO_SEED = 0  # the seed in keys and paths of what is not trained here
MEASURED, CLOSED_SET = "measured", "closed_set"
"""Lines of an error budget: the row as it is, and on the test set of its training domain."""
DEFAULT_VARIANT = "default"
"""The inference variant that is the scale's ``inference`` block, unchanged."""


class Evaluation(NamedTuple):
    """Key of one evaluation file; ``run`` may be an external or a training-free system."""

    run: str
    seed: int
    benchmark: str
    condition: str

    @property
    def is_external(self) -> bool:
        """Whether predictions of another system are evaluated, without a training here."""
        return self.condition == EXTERNAL

    @property
    def is_trained(self) -> bool:
        """Whether ``run`` is a run of ``runs.yaml``."""
        return self.condition not in (EXTERNAL, TRAINING_FREE)

    @property
    def name(self) -> str:
        """``run/seed0/benchmark/condition``."""
        return f"{self.run}/seed{self.seed}/{self.benchmark}/{self.condition}"


class Origin(NamedTuple):
    """Where a cell's figures come from: a variant of an evaluation, over all seeds."""

    run: str
    benchmark: str
    condition: str
    variant: str

    @property
    def is_external(self) -> bool:
        """Whether predictions of another system are evaluated, without a training here."""
        return self.condition == EXTERNAL

    @property
    def is_trained(self) -> bool:
        """Whether ``run`` is a run of ``runs.yaml``."""
        return self.condition not in (EXTERNAL, TRAINING_FREE)

    def evaluations(self, seeds: Sequence[int]) -> list[Evaluation]:
        """The evaluations behind it: one per seed, or a single one where nothing is trained."""
        seeds = seeds if self.is_trained else (NO_SEED,)
        return [Evaluation(self.run, seed, self.benchmark, self.condition) for seed in seeds]


class CellParams(Options):
    """Where a group of reproduced columns comes from."""

    run: str
    benchmark: str
    variant: str = DEFAULT_VARIANT

    @property
    def origin(self) -> Origin:
        """The trained run's figures."""
        return Origin(self.run, self.benchmark, TRAINED, self.variant)


class RowCellParams(Options):
    """Where a group of a row's columns comes from: a run, or a system that is not trained here."""

    external: str | None = None
    training_free: str | None = None
    run: str | None = Field(default=None, validate_default=True)
    benchmark: str
    variant: str = DEFAULT_VARIANT

    @field_validator("run")
    @classmethod
    def _one_source(cls, run: str | None, info: ValidationInfo) -> str | None:
        if not {"external", "training_free"} <= info.data.keys():  # their own fault is reported
            return run
        given = [run, info.data["external"], info.data["training_free"]]
        if given == [None, None, None]:
            raise PydanticCustomError(
                "missing", "Field required (or 'external' or 'training_free' in its place)"
            )
        if given.count(None) < 2:
            raise ValueError("a cell is of one system: keep one of run, external, training_free")
        return run

    @field_validator("variant")
    @classmethod
    def _of_a_run(cls, variant: str, info: ValidationInfo) -> str:
        if info.data.get("external") is not None:
            raise ValueError("external predictions have no inference variants; remove it")
        if info.data.get("training_free") is not None:
            raise ValueError("all variants are one where only CLIP classifies; remove it")
        return variant

    @property
    def origin(self) -> Origin:
        """The trained run's figures, or those of the system that is not trained here."""
        if self.external is not None:
            return Origin(self.external, self.benchmark, EXTERNAL, DEFAULT_VARIANT)
        if self.training_free is not None:
            return Origin(self.training_free, self.benchmark, TRAINING_FREE, DEFAULT_VARIANT)
        assert self.run is not None
        return Origin(self.run, self.benchmark, TRAINED, self.variant)


class RowParams(Options):
    """One row: its published name, and its cells by column group (none: published values only).

    ``published``: whether the published file has a line for it; false for external predictions, and
    for a row of ours beside the paper's. ``later``: a published row of work that the paper could
    not know. ``note``: what a reader of its figures should know.
    """

    name: str
    note: str | None = None
    cells: dict[str, RowCellParams] = Field(default_factory=dict)
    published: bool = True
    later: bool = False

    @property
    def source(self) -> str:
        """``reproduced``, ``external``, ``training_free``, ``published`` or ``later``."""
        origins = {cell.origin.condition for cell in self.cells.values()}
        if not origins:
            return LATER if self.later else "published"
        return {TRAINED: "reproduced"}.get(*origins, *origins)

    @property
    def is_external(self) -> bool:
        """Whether any of its cells shows external predictions."""
        return any(cell.external is not None for cell in self.cells.values())


class ColumnParams(Options):
    """One column: its key in the published CSV, the group (direction) and the metric shown."""

    key: str
    group: str
    metric: str
    title: str


class ControlParams(CellParams):
    """A row beside the table that must fail: an untrained decoder, or shuffled class names."""

    name: str
    condition: Condition

    @property
    def own_origin(self) -> Origin:
        """Origin of the control's own figures; ``origin`` is that of the trained run's."""
        return self.origin._replace(condition=self.condition)


class TableParams(Options):
    """One table of the paper.

    Attributes:
        published: file in ``params/published`` with one line per row.
        labels: text columns of that file (key: title) that say what a row is.
        groups: column groups (key: title); a row's cells say where each group is measured.
        reference: the row that every other reproduced row is compared with, in pairs.
        budget: for groups of columns, the test set of the reference row's training domain: the
            error budget of the row is shown there.
        agreement: whether the order of the reproduced rows is compared with the published one.
    """

    title: str
    published: str
    labels: dict[str, str] = Field(default_factory=dict)
    groups: dict[str, str]
    columns: tuple[ColumnParams, ...]
    rows: tuple[RowParams, ...]
    controls: tuple[ControlParams, ...] = ()
    reference: str | None = None
    budget: dict[str, str] = Field(default_factory=dict)
    agreement: bool = False

    def origins(self) -> list[Origin]:
        """The origin of every figure of the table, its controls and its budget, once each."""
        cells = [cell.origin for row in self.rows for cell in row.cells.values()]
        budget = [origin for group in self.budget for origin in self.budget_of(group).values()]
        return [*dict.fromkeys([*cells, *(c.own_origin for c in self.controls), *budget])]

    def budget_of(self, group: str) -> dict[str, Origin]:
        """The origins of the error budget of a group: ``measured``, the probes, ``closed_set``."""
        (reference,) = (row for row in self.rows if row.name == self.reference)
        measured = reference.cells[group].origin
        return {
            MEASURED: measured,
            **{probe: measured._replace(variant=probe) for probe in PROBES},
            CLOSED_SET: measured._replace(benchmark=self.budget[group]),
        }

    def evaluations(self, seeds: Sequence[int]) -> list[Evaluation]:
        """Every evaluation behind the table, once each."""
        return [*dict.fromkeys(k for origin in self.origins() for k in origin.evaluations(seeds))]

    def showing(self, external: Collection[str]) -> "TableParams":
        """The table without other external systems' cells, and without rows that become empty."""
        rows = []
        for row in self.rows:
            shown = {None, *external}
            cells = {group: cell for group, cell in row.cells.items() if cell.external in shown}
            if cells or row.published:
                rows.append(row.model_copy(update={"cells": cells}))
        return self.model_copy(update={"rows": tuple(rows)})


def check_table(
    name: str,
    table: TableParams,
    source: str,
    choices: Mapping[str, Collection[str]],
    measured: Mapping[str, Collection[str]],
    predicted: Mapping[str, Collection[str]],
) -> None:
    """Check every name in ``table``.

    Args:
        choices: valid names of a ``run``, a ``benchmark``, a ``variant``, and an ``external`` and a
            ``training_free`` system.
        measured, predicted: what each benchmark measures; each external system's benchmarks.

    Raises:
        InputError: a name that is unknown or used twice, or cells that do not fit together.
    """
    refuse_twins("rows", (row.name for row in table.rows), source, f"{name}.rows")
    refuse_twins("columns", (c.key for c in table.columns), source, f"{name}.columns")
    refuse_twins("controls", (c.name for c in table.controls), source, f"{name}.controls")
    for column in table.columns:
        key = f"{name}.columns[{column.key}]"
        choose("column group", column.group, table.groups, source, f"{key}.group")
        choose("metric", column.metric, METRICS, source, f"{key}.metric")

    def check_cell(cell: CellParams | RowCellParams, metrics: Sequence[str], key: str) -> None:
        for field, valid in choices.items():
            if (value := getattr(cell, field, None)) is not None:
                choose(field, value, valid, source, f"{key}.{field}")
        for metric in metrics:
            given = {m for kind in measured[cell.benchmark] for m in METRICS_OF[kind]}
            if metric not in given:
                raise InputError(
                    f"{source}: {key}.benchmark: {cell.benchmark!r} does not measure {metric!r}, "
                    f"which a column shows; it gives {', '.join(sorted(given))}; add to its "
                    "metrics in benchmarks.yaml"
                )

    for row in table.rows:
        for group, cell in row.cells.items():
            key = f"{name}.rows[{row.name}].cells.{group}"
            choose("column group", group, table.groups, source, key)
            shown = [column.metric for column in table.columns if column.group == group]
            check_cell(cell, shown, key)
            if cell.external is not None and cell.benchmark not in predicted[cell.external]:
                raise InputError(
                    f"{source}: {key}.benchmark: {cell.external!r} has no predictions for "
                    f"{cell.benchmark!r}; valid choices: "
                    f"{', '.join(sorted(predicted[cell.external]))}; add to its predictions in "
                    "external.yaml"
                )
        key = f"{name}.rows[{row.name}]"
        if len({cell.origin.condition for cell in row.cells.values()}) > 1:
            raise InputError(
                f"{source}: {key}.cells: runs, external predictions or training-free systems in "
                "one row; make a row of each"
            )
        if row.later and (row.cells or not row.published):
            raise InputError(
                f"{source}: {key}.later: true is only for published rows without cells; remove it"
            )
        if not row.published and not row.cells:
            raise InputError(
                f"{source}: {key}.published: false, and no cells: such a row shows nothing; give "
                "it cells, or remove it"
            )
    if table.reference is not None:
        reproduced = [row.name for row in table.rows if row.source == "reproduced"]
        choose("reproduced row", table.reference, reproduced, source, f"{name}.reference")
    for group, benchmark in table.budget.items():
        key = f"{name}.budget.{group}"
        cells = [row.cells for row in table.rows if row.name == table.reference]
        own = next(iter(cells), {}).get(group)
        if own is None or own.run is None or own.variant != DEFAULT_VARIANT:
            raise InputError(
                f"{source}: {key}: the reference row shows no run there with the default inference "
                "variant, of which a budget is; remove it or name such a row as reference"
            )
        choose("benchmark", benchmark, choices["benchmark"], source, key)
        if not {"panoptic", "semantic"} & {*measured[benchmark]} & {*measured[own.benchmark]}:
            raise InputError(
                f"{source}: {key}: {benchmark!r} and {own.benchmark!r} must both measure PQ or mIoU"
            )
    for control in table.controls:
        shown = [column.metric for column in table.columns]
        check_cell(control, shown, f"{name}.controls[{control.name}]")
