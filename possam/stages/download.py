"""Stage ``download``: fetch assets or link to them, verify and unpack them."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path

from possam.assets.inventory import (
    Held,
    free_bytes,
    gigabytes,
    scale_assets,
    take_inventory,
    unpacked_bytes,
)
from possam.params.data import DataParams, load_data, needed_parts
from possam.params.layout import Layout
from possam.params.project import Project
from possam.params.reading import choose
from possam.runtime.errors import ChecksumError, InputError, PossamError
from possam.runtime.files import read_json
from possam.runtime.locks import hold


def download_assets(project: Project, names: Sequence[str], *, list_only: bool = False) -> None:
    """Download the assets ``names`` (default: all of the scale); first print sizes and terms.

    One asset that fails does not stop the others; all failures are reported at the end.

    Raises:
        InputError: an unknown asset, too little disk space, or assets that could not be fetched
            (a ChecksumError if every one of them has a wrong checksum).
    """
    for name in names:
        choose("asset", name, project.assets, str(project.folder / "assets.yaml"), "asset")
    data = load_data(project)
    if len(names) == 1 and not list_only:
        download_asset(project, names[0], data)
        return
    held = take_inventory(project, names or scale_assets(project), data)
    print(_listing(project, held), flush=True)
    if list_only:
        return
    _check_space(project, held)
    faults: list[PossamError] = []
    for one in held:
        try:
            download_asset(project, one.name, data)
        except PossamError as error:
            faults.append(error)
            sys.stderr.write(f"{one.name}: failed; going on with the others\n")
    if faults:
        kind = ChecksumError if all(isinstance(f, ChecksumError) for f in faults) else InputError
        raise kind(
            f"{len(faults)} of {len(held)} assets could not be fetched:\n"
            + "\n".join(str(fault) for fault in faults)
        )


def download_asset(project: Project, name: str, data: DataParams | None = None) -> None:
    """Bring asset ``name`` of ``params/assets.yaml`` into the scale's data folder.

    The file (or a link to a user's) and its record go to ``data/<scale>/assets``, an archive's
    content that conversions read (or links to a user's folders) to ``data/<scale>/raw/<name>``. A
    second process that wants the same asset waits.
    """
    from possam.assets.archives import is_unpacked, unpack
    from possam.assets.fetch import fetch, record_unpacked
    from possam.assets.roots import LocalFile, LocalParts, find, link_parts

    choose("asset", name, project.assets, str(project.folder / "assets.yaml"), "asset")
    data = load_data(project) if data is None else data
    asset, layout, parts = project.assets[name], Layout(project), needed_parts(project, name)
    file, raw = layout.assets / asset.file, layout.raw(name)
    lock = layout.assets / f".{name}.lock"
    with hold(lock, timeout=math.inf, on_wait=lambda: _say(name, "another process has it")):
        record = layout.asset_record(name)
        removed = asset.unpack and record.is_file() and not file.is_file()
        if removed and is_unpacked(raw, read_json(record)["sha256"], parts):
            _say(name, "unpacked already; its archive was removed")
            return
        local = None if file.is_file() else find(name, project.assets, data)
        if isinstance(local, LocalParts):
            note = layout.assets / f".{name}.unpacked.json"
            facts = link_parts(name, local, raw, note=note)
            record_unpacked(
                asset, name=name, directory=layout.assets, facts=facts,
                source=f"data root {local.root}",
            )  # fmt: skip
            _say(name, f"{facts['files']} files of data root {local.root} checked and linked")
            return
        if local is None and not file.is_file() and data.root_of(name) is not None:
            _say(name, f"not in its data root {data.assets[name].root}; downloading")
        manifest = layout.world / "manifest.json" if project.scale.world is not None else None
        fetch(
            asset, name=name, directory=layout.assets, world_manifest=manifest,
            base=Path("."),
            local=local.path if isinstance(local, LocalFile) else None,
        )  # fmt: skip
        if asset.unpack:
            sha256 = read_json(record)["sha256"]
            if not is_unpacked(raw, sha256, parts):
                unpack(file, raw, source_sha256=sha256, parts=parts)


def _say(name: str, text: str) -> None:
    sys.stderr.write(f"{name}: {text}\n")


def _listing(project: Project, held: Sequence[Held]) -> str:
    """Each asset with its size and state, then the terms of use."""
    width = max(len(one.name) for one in held) + 2
    rows = [f"{'asset':<{width}}{'size':>10}  {'unpacked':>10}  state"]
    for one in held:
        about = "" if one.exact or one.bytes is None else "~"
        unpacked = gigabytes(unpacked_bytes(one)) if one.asset.unpack else "-"
        state = one.state
        if one.state == "on disk":
            state = "on disk, to be linked"
        elif one.state == "begun" and one.to_download:
            state = f"begun, {gigabytes(one.to_download)} to go"
        rows.append(
            f"{one.name:<{width}}{about + gigabytes(one.bytes):>10}  {unpacked:>10}  {state}"
        )
    total = sum(one.bytes or 0 for one in held)
    here = sum(one.state == "here" for one in held)
    rows.append(
        f"{len(held)} assets, {gigabytes(total)}; {here} are here; "
        f"{gigabytes(sum(one.to_download for one in held))} to download, "
        f"{gigabytes(sum(one.to_unpack for one in held))} to unpack, "
        f"{gigabytes(free_bytes(Layout(project).assets))} free"
    )
    rows.append("\nTerms (downloading is using: read them first):")
    terms: dict[str, list[str]] = {}
    for one in held:
        terms.setdefault(one.asset.licence, []).append(one.name)
    rows += [f"  {licence}: {', '.join(names)}" for licence, names in terms.items()]
    notes = [one for one in held if one.asset.notes and one.state != "here"]
    if notes:
        rows.append("\nNotes:")
        rows += [f"  {one.name}: {one.asset.notes}" for one in notes]
    return "\n".join(rows)


def _check_space(project: Project, held: Sequence[Held]) -> None:
    needed = sum(one.to_download + one.to_unpack for one in held)
    folder = Layout(project).assets
    free = free_bytes(folder)
    if needed > free:
        raise InputError(
            f"{folder}: about {gigabytes(needed)} are needed for what is missing, "
            f"{gigabytes(free)} are free; make room, download fewer assets by name, or name "
            "folders that hold them in data.yaml (roots)"
        )
