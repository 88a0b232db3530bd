"""``stored/<scale>``: hard links to finished results, for DVC to store and to bring back.

DVC removes files of its outputs without asking (``dvc exp run``, ``dvc checkout --force``, a cache
that lacks a file). So its outputs are these links, and no DVC command touches what they link to. A
unit here is what one job made: one asset, data set, training or evaluation; unfinished trainings
and their checkpoints are left out.
"""

import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from possam.params.layout import RUN_LOCK, STORED, Layout
from possam.params.project import Project
from possam.pipeline.declarations import STAGES
from possam.pipeline.graph import Graph, Job, find_job
from possam.pipeline.records import read_copy, settle_records
from possam.runtime.errors import InputError
from possam.runtime.files import (
    atomic_directory,
    atomic_path,
    read_json,
    sha256_file,
    write_json,
)
from possam.runtime.locks import is_held
from possam.training.run_files import RunFiles

_NOTE = ".possam/stored/{scale}.json"
_LIVE = re.compile(r"^(data/\{scale\}|results/\{prefix\}(?=runs|evaluations))/?")
_LEFT_OUT = frozenset({"checkpoints", RUN_LOCK})
_CACHE = "/files/md5/"
"""Part of the path of every file in a cache of DVC, which may lend links to files (cache.type)."""


def store(project: Project) -> None:
    """Make ``stored/<scale>`` hold every finished unit as it is now, and nothing else.

    What DVC has put there since the last call is first brought back (:func:`bring_back`).
    """
    bring_back(Graph(folder=project.folder, project=project), project.name)
    root, kept = _root(project), set[Path]()
    for job, record in _units(project, stored=False):
        for place in _places(project, job, record):
            for path in _walk(place):
                kept.add(_in_store(project, path))
                _link(path, _in_store(project, path))
    for folder, _, names in os.walk(root, topdown=False):
        for path in (Path(folder, name) for name in names):
            if path not in kept:
                path.unlink()
        if not any(Path(folder).iterdir()):
            Path(folder).rmdir()
    _note(project)
    print(f"{root}: {len(kept)} files of finished results, as hard links")


def bring_back(graph: Graph, scale: str) -> None:
    """Link results that DVC has put into ``stored/<scale>`` to where the pipeline looks for them.

    What is missing there is linked, unless it was there before and somebody removed it. A result of
    other parameters, code or inputs takes the place of one only if it is what Snakemake would make
    now, and that one is not; a training is set aside then.
    """
    if not Path(STORED.format(scale=scale)).is_dir():
        return
    project = graph.project(scale)
    settle_records()
    known = _known(project)
    for job, copy in _units(project, stored=True):
        path, digest = Path(job.path), sha256_file(copy)
        if job.stage == "train" and is_held(path.parent / RUN_LOCK):
            continue
        if path.is_file():
            same = sha256_file(path) == digest
            take = not same and not _fits(graph, job, path) and _fits(graph, job, copy)
        else:
            begun = job.stage == "train" and _files(project, job).has_work
            take = known.get(str(copy)) != digest and (not begun or _fits(graph, job, copy))
        if take:
            _take(project, job, copy)
            print(f"{path}: brought back from {copy}", file=sys.stderr, flush=True)
    _note(project)
    settle_records()


def _root(project: Project) -> Path:
    return Path(STORED.format(scale=project.name))


def _in_store(project: Project, path: Path) -> Path:
    layout = Layout(project)
    data, results = layout.assets.parent, layout.results
    return _root(project) / path.relative_to(data if path.is_relative_to(data) else results)


def _live(project: Project, path: Path) -> Path:
    """Where a file in the store belongs."""
    layout, inner = Layout(project), path.relative_to(_root(project))
    results = inner.parts[0] in ("runs", "evaluations")
    return (layout.results if results else layout.assets.parent) / inner


def _units(project: Project, *, stored: bool) -> Iterator[tuple[Job, Path]]:
    """Finished units in the order of the pipeline, each with the file that represents it."""
    where = {"scale": project.name, "prefix": project.prefix}
    for stage in STAGES.values():
        pattern = stage.outputs[0]
        if not stage.stored or not _LIVE.search(pattern):
            continue
        live = re.sub(r"\{(?!scale|prefix)\w+\}", "*", pattern).format(**where)
        glob = _in_store(project, Path(live)) if stored else Path(live)
        for path in sorted(Path().glob(glob.as_posix())):
            named = _live(project, path) if stored else path
            job = find_job(named.as_posix())
            if job is not None and job.stage == stage.name:
                yield job, path


