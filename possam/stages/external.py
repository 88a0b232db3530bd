"""Stage ``evaluate`` for systems of ``params/external.yaml``: predictions in place of a model."""

import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from possam.checked_yaml import choose
from possam.codehash import code_hash
from possam.errors import InputError
from possam.external_params import ExternalParams
from possam.files import hash_json, sha256_file
from possam.layout import Layout
from possam.params import Project
from possam.provenance import write_provenance
from possam.table_params import DEFAULT_VARIANT, EXTERNAL, NO_SEED

EXTERNAL_CODE = ("possam.stages.external",)
"""Where the code begins that turns predictions into figures: no model is part of it, and no module
that builds one is imported here.
"""


def find_external(project: Project, name: str, benchmark: str) -> ExternalParams:
    """The entry of the system ``name``, which must have predictions for ``benchmark``.

    Raises:
        InputError: no such system, no predictions for the benchmark, or those of another scale.
    """
    source = _source(project)
    choose("external system", name, project.external, source, "external")
    entry = project.external[name]
    choose("benchmark", benchmark, entry.predictions, source, f"{name}.predictions")
    if entry.scale != project.name:
        raise InputError(
            f"{source}: {name}.scale: its predictions are of the scale {entry.scale!r}, not of "
            f"{project.name!r}; choose --scale {entry.scale}"
        )
    return entry


def prediction_files(project: Project, name: str, benchmark: str) -> dict[str, Path]:
    """The paths of a system's predictions by the field that names them; all are there.

    Raises:
        InputError: as :func:`find_external`, or something is missing.
    """
    entry = find_external(project, name, benchmark)
    paths = {field: Path(path) for field, path in entry.paths(benchmark).items()}
    for field, path in paths.items():
        is_file = field == "predictions" and entry.is_panoptic(benchmark)
        if path.is_file() if is_file else path.is_dir():
            continue
        kind = "JSON file in COCO panoptic format" if is_file else "folder of PNGs"
        raise InputError(
            f"{_source(project)}: {name}.{field}.{benchmark}: {path}: no such {kind}; put the "
            "predictions there, or correct the path"
        )
    return paths


def hash_predictions(paths: Mapping[str, Path]) -> str:
    """SHA-256 (hex) of predictions: names and content of all files, wherever they lie."""
    files: dict[str, str] = {}
    for field, path in paths.items():
        if path.is_file():
            files[field] = _hash_file(path)
            continue
        for file in sorted(path.rglob("*")):
            if file.is_file():
                files[f"{field}/{file.relative_to(path).as_posix()}"] = _hash_file(file)
    return hash_json(files)


def _hash_file(path: Path) -> str:
    status = path.stat()
    return _hash_once(path.absolute(), status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=1 << 17)
def _hash_once(path: Path, modified: int, size: int) -> str:
    """Cached until the file changes."""
    return sha256_file(path)


def _source(project: Project) -> str:
    return str(project.folder / "external.yaml")


def evaluate_external(project: Project, name: str, benchmark: str, *, workers: int) -> None:
    """Score a system's predictions on ``benchmark`` and write ``evaluation.json``.

    The result is that of a run with one variant; predictions have no seeds.

    Args:
        workers: processes; the result does not depend on it.

    Raises:
        InputError: as :func:`prediction_files`, or the predictions are malformed or incomplete;
            an earlier result stays.
    """
    from possam.datasets.class_names import seen_classes
    from possam.datasets.format import ConvertedDataset
    from possam.evaluation.score import measure_predictions
    from possam.evaluation.summary import count_parts, write_variants

    if workers < 1:
        raise InputError(f"--workers: {workers}: at least 1 is needed")
    started = time.time()
    entry = find_external(project, name, benchmark)
    paths = prediction_files(project, name, benchmark)
    layout, settings = Layout(project), project.scale.evaluation
    test = project.benchmarks[benchmark]
    dataset = ConvertedDataset.open(layout.dataset(test.dataset, test.split))
    training_set = ConvertedDataset.open(layout.dataset(entry.trained_on, "train"))
    inputs = {"dataset": dataset.manifest["content"], "predictions": hash_predictions(paths)}
    parameters = {
        "external": name,
        "benchmark": benchmark,
        "trained_on": entry.trained_on,
        "category_ids": entry.category_ids,
        "evaluation": settings.model_dump(mode="json"),
    }
    seen = seen_classes(dataset.vocabulary, training_set.vocabulary)
    statistics, found = measure_predictions(
        dataset=dataset,
        predictions=paths["predictions"],
        segmentations=paths.get("segmentations"),
        category_ids=entry.category_ids,
        evaluation=settings,
        seen=seen,
        metrics=test.metrics,
        workers=workers,
    )
    identity = {
        "run": name,
        "seed": NO_SEED,
        "condition": EXTERNAL,
        **parameters,
        "scale": project.name,
        "synthetic": project.scale.synthetic,
        "run_identity": inputs["predictions"],
        "inputs": inputs,
        "code": code_hash(*EXTERNAL_CODE),
    }
    result = {
        **identity,
        "identity": hash_json(identity),
        "counts": count_parts(dataset, seen),
        "variants": {DEFAULT_VARIANT: found},
    }
    out = layout.evaluation(name, NO_SEED, benchmark, EXTERNAL)
    write_variants(out, result, {DEFAULT_VARIANT: statistics})
    write_provenance(
        out / "provenance.json",
        stage="external",
        parameters=parameters,
        inputs=inputs,
        seed=None,
        started=started,
        root=Path("."),
    )
