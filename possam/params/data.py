"""``params/data.yaml``: data that lie on a user's disk already."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from possam.datasets.catalogue import datasets, module_of, users_of_roles
from possam.params.project import Project
from possam.params.reading import choose, validate
from possam.params.yaml import read_yaml
from possam.runtime.environment import DATA_ROOTS_PREFIX, Environment
from possam.runtime.errors import InputError
from possam.runtime.options import Options


def _relative(path: str) -> str:
    parts = Path(path).parts
    if not parts or Path(path).is_absolute() or ".." in parts:
        raise ValueError("a path below the folder is expected, without '..'")
    return path


RelativePath = Annotated[str, AfterValidator(_relative)]
Count = Annotated[str, Field(pattern=r"^\w+\.(train|val)$")]
"""``<data set>.<split>``: the number of images of that split."""


class FilesParams(Options):
    """Files with one suffix below a folder: how many, and whether their content is hashed, too."""

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
        """``exactly`` or ``at_least``, whichever is given."""
        return self.exactly or self.at_least or ""


class PartParams(Options):
    """One file or folder of an unpacked archive, and where it may lie below a root."""

    path: RelativePath
    places: Annotated[tuple[RelativePath, ...], Field(min_length=1)]
    files: tuple[FilesParams, ...] = ()

    def holds(self, member: str) -> bool:
        """Whether a file of the archive is one of this part's, by its path there."""
        if not self.files:
            return member == self.path
        suffixes = tuple(files.suffix for files in self.files)
        return member.startswith(f"{self.path}/") and member.lower().endswith(suffixes)


class PlacedParams(Options):
    """Where one asset lies below a root: as its file, or (archives) as unpacked ``parts``."""

    root: str
    parts: tuple[PartParams, ...] = ()


class DataParams(Options):
    """``data.yaml`` over what the data sets declare; a root is a user's folder, or None."""

    roots: dict[str, str | None]
    assets: dict[str, PlacedParams]

    def root_of(self, asset: str) -> Path | None:
        """The user's folder that may hold ``asset``; None if there is none."""
        placed = self.assets.get(asset)
        folder = self.roots[placed.root] if placed else None
        return None if folder is None else Path(folder).expanduser()


def image_count(count: str) -> int:
    """How many images ``<data set>.<split>`` has in the official release."""
    dataset, split = count.split(".")
    return datasets()[dataset].images[split]


def needed_parts(project: Project, asset: str) -> tuple[PartParams, ...]:
    """What conversions read of the archive ``asset``; empty: not declared, so all of it.

    It is declared (``on_disk``) by the role that the asset plays at the project's scale. Unless
    every data set with that role declares it, nothing can be left out.
    """
    found: list[PartParams] = []
    for role, users in users_of_roles().items():
        if project.scale.assets.get(role) != asset:
            continue
        for name in sorted({dataset for dataset, _ in users}):
            entry = datasets()[name].on_disk.get(role)
            source = f"{module_of(name)}: on_disk.{role}"
            placed = None if entry is None else validate(PlacedParams, entry, source=source)
            if placed is None or not placed.parts:
                return ()
            found += placed.parts
    return tuple(dict.fromkeys(found))


def selection(parts: Iterable[PartParams]) -> list[list[str]]:
    """What decides which files of an archive are needed: each path, with its files' suffixes."""
    return [[part.path, *(files.suffix for files in part.files)] for part in parts]


def load_data(project: Project, environment: Environment | None = None) -> DataParams:
    """``data.yaml`` of the project, over what the data sets declare; the environment's roots win.

    Raises an InputError for unknown keys, roots, assets or counts.
    """
    source = str(project.folder / "data.yaml")
    own = validate(DataParams, read_yaml(Path(source)), source=source)
    assets, sources = {}, {}
    for dataset, declared in datasets().items():
        for name, entry in declared.on_disk.items():
            sources[name] = f"{module_of(dataset)}: on_disk"
            assets[name] = validate(PlacedParams, entry, source=f"{sources[name]}.{name}")
    assets |= own.assets
    sources |= dict.fromkeys(own.assets, f"{source}: assets")
    roots = dict.fromkeys(placed.root for placed in assets.values())
    for name in own.roots:
        choose("root", name, roots, source, "roots")
    counts = [f"{name}.{split}" for name, one in datasets().items() for split in one.splits]
    for name, placed in assets.items():
        choose("asset", name, project.assets, sources[name], name)
        if placed.parts and not project.assets[name].unpack:
            raise InputError(f"{sources[name]}.{name}.parts: this asset is no archive")
        for part in placed.parts:
            for files in part.files:
                choose("count", files.count, counts, sources[name], f"{name}.parts.{part.path}")
    given = (environment or Environment.load()).data_roots
    for name in given:
        choose("root", name, roots, f"{DATA_ROOTS_PREFIX}{name.upper()}", "environment")
    return DataParams(roots={**roots, **own.roots, **given}, assets=assets)
