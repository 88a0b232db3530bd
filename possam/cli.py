"""The ``possam`` command: one subcommand per stage. Only arguments are handled here.

Exit codes: :mod:`possam.runtime.commands`. Each command imports what it needs when it is called.
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Argument, Option

from possam import data_commands
from possam.arguments import (
    AcceptCode,
    AnyScale,
    Dataset,
    Device,
    Launcher,
    LocalDevice,
    Processes,
    Runs,
    Scale,
    Seed,
    Table,
    Workers,
    load_project,
    names,
    only_locally,
)
from possam.datasets.catalogue import Split
from possam.picture_commands import register
from possam.runtime.commands import application, command
from possam.runtime.errors import InputError
from possam.runtime.secrets import guard_output

app = application("PosSAM (arXiv 2403.09620): the experiment pipeline, one command per stage.")
pipeline, look, your_data, cluster, project_wide = (
    partial(command, app, panel)
    for panel in ("Pipeline stages", "Look and compare", "Your own data", "Cluster", "Project")
)


@pipeline("possam world --scale mini --workers 2")
def world(scale: Scale, workers: Workers = 1) -> None:
    """Write the synthetic world's archives in the upstream layouts."""
    from possam.stages.world import make_world

    make_world(load_project(scale), workers=workers)


@pipeline("possam download --list --scale paper")
def download(
    scale: Scale,
    assets: Annotated[list[str] | None, Argument(autocompletion=names("assets"))] = None,
    only_list: Annotated[bool, Option("--list", help="Only list them, with their terms.")] = False,
) -> None:
    """Download assets (default: all of the scale) or link to yours; verify and unpack them."""
    from possam.stages.download import download_assets

    download_assets(load_project(scale), assets or [], list_only=only_list)


@pipeline("possam convert coco val --scale mini")
def convert(dataset: Dataset, split: Split, scale: Scale, workers: Workers = 1) -> None:
    """Convert one split of a data set to the common format."""
    from possam.stages.convert import convert_dataset

    convert_dataset(load_project(scale), dataset, split, workers=workers)


@pipeline("possam features clip coco train --scale mini")
def features(tower: str, dataset: Dataset, split: Split, scale: Scale) -> None:
    """Cache one frozen tower's features (clip, or a SAM size) of one split of a data set."""
    from possam.stages.features import cache_tower_features

    cache_tower_features(load_project(scale), tower, dataset, split)


@pipeline("possam train possam_b_coco --scale mini --seed 0")
def train(
    run: Runs,
    scale: Scale,
    seed: Seed = None,
    device: LocalDevice = None,
    processes: Processes = 1,
    launcher: Launcher = "local",
    beside: Annotated[str, Option(help="slurm: runs that may share the job, not waited for.")] = "",
    accept_code: AcceptCode = False,
) -> int:
    """Train runs of params/runs.yaml, several behind one pass of the towers; killed ones resume."""
    shared: dict[str, Any] = {"seed": seed, "accept_code": accept_code}
    if launcher == "slurm":
        from possam.launch.driver import train_on_slurm

        only_locally(device, processes)
        train_on_slurm(scale, run, beside=beside.split(), **shared)
    elif beside:
        raise InputError("--beside: only with --launcher slurm; else name all runs")
    elif processes != 1:
        from possam.launch.local_processes import train_in_processes

        return train_in_processes(scale, run, device=device, count=processes, **shared)
    else:
        from possam.launch.local_training import train_here

        train_here(load_project(scale), run, device=device or "cpu", **shared)
    return 0


@pipeline("possam evaluate possam_b_coco ade20k --scale mini")
def evaluate(
    run: Annotated[str, Argument(help="Of params/runs, external or training_free.yaml.")],
    benchmark: Annotated[str, Argument(autocompletion=names("benchmarks"))],
    scale: Scale,
    seed: Seed = None,
    condition: Annotated[str, Option(help="trained, untrained or shuffled_names.")] = "trained",
    device: Device = "cpu",
    workers: Annotated[int | None, Option(help="Only for external systems (default: 1).")] = None,
) -> None:
    """Evaluate a run, an external or a training-free system on one benchmark."""
    from possam.stages.evaluations import evaluate_system

    given: dict[str, Any] = {"seed": seed, "condition": condition, "workers": workers}
    evaluate_system(load_project(scale), run, benchmark, device=device, **given)


@pipeline("possam table table1 --scale mini")
def table(table: Table, scale: Scale) -> None:
    """Write one table of params/tables.yaml: CSV, Markdown, TeX and its card."""
    from possam.stages.table import make_table

    make_table(load_project(scale), table)


@pipeline("possam figure qualitative --scale mini")
def figure(figure: str, scale: Scale, device: Device = "cpu") -> None:
    """Draw one figure of params/figures.yaml: PNG, PDF and its card."""
    from possam.stages.figure import make_figure

    make_figure(load_project(scale), figure, device=device)


@pipeline("possam report --scale mini")
def report(scale: Scale) -> None:
    """Put every table and figure on one HTML page."""
    from possam.stages.report import make_report

    make_report(load_project(scale))


@pipeline("possam track table1 --follow")
def track(
    table: Table,
    scale: Scale,
    follow: Annotated[bool, Option("--follow", help="Repeat until no training runs.")] = False,
) -> None:
    """Send the scale's runs, evaluations, tables and figures to MLflow."""
    from possam.stages.track import follow_runs, track

    if follow:
        follow_runs(load_project(scale))
    else:
        track(load_project(scale), table)


