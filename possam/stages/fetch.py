"""Stage ``fetch``: bring one asset here, verify and unpack it."""

from pathlib import Path

from possam.errors import InputError
from possam.layout import Layout
from possam.params import Project


def fetch_asset(project: Project, name: str) -> None:
    """Fetch asset ``name`` of ``params/assets.yaml`` into the scale's data folder.

    The file and its record go to ``data/<scale>/assets``, an archive's content to
    ``data/<scale>/raw/<name>``.
    """
    from possam.assets import fetch, unpack

    if name not in project.assets:
        raise InputError(
            f"{project.folder / 'assets.yaml'}: unknown asset {name!r}; "
            f"valid choices: {', '.join(sorted(project.assets))}"
        )
    asset, layout = project.assets[name], Layout(project)
    manifest = layout.world / "manifest.json" if project.scale.world is not None else None
    file = fetch(asset, name=name, directory=layout.assets, world_manifest=manifest, base=Path("."))
    if asset.unpack:
        unpack(file, layout.raw(name))
