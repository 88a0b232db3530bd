"""Tables of ``params/tables.yaml``: rows, columns, controls, and the evaluations behind them."""

from collections.abc import Collection, Mapping, Sequence
from typing import Literal, NamedTuple, get_args

from pydantic import Field

from possam.checked_yaml import Params, choose, refuse_twins
from possam.errors import InputError

Condition = Literal["trained", "untrained", "shuffled_names"]
Measured = Literal["panoptic", "instance", "semantic"]
CONDITIONS: tuple[str, ...] = get_args(Condition)
TRAINED = "trained"
DEFAULT_VARIANT = "default"
"""The inference variant that is the scale's ``inference`` block as it stands."""

METRICS_OF: dict[str, dict[str, str]] = {
    "panoptic": {
        "pq": "PQ",
        "sq": "SQ",
        "rq": "RQ",
        "pq_things": "PQ_th",
        "pq_stuff": "PQ_st",
        "pq_seen": "PQ_seen",
        "pq_unseen": "PQ_unseen",
        "pq_class_agnostic": "class-agnostic PQ",
    },
    "instance": {"map": "mAP"},
    "semantic": {
        "miou": "mIoU (classes in the ground truth)",
        "miou_union": "mIoU (classes in ground truth or prediction)",
    },
}
"""Metrics (all in percent) with their printed names, by what a benchmark has to measure."""

METRICS: dict[str, str] = {k: v for group in METRICS_OF.values() for k, v in group.items()}
"""Metrics that a table column can show, with their printed names."""


class Evaluation(NamedTuple):
    """What one evaluation file is of."""

    run: str
    seed: int
    benchmark: str
    condition: str

    @property
    def name(self) -> str:
        """``run/seed0/benchmark/condition``."""
        return f"{self.run}/seed{self.seed}/{self.benchmark}/{self.condition}"


class Place(NamedTuple):
    """Where a cell's figures come from: a variant of an evaluation, over all seeds."""

    run: str
    benchmark: str
    condition: str
    variant: str

    def evaluations(self, seeds: Sequence[int]) -> list[Evaluation]:
        """The evaluations behind it, one a seed."""
        return [Evaluation(self.run, seed, self.benchmark, self.condition) for seed in seeds]


class CellParams(Params):
    """Where a group of reproduced columns comes from."""

    run: str
    benchmark: str
    variant: str = DEFAULT_VARIANT

    @property
    def place(self) -> Place:
        """The trained run's figures."""
        return Place(self.run, self.benchmark, TRAINED, self.variant)


class RowParams(Params):
    """One row: its published name, and the runs that reproduce it (none: published only)."""

    name: str
    cells: dict[str, CellParams] = Field(default_factory=dict)


class ColumnParams(Params):
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
    def control_place(self) -> Place:
        """The control's own figures; ``place`` is those of the trained run beside it."""
        return self.place._replace(condition=self.condition)


class TableParams(Params):
    """One table of the paper."""

    title: str
    published: str
    groups: dict[str, str]
    columns: tuple[ColumnParams, ...]
    rows: tuple[RowParams, ...]
    controls: tuple[ControlParams, ...] = ()

    def places(self) -> list[Place]:
        """Everything that the table and its controls show, once each."""
        cells = [cell.place for row in self.rows for cell in row.cells.values()]
        return list(dict.fromkeys([*cells, *(c.control_place for c in self.controls)]))

    def evaluations(self, seeds: Sequence[int]) -> list[Evaluation]:
        """Every evaluation behind the table, once each."""
        found = (key for place in self.places() for key in place.evaluations(seeds))
        return list(dict.fromkeys(found))


def check_table(
    name: str,
    table: TableParams,
    *,
    source: str,
    choices: Mapping[str, Collection[str]],
    measured: Mapping[str, Collection[str]],
) -> None:
    """Check every name in ``table``.

    Args:
        choices: the names of every ``run``, ``benchmark`` and ``variant``.
        measured: what each benchmark measures (keys of ``METRICS_OF``).

    Raises:
        InputError: something unknown, named twice, or a metric that its benchmark does not give.
    """
    refuse_twins("rows", (row.name for row in table.rows), source, f"{name}.rows")
    refuse_twins("columns", (c.key for c in table.columns), source, f"{name}.columns")
    refuse_twins("controls", (c.name for c in table.controls), source, f"{name}.controls")
    for column in table.columns:
        key = f"{name}.columns[{column.key}]"
        choose("column group", column.group, table.groups, source, f"{key}.group")
        choose("metric", column.metric, METRICS, source, f"{key}.metric")

    def check_cell(cell: CellParams, metrics: Sequence[str], key: str) -> None:
        for field, valid in choices.items():
            choose(field, getattr(cell, field), valid, source, f"{key}.{field}")
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
    for control in table.controls:
        shown = [column.metric for column in table.columns]
        check_cell(control, shown, f"{name}.controls[{control.name}]")
