"""Stage ``efficiency``: what the models of a scale cost."""

from possam.layout import Layout
from possam.params import Project
from possam.stages.common import clip_config


def print_parameters(project: Project) -> None:
    """Print trainable, frozen and total parameters of the full model for every SAM size.

    Millions are cut off after one decimal, as in the paper's Table 0.B.1.
    """
    from possam.evaluation.efficiency import count_parameters

    scale, config = project.scale, clip_config(Layout(project))
    print(f"{scale.title}")
    print(f"{'model':<12}{'trainable':>15}{'frozen':>15}{'total':>15}   in millions")
    for size, tower in scale.towers.sam.items():
        count = count_parameters(
            sam_architecture=tower.architecture,
            clip_config=config,
            model=scale.model.model_dump(),
        )
        numbers = (count.trainable, count.frozen, count.total)
        cut = " + ".join(str(millions(number)) for number in numbers[:2])
        print(
            f"{f'PosSAM ({size.upper()})':<12}"
            + "".join(f"{number:>15,}" for number in numbers)
            + f"   {cut} = {millions(count.total)}"
        )


def millions(number: int) -> float:
    """Millions with one decimal, cut off and not rounded: 441,443,521 -> 441.4."""
    return number // 100_000 / 10