@pipeline("possam pretrain --out data/towers")
def pretrain(out: Path = Path("data/towers"), seed: int = 0, start: Path | None = None) -> None:
    """Train the small synthetic towers from scratch, or go on from those in START."""
    from possam.stages.pretrain import pretrain

    pretrain(out=out, seed=seed, start=start)


@pipeline("possam calibrate --scale calibration")
def calibrate(scale: Scale, towers: Path = Path("data/towers")) -> None:
    """Print the synthetic world's figures beside the real world's that it aims at."""
    from possam.stages.calibrate import calibrate

    calibrate(load_project(scale), towers=towers)


@look("possam show table1")
def show(table: Table, scale: Scale) -> None:
    """Print a finished table."""
    from possam.stages.table import show_table

    show_table(load_project(scale), table)


@look("possam compare table1 --out difference.md")
def compare(
    table: Table,
    scale: Scale,
    before: Annotated[Path | None, Argument(help="Root of another checkout.")] = None,
    out: Annotated[Path | None, Option(help="Also write it to this Markdown file.")] = None,
) -> None:
    """Print whether your own trainings agree with the kept study, or with another checkout's."""
    from possam.stages.table import print_comparison

    print_comparison(load_project(scale), table, before, out=out)


@look("possam ui --port 5000")
def ui(host: str = "127.0.0.1", port: int = 5000) -> None:
    """Open MLflow's pages over the tracked runs."""
    from possam.stages.track import serve

    serve(host=host, port=port)


@look("possam efficiency --parameters --scale paper")
def efficiency(
    parameters: Annotated[bool, Option("--parameters", help="Count them (required).")],
    scale: Scale,
) -> None:
    """Count trainable, frozen and all parameters for every SAM size, without allocating them."""
    from possam.stages.efficiency import print_parameters

    print_parameters(load_project(scale))


register(your_data)
your_data("possam score out/coco_val predictions.json --out out/score")(data_commands.score)
your_data("possam convert-files coco coco/ --split val2017 --out out/val")(
    data_commands.convert_files
)


@cluster("possam jobs tail possam_b_coco")
def jobs(
    action: Annotated[Literal["list", "tail", "cancel"], Argument()] = "list",
    job: Annotated[str | None, Argument(help="tail, cancel: a run, or a job's number.")] = None,
    scale: AnyScale = None,
    seed: Annotated[int | None, Option(help="Where a run has jobs of several seeds.")] = None,
) -> None:
    """List, follow or cancel the trainings on SLURM."""
    from possam.launch.submitted import show_jobs

    show_jobs(action, job, scale=scale, seed=seed)


@cluster("possam rehearse --scale paper --launcher slurm")
def rehearse(
    scale: Scale,
    device: LocalDevice = None,
    processes: Processes = 1,
    launcher: Launcher = "local",
) -> int:
    """Try everything that a study needs, in minutes: nodes, every run's steps, an evaluation."""
    from possam.launch.rehearsal_job import rehearse

    if launcher == "slurm":
        only_locally(device, processes)
    return rehearse(scale, device=device or "cpu", processes=processes, launcher=launcher)


@project_wide("possam runs list --scale mini")
def runs(
    action: Annotated[Literal["list", "restore", "remove"], Argument()] = "list",
    folders: Annotated[list[Path] | None, Argument(help="restore, remove: as listed.")] = None,
    scale: AnyScale = None,
) -> None:
    """List trainings that were set aside because their identity changed; restore or remove them."""
    from possam.stages.runs import manage_runs

    manage_runs(action, folders or [], scale=scale)


@project_wide("possam check")
def check(scale: AnyScale = None) -> None:
    """Check every file in params/ and print what each scale holds."""
    from possam.stages.check import check

    check(scale)


@project_wide("possam doctor --scale paper")
def doctor(scale: Scale) -> int:
    """Print what this machine lacks for a scale, and the remedy."""
    from possam.stages.doctor import doctor

    return doctor(scale)


@project_wide("possam plan table1 table4 --scale paper --nodes 4")
def plan(
    scale: Scale,
    targets: Annotated[list[str] | None, Argument(help="Tables, figures, runs, report.")] = None,
    nodes: Annotated[int, Option(help="Nodes, for the expected wall time.")] = 1,
) -> None:
    """Print what targets (default: all tables) take: jobs, GPU-hours, wall time, disk space."""
    from possam.stages.plan import print_plan

    print_plan(load_project(scale), targets or [], nodes=nodes)


@project_wide("possam keep --scale mini")
def keep(
    scale: Scale,
    seed: Annotated[int | None, Option(help="Only this seed (default: all of the scale).")] = None,
    anew: Annotated[bool, Option("--anew", help="Drop the seeds that are kept.")] = False,
) -> None:
    """Add a finished study's seeds to the tables and the page that git tracks."""
    from possam.stages.keep import keep

    keep(load_project(scale), seed=seed, anew=anew)


@project_wide("possam store --scale mini")
def store(scale: Scale) -> None:
    """Link finished results into stored/, which is what DVC stores."""
    from possam.pipeline.stored import store

    store(load_project(scale))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``possam`` with ``arguments`` (None: the process's own). Returns the exit code."""
    guard_output()
    try:
        app(args=arguments, prog_name="possam")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
