"""``params/data.yaml``: data that lie on a user's disk, and what the official releases hold."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from possam.datasets.catalogue import DATASETS
from possam.params.project import Project
from possam.params.reading import choose, read_yaml, validate
from possam.runtime.environment import DATA_ROOTS_PREFIX, Environment
from possam.runtime.errors import InputError
from possam.runtime.options import Options, Positive


def _relative(path: str) -> str:
    parts = Path(path).parts
    if not parts or Path(path).is_absolute() or ".." in parts:
        raise ValueError("a path below the folder is expected, without '..'")
    return path


RelativePath = Annotated[str, AfterValidator(_relative)]
Count = Annotated[str, Field(pattern=r"^\w+\.(train|val)$")]
"""``<data set>.<split>``: as many as that split has images."""


class FilesParams(Options):
    """Files of one kind in a folder (and the folders in it): how many, and what is hashed.

    Names and sizes always count; ``content`` adds the SHA-256 of each file.
    """

    suffix: str
    exactly: Count | None = None
    at_least: Count | None = None
    content: bool = False

    @model_validator(mode="after")
    def _one_count(self) -> "FilesParams":
        if (self.exactly is None) == (self.at_least is None):
            raise ValueError("one of exactly and at_least is needed")
        return self

    @property
    def count(self) -> str:
        """The count that is referred to."""
        return self.exactly or self.at_least or ""


class PartParams(Options):
    """One file or folder of an unpacked archive, and where it may lie below a root."""

    path: RelativePath
    places: Annotated[tuple[RelativePath, ...], Field(min_length=1)]
    files: tuple[FilesParams, ...] = ()


class PlacedParams(Options):
    """Where one asset lies below a root: as its file, or (archives) as unpacked ``parts``."""

    root: str
    parts: tuple[PartParams, ...] = ()


class DataParams(Options):
    """The whole file; roots are folders, ``None`` where there is none."""

    roots: dict[str, str | None]
    images: dict[str, dict[str, Positive]]
    assets: dict[str, PlacedParams]

    def expected(self, count: str) -> int:
        """How many images ``<data set>.<split>`` has."""
        dataset, split = count.split(".")
        return self.images[dataset][split]

    def root_of(self, asset: str) -> Path | None:
        """The folder of a user that may hold ``asset``."""
        placed = self.assets.get(asset)
        folder = None if placed is None else self.roots[placed.root]
        return None if folder is None else Path(folder).expanduser()


def load_data(project: Project, environment: Environment | None = None) -> DataParams:
    """``data.yaml`` of the project, with the roots that the environment names put over it.

    Raises:
        InputError: unknown keys, roots, assets or counts; the message names the valid choices.
    """
    path = project.folder / "data.yaml"
    source = str(path)
    data = validate(DataParams, read_yaml(path), source=source)
    for dataset, entry in DATASETS.items():
        for split in entry.splits:
            if split not in data.images.get(dataset, {}):
                raise InputError(f"{source}: images.{dataset}.{split}: missing")
    counts = [f"{name}.{split}" for name, splits in data.images.items() for split in splits]
    for name, placed in data.assets.items():
        choose("asset", name, project.assets, source, "assets")
        choose("root", placed.root, data.roots, source, f"assets.{name}.root")
        if placed.parts and not project.assets[name].unpack:
            raise InputError(f"{source}: assets.{name}.parts: this asset is no archive")
        for part in placed.parts:
            for files in part.files:
                choose("count", files.count, counts, source, f"assets.{name}.parts.{part.path}")
    given = (environment or Environment.load()).data_roots
    for name in given:
        choose("root", name, data.roots, f"{DATA_ROOTS_PREFIX}{name.upper()}", "environment")
    return data.model_copy(update={"roots": {**data.roots, **given}})
