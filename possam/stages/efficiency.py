"""Stage ``efficiency``: the numbers of parameters of a scale's models."""

from possam.params.layout import Layout
from possam.params.project import Project
from possam.stages.common import clip_config


def print_parameters(project: Project) -> None:
    """Count the parameters of the full model with every SAM size, and of runs with another model.

    Millions are cut off after one decimal, as in the paper's Table 0.B.1.
    """
    from possam.evaluation.efficiency import count_parameters

    scale, config = project.scale, clip_config(Layout(project))
    print(scale.title)
    models = {f"PosSAM ({size.upper()})": (size, scale.model) for size in scale.towers.sam}
    variants = {n: (r.sam, r.model) for n, r in project.runs.items() if r.model != scale.model}
    width = max(map(len, [*models, *variants])) + 1
    print(f"{'model':<{width}}{'trainable':>15}{'frozen':>15}{'total':>15}   in millions")
    for name, (size, model) in {**models, **variants}.items():
        count = count_parameters(
            sam_architecture=None if size is None else scale.towers.sam[size].architecture,
            clip_config=config,
            model=model,
        )
        numbers = (count.trainable, count.frozen, count.total)
        trainable, frozen, total = map(millions, numbers)
        columns = "".join(f"{number:>15,}" for number in numbers)
        print(f"{name:<{width}}{columns}   {trainable} + {frozen} = {total}")


def millions(number: int) -> float:
    """Millions with one decimal, cut off and not rounded: 441,443,521 -> 441.4."""
    return number // 100_000 / 10