def _places(project: Project, job: Job, record: Path) -> list[Path]:
    """Files and folders of a unit; the file that represents it (``record``) is in the last one."""
    path = Path(job.path)
    if job.stage != "download":
        return [path.parent]
    layout, name, file = Layout(project), job.of("asset"), read_json(record)["file"]
    names = (f".{file}.verified.json", file, f".{name}.unpacked.json", "pins.json")
    own = (layout.assets / one for one in (*names, f"{name}.record.snakemake", path.name))
    return [layout.raw(name), *own]


def _files(project: Project, job: Job) -> RunFiles:
    superseded = Layout(project).superseded(job.of("run"), int(job.of("seed")))
    return RunFiles(Path(job.path).parent, superseded=superseded)


def _take(project: Project, job: Job, record: Path) -> None:
    """Link a unit to its place; ``record`` is the file in the store that represents it."""
    for place in _places(project, job, record):
        source = _in_store(project, place)
        if job.stage == "train":
            _files(project, job).set_aside()
            # identity.json says whose the files are, run.json that they are complete.
            names = sorted(
                _walk(source), key=lambda one: (one == record, one.name != "identity.json")
            )
            for one in names:
                _link(one, place / one.name)
        elif source.is_dir() and not source.is_symlink():
            with atomic_directory(place) as folder:
                for one in _walk(source):
                    _link(one, folder / one.relative_to(source))
        elif os.path.lexists(source):
            _link(source, place)


def _fits(graph: Graph, job: Job, path: Path) -> bool:
    """Whether ``path`` has the parameters, code and inputs that Snakemake would ask for now.

    ``path`` represents a unit, here or in the store; a copy of Snakemake's record lies beside it.
    """
    kept = read_copy(path.with_suffix(".snakemake"))
    if kept is None or kept["sha256"] != sha256_file(path):
        return False
    device = read_json(path).get("device") or "cpu"
    try:
        identity = graph.identity(job.stage, dict(job.wildcards), device=device)
    except InputError:  # of a run or data set that params/ no longer has
        return False
    inputs = kept["record"].get("input_checksums", {})
    return repr(identity) in kept["record"]["params"] and all(
        f"sha256:{sha256_file(file)}" == digest
        for file, digest in inputs.items()
        if Path(file).is_file()
    )


def _walk(path: Path) -> Iterator[Path]:
    """Files and links below ``path`` (a file: itself) but what is not part of a result."""
    if path.is_symlink() or path.is_file():
        yield path
    elif path.is_dir():
        for one in sorted(path.iterdir()):
            if one.name not in _LEFT_OUT and not one.name.endswith(".tmp"):
                yield from _walk(one)


def _link(source: Path, target: Path) -> None:
    """Make ``target`` the same file as ``source``; a copy where the system gives no hard link."""
    if _same(source, target):
        return
    if source.is_symlink() and _CACHE in os.readlink(source):
        source = source.resolve()
    with atomic_path(target) as temporary:
        if source.is_symlink():  # to a file or folder in a data root
            temporary.symlink_to(os.readlink(source))
            return
        try:
            os.link(source, temporary)
        except OSError:  # another file system, one without links, or a file of another user
            shutil.copyfile(source, temporary)


def _same(one: Path, other: Path) -> bool:
    if one.is_file() and other.is_file():
        if os.path.samefile(one, other):
            return True
        equal = one.stat().st_size == other.stat().st_size
        return equal and sha256_file(one) == sha256_file(other)
    links = one.is_symlink() and other.is_symlink()
    return links and os.readlink(one) == os.readlink(other)


def _note(project: Project) -> None:
    """Remember which units the store has."""
    units = {str(path): sha256_file(path) for _, path in _units(project, stored=True)}
    if units != _known(project):
        write_json(_NOTE.format(scale=project.name), units)


def _known(project: Project) -> dict[str, str]:
    note = Path(_NOTE.format(scale=project.name))
    return dict(read_json(note)) if note.is_file() else {}
