"""The upstream files of a scale: their sizes, and which of them are here."""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from possam.assets.archives import RECORD
from possam.assets.fetch import partial_path
from possam.assets.roots import LocalFile, LocalParts, find
from possam.params.assets import AssetParams
from possam.params.data import DataParams, needed_parts
from possam.params.layout import Layout
from possam.params.project import Project
from possam.runtime.files import read_json


@dataclass(frozen=True, kw_only=True)
class Held:
    """One asset and its state.

    Attributes:
        bytes: of the file; None if neither its size nor an approximate one is known.
        exact: whether ``bytes`` is the published size or the file's own, not an approximate one.
        state: ``here`` (record, file and what is unpacked from it), ``begun`` (a partial
            download, or not unpacked yet), ``on disk`` (in a data root), ``by hand`` (no URL: the
            user gives it) or ``missing``.
        to_download, to_unpack: bytes that are still to be written (0 if not known).
        local: where it lies in a data root; None: in none.
        files: that are unpacked from it, or will be at least; None: not known before.
    """

    name: str
    asset: AssetParams
    bytes: int | None
    exact: bool
    state: str
    to_download: int
    to_unpack: int
    local: LocalFile | LocalParts | None
    files: int | None


def scale_assets(project: Project, runs: Iterable[str] | None = None) -> list[str]:
    """Assets of a scale, each once: data, towers, and what ``runs`` (None: all) start from."""
    scale = project.scale
    clip = scale.towers.clip
    towers = [*(tower.asset for tower in scale.towers.sam.values()), clip.asset, *clip.files]
    own = [project.run(name) for name in (project.runs if runs is None else runs)]
    starts = [run.start_from for run in own if project.starting_run(run) is None]
    names = [*scale.assets.values(), *towers, *starts]
    return [name for name in dict.fromkeys(names) if name is not None]


def take_inventory(project: Project, names: Iterable[str], data: DataParams) -> list[Held]:
    """The state of the assets ``names``; files are looked for by :func:`find`, not hashed."""
    layout = Layout(project)
    return [_hold(layout, name, data) for name in names]


def _hold(layout: Layout, name: str, data: DataParams) -> Held:
    assets = layout.project.assets
    asset = assets[name]
    file, raw = layout.assets / asset.file, layout.raw(name)
    recorded = layout.asset_record(name).is_file()
    unpacked = not asset.unpack or (raw / RECORD).is_file()
    has_file = file.is_file()
    here = recorded and unpacked and (has_file or asset.unpack)
    local = None if here or has_file else find(name, assets, data)
    if here or local is not None:
        state = "here" if here else "on disk"
    elif has_file or partial_path(file).is_file():
        state = "begun"
    else:
        state = "missing" if asset.urls else "by hand"
    size, exact = (asset.size, True) if asset.size else (asset.about, False)
    if has_file:
        size, exact = file.stat().st_size, True
    download = unpack = 0
    if state != "here":
        if local is None and not has_file:
            begun = partial_path(file)
            got = begun.stat().st_size if begun.is_file() else 0
            download = max(0, (size or 0) - got)
        if asset.unpack and not isinstance(local, LocalParts):
            unpack = asset.unpacked_about or size or 0
    return Held(
        name=name, asset=asset, bytes=size, exact=exact, state=state, to_download=download,
        to_unpack=unpack, local=local, files=_unpacked_files(layout, name, local),
    )  # fmt: skip


def _unpacked_files(layout: Layout, name: str, local: LocalFile | LocalParts | None) -> int | None:
    project, record = layout.project, layout.raw(name) / RECORD
    if not project.assets[name].unpack or isinstance(local, LocalParts):
        return 0
    if record.is_file():
        found = read_json(record)
        return 0 if "linked" in found else int(found["files"])
    if not (parts := needed_parts(project, name)):
        return None
    counts = [files.count.split(".") for part in parts for files in part.files]
    return sum(not part.files for part in parts) + sum(project.images(*one) for one in counts)


def unpacked_bytes(held: Held) -> int:
    """Approximate bytes of the unpacked archive; 0 for no archive, or one unpacked in a root."""
    if not held.asset.unpack or isinstance(held.local, LocalParts):
        return 0
    return held.asset.unpacked_about or held.bytes or 0


def gigabytes(count: int | float | None) -> str:
    """``19336861798`` -> ``19.3 GB``; None -> ``?``."""
    if count is None:
        return "?"
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"


def free_bytes(path: Path) -> int:
    """Free space, in bytes, of the file system that ``path`` is or will be on."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
