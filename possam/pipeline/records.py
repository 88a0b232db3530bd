"""Snakemake's records travel with the results that DVC and git store.

Snakemake records in ``.snakemake/metadata`` the parameters, code and inputs that a file was made
from. A copy of this record with the file's hash lies beside each stored result (``run.json``:
``run.snakemake``). So when DVC or git brings back a result of other parameters, Snakemake sees it.
The file's time is restored as well: Snakemake compares times if a file between two is missing.
"""

import json
import os
import re
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from possam.pipeline.declarations import STAGES
from possam.pipeline.graph import find_job
from possam.runtime.files import sha256_file, write_json

METADATA = Path(".snakemake/metadata")
_SAME_TIME_S = 1e-3


def settle_records() -> None:
    """Copy Snakemake's records of results made here; restore those of results brought back."""
    for outputs, copy in _stored():
        path = outputs[0]
        record, kept = read_copy(_record(path)), read_copy(copy)
        modified = path.stat().st_mtime
        made_here = record is not None and abs(record["endtime"] - modified) < _SAME_TIME_S
        if made_here and kept is not None and kept["record"] == record:
            continue
        digest = sha256_file(path)
        if not made_here and kept is not None and kept["sha256"] == digest:
            for output in filter(Path.is_file, outputs):
                write_json(_record(output), kept["record"])
                os.utime(output, (kept["record"]["endtime"],) * 2)
        elif record is not None:
            write_json(copy, {"sha256": digest, "record": record})


def _stored() -> Iterator[tuple[list[Path], Path]]:
    """The files of each stored result that exists, with the path of the record's copy."""
    for stage in STAGES.values():
        for prefix in ("", "*/") if stage.stored else ():
            pattern = re.sub(r"\{\w+\}", "*", stage.outputs[0].replace("{prefix}", prefix))
            for path in sorted(Path().glob(pattern)):
                job = find_job(path.as_posix())
                if job is not None and job.stage == stage.name:
                    outputs = [Path(o.format_map(dict(job.wildcards))) for o in stage.outputs]
                    yield outputs, path.with_suffix(".snakemake")


def read_copy(path: Path) -> Any:
    """A record or its copy; None if it is missing or half-written (Snakemake writes in place)."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def _record(path: Path) -> Path:
    """Where Snakemake keeps its record of ``path`` (Snakemake 9, ``persistence/file.py``)."""
    name = urlsafe_b64encode(path.as_posix().encode()).decode()
    parts = [name[start : start + 254] for start in range(0, len(name), 254)]
    return METADATA.joinpath(*(f"@{part}" for part in parts[:-1]), parts[-1])
