"""JSON Schemas of the parameter files, for editors: ``python -m possam.params.schemas [--check]``.

They are written from the models that check the files, and say less: names that one file takes from
another, and what depends on several fields, only ``possam check`` knows. Files that hold
differences from a scale's defaults have no required keys.
"""

import sys
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import Field, TypeAdapter

from possam.model.options import InferenceOptions
from possam.params.assets import AssetParams
from possam.params.benchmarks import BenchmarkParams, ExternalParams, TrainingFreeParams
from possam.params.calibration import CalibrationTarget
from possam.params.data import DataParams
from possam.params.figures import KINDS
from possam.params.plan import PlanParams
from possam.params.scale import RunDefinition, ScaleParams
from possam.params.slurm import Allocation, Kind
from possam.params.tables import TableParams
from possam.runtime.files import read_json, write_json

FOLDER = Path("params/schemas")
DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schemas() -> dict[str, dict[str, Any]]:
    """The schema of each kind of file: ``tables`` for ``tables.yaml``, ``scale`` for all scales."""
    figure: Any = Annotated[reduce(or_, dict.fromkeys(KINDS.values())), Field(discriminator="kind")]
    scale = _partial(_schema(ScaleParams))
    scale["properties"]["based_on"] = {"type": "string", "title": "Based On"}
    job = _partial(_schema(Allocation))
    kinds = {"type": "object", "additionalProperties": False}
    kinds["properties"] = {kind: {"$ref": "#/$defs/Allocation"} for kind in get_args(Kind)}
    found = {
        "assets": _schema(dict[str, AssetParams]),
        "benchmarks": _schema(dict[str, BenchmarkParams]),
        "calibration": _schema(dict[str, CalibrationTarget]),
        "data": _schema(DataParams),
        "external": _schema(dict[str, ExternalParams] | None),
        "figures": _schema(dict[str, figure]),
        "plan": _schema(PlanParams),
        "runs": _partial(_schema(dict[str, RunDefinition])),
        "scale": scale,
        "slurm": {
            "$defs": {"Allocation": job},
            "type": "object",
            "additionalProperties": False,
            "required": ["defaults", "scales"],
            "properties": {
                "defaults": {"$ref": "#/$defs/Allocation"},
                "scales": {"type": "object", "additionalProperties": kinds},
            },
        },
        "tables": _schema(dict[str, TableParams]),
        "training_free": _schema(dict[str, TrainingFreeParams]),
        "variants": _partial(_schema(dict[str, InferenceOptions])),
    }
    return {name: {"$schema": DIALECT, **schema} for name, schema in sorted(found.items())}


def _schema(model: Any) -> dict[str, Any]:
    return TypeAdapter(model).json_schema()


def _partial(schema: Any) -> Any:
    """``schema`` without required keys, at any depth."""
    if isinstance(schema, Mapping):
        # A property may be called `required`: it is a schema then, not a list.
        kept = {k: v for k, v in schema.items() if k != "required" or isinstance(v, Mapping)}
        return {key: _partial(value) for key, value in kept.items()}
    return [_partial(one) for one in schema] if isinstance(schema, list) else schema


def stale(folder: Path = FOLDER) -> list[Path]:
    """Files in ``folder`` that are missing, differ from the models, or belong to none."""
    wanted = {folder / f"{name}.json": schema for name, schema in schemas().items()}
    wrong = [path for path, schema in wanted.items() if _content(path) != schema]
    return sorted({*wrong, *(set(folder.glob("*")) - wanted.keys())})


def _content(path: Path) -> Any:
    return read_json(path) if path.is_file() else None


def main(arguments: Sequence[str]) -> int:
    """Write the schemas, or only ``--check`` them. Returns the exit code."""
    if list(arguments) == ["--check"]:
        for path in (wrong := stale()):
            print(f"{path}: not as the models in possam/params say; make schemas", file=sys.stderr)
        return 2 if wrong else 0
    if arguments:
        print("python -m possam.params.schemas [--check]", file=sys.stderr)
        return 2
    FOLDER.mkdir(exist_ok=True)
    for name, schema in schemas().items():
        write_json(FOLDER / f"{name}.json", schema)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
