"""Predictions of other systems as inputs of the pipeline: where they lie, and their hash."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from possam.params.benchmarks import ExternalParams
from possam.params.project import Project
from possam.params.reading import choose
from possam.runtime.errors import InputError
from possam.runtime.files import hash_json, sha256_file


def find_external(project: Project, name: str, benchmark: str) -> ExternalParams:
    """The entry of the system ``name``.

    Raises:
        InputError: no such system, no predictions for the benchmark, or those of another scale.
    """
    source = str(project.folder / "external.yaml")
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
    """The paths of a system's predictions by the field that names them; all exist.

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
            f"{project.folder / 'external.yaml'}: {name}.{field}.{benchmark}: {path}: no such "
            f"{kind}; put the predictions there, or correct the path"
        )
    return paths


def hash_predictions(paths: Mapping[str, Path]) -> str:
    """SHA-256 (hex) of predictions: names and content of all files, wherever they lie."""
    files: dict[str, str] = {}
    for field, path in paths.items():
        below = () if path.is_file() else path.rglob("*")
        found = {f"{field}/{file.relative_to(path).as_posix()}": file for file in below}
        for name, file in (found or {field: path}).items():
            if file.is_file():
                status = file.stat()
                files[name] = _hash_once(file.absolute(), status.st_mtime_ns, status.st_size)
    return hash_json(files)


@lru_cache(maxsize=1 << 17)
def _hash_once(path: Path, modified: int, size: int) -> str:
    """Cached until the file changes."""
    return sha256_file(path)
