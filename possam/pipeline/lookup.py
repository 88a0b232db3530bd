"""What the declarations of stages look up: entries of ``params/``, and files that jobs need.

Unknown names are InputErrors that list the valid ones.
"""

from collections.abc import Iterable
from typing import Any

from possam.model.options import CLIP
from possam.params import layout
from possam.params.assets import AssetParams
from possam.params.benchmarks import TrainingFreeParams
from possam.params.project import Project
from possam.params.reading import choose
from possam.runtime.errors import InputError
from possam.runtime.options import Options


def plain(params: Options) -> dict[str, Any]:
    """Parameters as JSON."""
    return params.model_dump(mode="json")


def about(project: Project) -> list[Any]:
    """A scale's title, whether its data are synthetic, and its seeds: what pages say of it."""
    scale = project.scale
    return [scale.title, scale.synthetic, list(scale.seeds)]


def asset(project: Project, name: str) -> AssetParams:
    """The asset ``name``."""
    choose("asset", name, project.assets, str(project.folder / "assets.yaml"), "asset")
    return project.assets[name]


def training_free(project: Project, name: str) -> TrainingFreeParams:
    """The training-free system ``name``."""
    path = str(project.folder / "training_free.yaml")
    choose("training-free system", name, project.training_free, path, "system")
    return project.training_free[name]


def records(project: Project, assets: Iterable[str]) -> list[str]:
    """Records of fetched assets."""
    return [layout.ASSET.format(scale=project.data, asset=asset) for asset in assets]


def dataset(project: Project, dataset: str, split: str) -> str:
    """The manifest of a converted split."""
    return layout.DATASET.format(scale=project.data, dataset=dataset, split=split)


def evaluations(project: Project, found: Iterable[Any]) -> list[str]:
    """Files of the evaluations with these keys."""
    return [layout.EVALUATION.format(prefix=project.prefix, **key._asdict()) for key in found]


def published(project: Project, files: Iterable[str]) -> list[str]:
    """Files of published values."""
    return [str(project.folder / "published" / file) for file in files]


def tower(project: Project, tower: str) -> list[str]:
    """Records of a frozen tower's files: ``clip``, or a size of SAM."""
    towers = project.scale.towers
    if tower == CLIP:
        return records(project, [a for a in (towers.clip.asset, *towers.clip.files) if a])
    if tower not in towers.sam:
        valid = ", ".join((CLIP, *towers.sam))
        raise InputError(f"unknown tower {tower!r}; valid choices: {valid}")
    return records(project, [towers.sam[tower].asset])


def towers(project: Project, sam: str | None) -> list[str]:
    """Records of the files of CLIP and of one SAM, or of none."""
    return [*(() if sam is None else tower(project, sam)), *tower(project, CLIP)]


def own_towers(project: Project, sam: str | None) -> dict[str, Any]:
    """CLIP and one SAM, or none: an edit of another SAM's entry reruns nothing."""
    towers = plain(project.scale.towers)
    return {**towers, "sam": None if sam is None else towers["sam"][sam]}
