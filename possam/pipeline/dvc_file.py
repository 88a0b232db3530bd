"""``dvc.yaml``: written from ``params/``, checked by ``possam check``."""

import shutil
from pathlib import Path

import yaml

from possam.params.reading import read_yaml
from possam.pipeline.dvc_stages import RECORDS, stages
from possam.pipeline.graph import PAPER, Pipeline
from possam.runtime.errors import InputError
from possam.runtime.files import atomic_path, atomic_write

DVC_FILE = Path("dvc.yaml")

_HEADER = """\
# What DVC pins and stores; Snakemake is the only graph: each stage asks it for targets.
# Written by `possam dvc` from params/; `possam check` says when it does not fit them any more.
"""


def dvc_text(plan: Pipeline, scales: list[str]) -> str:
    """``dvc.yaml`` for these scales."""
    content = {
        "vars": [{"scales": scales}],
        "stages": {
            name: stage.content() for scale in scales for name, stage in stages(plan, scale).items()
        },
    }
    return _HEADER + yaml.safe_dump(
        content, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True
    )


def write_dvc_file(plan: Pipeline, scales: list[str] | None, *, path: Path = DVC_FILE) -> None:
    """Write ``dvc.yaml`` for ``scales``; default: those that it has."""
    chosen = _scales(path) if scales is None else scales
    text = dvc_text(plan, chosen)
    with atomic_write(path) as stream:
        stream.write(text)


def check_dvc_file(plan: Pipeline, *, path: Path = DVC_FILE) -> None:
    """Compare ``dvc.yaml`` with ``params/``.

    Raises:
        InputError: it is missing, or does not fit.
    """
    scales = _scales(path)
    if path.read_text(encoding="utf-8") != dvc_text(plan, scales):
        raise InputError(f"{path}: does not fit params/ any more; write it anew: possam dvc")
    print(f"{path}: {', '.join(scales)}")


def _scales(path: Path) -> list[str]:
    remedy = f"write it anew, with its scales: possam dvc --scale {PAPER}"
    if not path.is_file():
        raise InputError(f"{path}: no such file; {remedy}")
    match read_yaml(path):
        case {"vars": [{"scales": [*scales]}]} if all(isinstance(s, str) for s in scales):
            return scales
    raise InputError(f"{path}: vars: does not say which scales it is of; {remedy}")


def own_records(folder: Path = RECORDS) -> None:
    """Make copies of records that are links into DVC's cache: Snakemake writes them in place."""
    for path in folder.rglob("*") if folder.is_dir() else ():
        if path.is_symlink() or (path.is_file() and path.stat().st_nlink > 1):
            with atomic_path(path) as temporary:
                shutil.copyfile(path, temporary)
