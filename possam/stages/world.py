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
    layout = Layout(project)
    write_world(
        layout.world,
        coco_train=world.coco_train,
        coco_val=world.coco_val,
        ade20k_train=world.ade20k_train,
        ade20k_val=world.ade20k_val,
        ade20k_full_val=world.ade20k_full_val,
        pascal_context_459_val=world.pascal_context_459_val,
        seed=world.seed,
        workers=workers,
    )
