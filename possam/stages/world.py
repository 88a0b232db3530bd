"""Stage ``world``: the procedural stand-in for the upstream data sets."""

from possam.params.layout import Layout
from possam.params.project import Project
from possam.runtime.errors import InputError


def make_world(project: Project, *, workers: int) -> None:
    """Write the synthetic archives of ``project``'s scale in the upstream layouts.

    Raises:
        InputError: the scale uses real data (``world: null``).
    """
    from possam.synthetic.archives import write_world

    world = project.scale.world
    if world is None:
        raise InputError(
            f"params/scales/{project.name}.yaml: world: this scale uses real data; "
            "there is no world to write"
        )
    write_world(Layout(project).world, world, workers=workers)
