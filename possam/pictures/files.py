"""Files that models are made of: shipped with the package, in a folder, or fetched on first use."""

import sys
from collections.abc import Sequence
from pathlib import Path

from possam.assets.fetch import fetch
from possam.assets.inventory import gigabytes
from possam.params.assets import AssetParams
from possam.params.project import Project
from possam.pictures.config import FileParams
from possam.runtime.environment import Environment
from possam.runtime.errors import ChecksumError, InputError
from possam.runtime.files import sha256_file
from possam.runtime.reading import reading

SHIPPED = Path(__file__).parent / "shipped"
"""The repository's ``params``, ``data/towers`` and ``data/models``: links there, folders here."""
TOWERS = SHIPPED / "data/towers"
MODELS = SHIPPED / "data/models"


def shipped_project(scale: str) -> Project:
    """The parameters of a scale as this version of the package ships them."""
    return Project(scale, folder=SHIPPED / "params")


def shipped_models() -> list[str]:
    """The names of the trained models that this version of the package ships."""
    return sorted(path.parent.name for path in MODELS.glob("*/config.json"))


def locate(wanted: FileParams, folders: Sequence[Path]) -> Path:
    """The file ``wanted`` in the first of ``folders``, or among the shipped towers, or fetched.

    Raises:
        ChecksumError: the file in a folder is another one.
        InputError: it is nowhere, and cannot be fetched.
    """
    for folder in (*folders, TOWERS):
        path = folder / wanted.file
        if not path.is_file():
            continue
        with reading(path):
            found = sha256_file(path)
        if found == wanted.sha256:
            return path
        if folder in folders:
            raise ChecksumError(
                f"{path}: sha256 {wanted.sha256} is expected, {found} was found; the file is "
                "damaged or another version: get the folder again, or export it again"
            )
    if wanted.asset is None:
        raise InputError(
            f"{wanted.file} (sha256 {wanted.sha256[:12]}...) is needed, and lies neither in "
            f"{', '.join(map(str, folders)) or 'a folder'} nor among the towers of this version of "
            "possam; export the model again with its towers"
        )
    return fetch_asset(wanted.asset)


def fetch_asset(name: str) -> Path:
    """Fetch an asset of ``params/assets.yaml`` into the user's cache, checked; once it is there,
    nothing is downloaded. Size, source and licence are printed before.
    """
    asset = shipped_project("paper").assets[name]
    folder = Environment.load().cache
    if not (folder / asset.file).exists():
        sys.stderr.write(f"{name}: {_announce(asset)}, into {folder}\n")
    return fetch(asset, name=name, directory=folder, world_manifest=None, base=SHIPPED, retries=3)


def _announce(asset: AssetParams) -> str:
    size = asset.size or asset.about
    source = asset.urls[0] if asset.urls else "a file of yours"
    return f"{gigabytes(size)} from {source} (licence: {asset.licence})"
