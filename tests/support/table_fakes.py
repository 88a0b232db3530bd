"""Tables of params/tables.yaml made from invented measurements."""

import csv
import json
from pathlib import Path
from typing import Any

from possam.evaluation.metrics import METRICS
from possam.params.project import Project
from possam.params.tables import Origin
from possam.reporting.measurement import Comparisons, Measurement
from possam.reporting.tables import build_table

PARAMS = Path(__file__).resolve().parents[2] / "params"


def measured(project: Project, table: str) -> dict[Origin, Measurement]:
    """Every origin of the table with metrics 10, 11, ... (the next origin 15, 16, ...).

    Of the project's first seed, which is added to the metrics of what is trained.
    """
    found = {}
    for number, origin in enumerate(project.tables[table].origins()):
        seed = project.scale.seeds[0] if origin.is_trained else 0
        values = {name: 10.0 + 5 * number + k + seed for k, name in enumerate(METRICS)}
        counted = {"trainable_m", "frozen_m", "total_m"}
        part = {
            "metrics": values,
            "intervals": {
                name: [value, value] if name in counted else [value - 1, value + 2]
                for name, value in values.items()
            },
            "check": None,
            "protocol": {"miou": "the formula"},
        }
        evaluation = {
            **dict(zip(("run", "benchmark", "condition", "variant"), origin, strict=True)),
            "seed": seed,
            "scale": project.name,
            "code": "the code",
            "variants": {origin.variant: part},
        }
        found[origin] = Measurement.of(evaluation, origin.variant)
    return found


def make_table(
    folder: Path, table: str, comparisons: Comparisons | None = None, *, scale: str = "mini"
) -> tuple[list[dict[str, str]], str, str, dict[str, Any]]:
    """CSV rows, Markdown, TeX and card of a table with made-up measurements."""
    project, out = Project(scale, folder=PARAMS), folder / f"{table}.csv"
    build_table(project, table, measured(project, table), comparisons or Comparisons(), out=out)
    with open(out, newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    texts = [out.with_suffix(suffix).read_text(encoding="utf-8") for suffix in (".md", ".tex")]
    return rows, texts[0], texts[1], json.loads(out.with_suffix(".json").read_text())
