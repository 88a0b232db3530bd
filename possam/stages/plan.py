"""Stage ``plan``: prints the plan of some targets."""

from collections.abc import Sequence

from possam.assets.inventory import free_bytes, gigabytes
from possam.params.layout import Layout
from possam.params.project import Project
from possam.pipeline.declarations import STAGES
from possam.pipeline.graph import Graph
from possam.pipeline.plan import UNPACKED, Amount, Plan, Step, make_plan, wall_hours
from possam.runtime.errors import InputError
from possam.stages.runs import set_aside_bytes

_LEFT = {
    "download": "downloaded files",
    UNPACKED: "unpacked of them",
    "convert": "converted data sets",
    "features": "cached features",
    "train": "checkpoints and weights",
    "evaluate": "evaluations",
}
"""What the jobs of a stage leave."""


def print_plan(project: Project, names: Sequence[str], *, nodes: int) -> None:
    """Print jobs by stage, machine hours, wall time on ``nodes`` nodes, and disk space.

    Raises:
        InputError: an unknown target, or no nodes.
    """
    if nodes < 1:
        raise InputError(f"--nodes: {nodes}: at least one node is needed")
    graph = Graph(folder=project.folder, project=project)
    plan = make_plan(graph, project.name, names)
    other = make_plan(graph, project.name, names, share_towers=not plan.shares_towers)
    parts = (
        [f"{project.scale.title}: {', '.join(plan.targets)}"],
        _stages(plan),
        _trainings(plan),
        _towers(plan, other),
        _wall(plan, nodes),
        _disk(project, plan),
        _notes(project, plan),
    )
    print("\n\n".join("\n".join(lines) for lines in parts if lines))


def duration(hours: float) -> str:
    """``0.5`` -> ``30 min``; ``30.2`` -> ``30.2 h``; ``75`` -> ``3.1 days``."""
    if hours < 1:
        return f"{hours * 60:.0f} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"


def _stages(plan: Plan) -> list[str]:
    unit = plan.hardware.unit
    lines = [f"{'stage':<10}{'jobs':>6}{'done':>7}{'to do':>7}{f'{unit}-hours left':>18}"]
    for stage in STAGES:
        if steps := [step for step in plan.steps if step.job.stage == stage]:
            lines.append(_row(stage, steps, counted=stage in plan.hardware.per_job))
    return [*lines, _row("all", plan.steps, counted=True)]


def _row(name: str, steps: Sequence[Step], *, counted: bool) -> str:
    jobs, done = len(steps), sum(step.state == "done" for step in steps)
    hours = f"{sum(step.unit_hours for step in steps):,.1f}" if counted else "-"
    return f"{name:<10}{jobs:>6}{done:>7}{jobs - done:>7}{hours:>18}"


def _trainings(plan: Plan) -> list[str]:
    steps = [step for step in plan.steps if step.job.stage == "train"]
    if not steps:
        return []
    unit, units = plan.hardware.unit, plan.hardware.per_job["train"]
    width = max(len(_name(step)) for step in steps) + 2
    heading = f"on {units} {unit}{'s' if units > 1 else ''}"
    lines = [f"{'training':<{width}}{f'{unit}-hours':>12}{heading:>12}  state"]
    for step in steps:
        state = step.state
        if state == "begun":
            state += f", {1 - step.hours / step.whole_hours:.0%} done"
        whole, wall = step.units * step.whole_hours, duration(step.whole_hours)
        lines.append(f"{_name(step):<{width}}{whole:>12,.1f}{wall:>12}  {state}")
    return lines


def _towers(plan: Plan, other: Plan) -> list[str]:
    """GPU-hours with and without shared towers, where that makes a difference."""
    shared, each = (plan, other) if plan.shares_towers else (other, plan)
    if shared.unit_hours() == each.unit_hours():
        return []
    unit, ratio = plan.hardware.unit, each.unit_hours("train") / shared.unit_hours("train")
    return [
        f"Towers run once for trainings that see the same crops: {shared.unit_hours():,.1f} "
        f"{unit}-hours; once for each training: {each.unit_hours():,.1f} (of trainings "
        f"{shared.unit_hours('train'):,.1f} and {each.unit_hours('train'):,.1f}, {ratio:.2f} "
        f"times as many). This plan: {'shared' if plan.shares_towers else 'not shared'} "
        "(share_towers in params/slurm.yaml)"
    ]


def _name(step: Step) -> str:
    return f"{step.job.of('run')} seed {step.job.of('seed')}"


def _wall(plan: Plan, nodes: int) -> list[str]:
    per_node, unit = plan.hardware.per_node, plan.hardware.unit
    counts = dict.fromkeys((nodes, *(() if nodes > 1 else (2, 4, 8))))
    times = []
    if nodes == 1 and (largest := max(step.units for step in plan.steps)) < per_node:
        alone = duration(wall_hours(plan.steps, capacity=max(1, largest)))
        times.append(f"{alone} on {max(1, largest)} {unit}{'s' if largest > 1 else ''}")
    times += [
        f"{duration(wall_hours(plan.steps, capacity=count * per_node))} on {count} "
        f"node{'s' if count > 1 else ''}"
        for count in counts
    ]
    return [f"Expected wall time (nodes of {per_node} {unit}s): {', '.join(times)}"]


def _disk(project: Project, plan: Plan) -> list[str]:
    disk, few = plan.disk, Amount(0, 0)
    rows = {name: disk.left.get(stage, few) for stage, name in _LEFT.items()}
    others = [amount for stage, amount in disk.left.items() if stage not in _LEFT]
    rows["others"] = Amount(*map(sum, zip(*others, strict=True))) if others else few
    lines = [f"Disk: about {gigabytes(disk.total.bytes)} in {disk.total.files:,} files"]
    lines += [_room(name, amount) for name, amount in rows.items() if amount.files]
    free = free_bytes(Layout(project).assets)
    short = "" if disk.to_write.bytes <= free else ": TOO LITTLE"
    lines.append(f"{_room('still to be written', disk.to_write)}   free: {gigabytes(free)}{short}")
    if aside := set_aside_bytes(Layout(project)):
        lines.append(
            f"  trainings set aside       {gigabytes(aside):>10}   not counted above; "
            f"possam runs list --scale {project.name}"
        )
    here = sum(one.state == "here" for one in plan.held)
    on_disk = sum(one.state == "on disk" for one in plan.held)
    lines.append(
        f"  of {len(plan.held)} upstream files {here} are here, {on_disk} in data roots; "
        f"possam download --list --scale {project.name} names them"
    )
    return lines


def _room(name: str, amount: Amount) -> str:
    size = gigabytes(amount.bytes) if amount.bytes else "-"
    return f"  {name:<26}{size:>10}{amount.files:>11,} files"


def _notes(project: Project, plan: Plan) -> list[str]:
    path = project.folder / "plan.yaml"
    lines = [f"Rates: {plan.hardware.source} ({path})"]
    for kind, rates in plan.measured.items():
        if rates:
            text = ", ".join(f"{key} {rate:.2f}" for key, rate in sorted(rates.items()))
            lines.append(
                f"Rates of {kind} measured at this scale (images/s of one process, in place of the "
                f"estimates): {text}"
            )
    by_hand = [one.name for one in plan.held if one.state == "by hand"]
    if by_hand:
        lines.append(f"To be fetched by hand (registration): {', '.join(by_hand)}")
    lines.append(
        "A file that exists counts as done; snakemake -n says whether it is up to date. Waiting "
        "in a queue is not counted."
    )
    return lines
