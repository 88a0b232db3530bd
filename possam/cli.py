"""The ``possam`` command: one subcommand a stage, nothing but argument handling.

Exit codes: 0 done; 1 ``possam doctor`` found a problem, or a job on a cluster failed; 2 bad input
or usage (one message, nothing half-written); 130 interrupted; 141 the reader of the output has
gone.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from possam import __version__
from possam.datasets.catalogue import datasets
from possam.runtime import forkserver
from possam.runtime.environment import Environment
from possam.runtime.errors import InputError, JobFailedError, PossamError

if TYPE_CHECKING:
    from possam.params.project import Project


def _scale(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--scale",
        default=Environment.load().scale,
        help="a file in params/scales (default: $POSSAM_SCALE, else mini)",
    )


def _seed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seed", type=int, default=None, help="one of the scale's seeds (default: its first)"
    )


def _project(arguments: argparse.Namespace) -> "Project":
    from possam.params.project import Project

    return Project(arguments.scale)


def _world(arguments: argparse.Namespace) -> None:
    from possam.stages.world import make_world

    make_world(_project(arguments), workers=arguments.workers)


def _download(arguments: argparse.Namespace) -> None:
    from possam.stages.download import download_assets

    download_assets(_project(arguments), arguments.assets, list_only=arguments.list)


def _plan(arguments: argparse.Namespace) -> None:
    from possam.stages.plan import print_plan

    print_plan(_project(arguments), arguments.targets, nodes=arguments.nodes)


def _doctor(arguments: argparse.Namespace) -> int:
    from possam.stages.doctor import doctor

    return doctor(_project(arguments))


def _convert(arguments: argparse.Namespace) -> None:
    from possam.stages.convert import convert_dataset

    convert_dataset(
        _project(arguments), arguments.dataset, arguments.split, workers=arguments.workers
    )


def _features(arguments: argparse.Namespace) -> None:
    from possam.stages.features import cache_tower_features

    cache_tower_features(_project(arguments), arguments.tower, arguments.dataset, arguments.split)


def _train(arguments: argparse.Namespace) -> None:
    if arguments.launcher == "slurm":
        from possam.launch.driver import train_on_slurm

        if arguments.device is not None:
            raise InputError("--device: with --launcher slurm, params/slurm.yaml says it")
        if arguments.processes != 1:
            raise InputError("--processes: with --launcher slurm, params/slurm.yaml says it")
        train_on_slurm(arguments.scale, arguments.run, seed=arguments.seed)
        return
    if arguments.processes != 1:
        from possam.launch.local_processes import run_processes

        command = [sys.executable, "-m", "possam.cli", "train", arguments.run]
        command += ["--scale", arguments.scale, "--device", arguments.device or "cpu"]
        if arguments.seed is not None:
            command += ["--seed", str(arguments.seed)]
        sys.exit(run_processes(command, count=arguments.processes))

    from possam.stages.train import train

    device = arguments.device or "cpu"
    train(_project(arguments), arguments.run, seed=arguments.seed, device=device)


def _jobs(arguments: argparse.Namespace) -> None:
    from possam.launch.queue import cancel_job, list_jobs, tail_job

    if (arguments.action == "list") != (arguments.job is None):
        raise InputError("jobs: tail and cancel take a run or the number of a job, list takes none")
    if arguments.action == "list":
        list_jobs()
    else:
        act = {"tail": tail_job, "cancel": cancel_job}[arguments.action]
        act(arguments.job, scale=arguments.scale, seed=arguments.seed)


def _evaluate(arguments: argparse.Namespace) -> None:
    from possam.params.tables import TRAINED
    from possam.stages.evaluate import evaluate
    from possam.stages.external import evaluate_external

    project = _project(arguments)
    if arguments.run in project.external:
        if arguments.seed is not None or arguments.condition != TRAINED:
            raise InputError(
                f"--seed, --condition: {arguments.run} is external: its predictions have neither; "
                "leave them out"
            )
        workers = 1 if arguments.workers is None else arguments.workers
        evaluate_external(project, arguments.run, arguments.benchmark, workers=workers)
        return
    if arguments.workers is not None:
        raise InputError(
            f"--workers: {arguments.run} is a run: its images go through the model one batch after "
            "another; only an external system's predictions are scored by workers"
        )
    evaluate(
        project,
        arguments.run,
        arguments.benchmark,
        seed=arguments.seed,
        condition=arguments.condition,
        device=arguments.device,
    )


def _table(arguments: argparse.Namespace) -> None:
    from possam.stages.table import make_table

    make_table(_project(arguments), arguments.table)


def _figure(arguments: argparse.Namespace) -> None:
    from possam.stages.figure import make_figure

    make_figure(_project(arguments), arguments.figure, device=arguments.device)


def _show(arguments: argparse.Namespace) -> None:
    from possam.stages.table import show_table

    show_table(_project(arguments), arguments.table)


def _compare(arguments: argparse.Namespace) -> None:
    from possam.stages.compare import print_comparison

    print_comparison(_project(arguments), arguments.table, arguments.before, out=arguments.out)


def _report(arguments: argparse.Namespace) -> None:
    from possam.stages.report import make_report

    make_report(_project(arguments))


def _keep(arguments: argparse.Namespace) -> None:
    from possam.stages.keep import keep

    keep(_project(arguments))


def _track(arguments: argparse.Namespace) -> None:
    from possam.stages.track import follow_runs, track

    if arguments.follow:
        follow_runs(_project(arguments))
    else:
        track(_project(arguments), arguments.table)


def _ui(arguments: argparse.Namespace) -> None:
    from possam.stages.ui import serve

    serve(host=arguments.host, port=arguments.port)


def _pretrain(arguments: argparse.Namespace) -> None:
    from possam.stages.pretrain import pretrain

    pretrain(out=arguments.out, seed=arguments.seed)


def _score(arguments: argparse.Namespace) -> None:
    from possam.stages.score import score_predictions

    score_predictions(
        _project(arguments),
        arguments.dataset,
        arguments.predictions,
        segmentations=arguments.segmentations,
        out=arguments.out,
        category_ids=arguments.category_ids,
        workers=arguments.workers,
    )


def _convert_files(arguments: argparse.Namespace) -> None:
    from possam.stages.convert import convert_files

    convert_files(
        arguments.layout,
        root=arguments.root,
        split=arguments.split,
        class_names=arguments.class_names,
        class_table=arguments.class_table,
        without_instances=arguments.without_instances,
        out=arguments.out,
        workers=arguments.workers,
    )


def _predict(arguments: argparse.Namespace) -> None:
    from possam.stages.predict import predict

    predict(
        _project(arguments),
        image=arguments.image,
        words=arguments.words,
        stuff=arguments.stuff,
        checkpoint=arguments.checkpoint,
        random_init=arguments.random_init,
        sam=arguments.sam,
        out=arguments.out,
        device=arguments.device,
    )


def _efficiency(arguments: argparse.Namespace) -> None:
    from possam.stages.efficiency import print_parameters

    print_parameters(_project(arguments))


def _check(arguments: argparse.Namespace) -> None:
    from possam.stages.check import check

    check(arguments.scale)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="possam",
        description="PosSAM (arXiv 2403.09620): the stages of the experiment pipeline. "
        "Snakemake calls each of them; every one can also be run alone.",
    )
    parser.add_argument("--version", action="version", version=f"possam {__version__}")
    stages = parser.add_subparsers(title="stages", dest="stage", required=True, metavar="STAGE")

    def stage(
        name: str, run: Callable[[argparse.Namespace], int | None], text: str, *, scale: bool = True
    ) -> argparse.ArgumentParser:
        sub = stages.add_parser(name, help=text, description=text)
        sub.set_defaults(call=run)
        if scale:
            _scale(sub)
        return sub

    sub = stage(
        "check", _check, "check every file in params/ and say what a scale holds", scale=False
    )
    sub.add_argument("--scale", default=None, help="one scale (default: all)")

    sub = stage("world", _world, "write the synthetic world's archives in the upstream layouts")
    sub.add_argument("--workers", type=int, default=1, help="processes (default: 1)")

    sub = stage(
        "download",
        _download,
        "download assets of params/assets.yaml (or link to a user's), verify and unpack them",
    )
    sub.add_argument("assets", nargs="*", metavar="ASSET", help="default: all of the scale")
    sub.add_argument(
        "--list", action="store_true", help="only say what there is, its size and its terms"
    )

    sub = stage("plan", _plan, "say what targets take: jobs, GPU-hours, wall time, disk space")
    sub.add_argument(
        "targets",
        nargs="*",
        metavar="TARGET",
        help="tables, figures, runs, report, or files (default: all tables)",
    )
    sub.add_argument("--nodes", type=int, default=1, help="for the wall time (default: 1)")

    stage("doctor", _doctor, "say what this machine lacks for a scale, and what to do about it")

    sub = stage("convert", _convert, "convert one split of a data set to the common format")
    sub.add_argument("dataset")
    sub.add_argument("split", choices=["train", "val"])
    sub.add_argument("--workers", type=int, default=1, help="processes (default: 1)")

    sub = stage(
        "convert-files",
        _convert_files,
        "convert any folder in the layout of a data set, such as COCO panoptic",
        scale=False,
    )
    layouts = {name: found for name, one in datasets().items() if (found := one.folder)}
    roots = "; ".join(f"{name}: {one.root}" for name, one in layouts.items())
    splits = "; ".join(f"{name}: {', '.join(one.splits)}" for name, one in layouts.items())
    sub.add_argument("layout", choices=list(layouts))
    sub.add_argument("root", type=Path, help=f"the upstream folder ({roots})")
    sub.add_argument("--split", required=True, help=splits)
    sub.add_argument("--class-names", type=Path, required=True, help="file of names with synonyms")
    sub.add_argument(
        "--class-table",
        type=Path,
        default=None,
        help="ade20k: table of thing classes, ade20k_full: of evaluated classes (default: the "
        "one in params/facts)",
    )
    sub.add_argument(
        "--without-instances",
        action="store_true",
        help="ade20k: no annotations_instance at hand; each thing class of an image is one segment",
    )
    sub.add_argument("--out", type=Path, required=True)
    sub.add_argument("--workers", type=int, default=1, help="processes (default: 1)")

    sub = stage("features", _features, "cache one frozen tower's features of one data set")
    sub.add_argument("tower", help="clip, or a SAM size (b, l, h)")
    sub.add_argument("dataset")
    sub.add_argument("split", choices=["train", "val"])

    sub = stage("train", _train, "train one run of params/runs.yaml (resumes where it was killed)")
    sub.add_argument("run")
    _seed(sub)
    sub.add_argument("--device", default=None, help="cpu or cuda (default: cpu)")
    sub.add_argument(
        "--processes",
        type=int,
        default=1,
        help="processes on this machine that train together, with cuda one a GPU (default: 1)",
    )
    sub.add_argument(
        "--launcher",
        choices=["local", "slurm"],
        default="local",
        help="local (default): this process; slurm: a job as params/slurm.yaml says, waited for",
    )

    sub = stage("jobs", _jobs, "list, follow or cancel the trainings on SLURM", scale=False)
    sub.add_argument(
        "action",
        nargs="?",
        choices=["list", "tail", "cancel"],
        default="list",
        help="default: list",
    )
    sub.add_argument("job", nargs="?", help="for tail and cancel: a run, or the number of a job")
    sub.add_argument("--scale", default=None, help="where a run has jobs at several scales")
    sub.add_argument("--seed", type=int, default=None, help="where a run has jobs of several seeds")

    sub = stage("evaluate", _evaluate, "evaluate one run or external system on one benchmark")
    sub.add_argument("run", help="of params/runs.yaml, or a system of params/external.yaml")
    sub.add_argument("benchmark")
    _seed(sub)
    sub.add_argument(
        "--condition",
        default="trained",
        help="trained (default), or a control: untrained, shuffled_names",
    )
    sub.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    sub.add_argument(
        "--workers",
        type=int,
        default=None,
        help="processes that score an external system's predictions (default: 1)",
    )

    sub = stage("score", _score, "score predictions of any system against a converted data set")
    sub.add_argument("dataset", type=Path, help="folder of a converted data set")
    sub.add_argument("predictions", type=Path, help="COCO panoptic JSON, or a folder of label PNGs")
    sub.add_argument(
        "--segmentations",
        type=Path,
        default=None,
        help="folder of the JSON's PNGs (default: beside it, its name without .json)",
    )
    sub.add_argument(
        "--out", type=Path, default=None, help="folder for evaluation.json and the statistics"
    )

    sub.add_argument(
        "--category-ids",
        choices=["contiguous", "upstream"],
        default="contiguous",
        help="numbering of the predictions' categories: the converted data set's, or upstream's",
    )
    sub.add_argument(
        "--workers", type=int, default=None, help="processes (default: one for each core)"
    )

    sub = stage("table", _table, "write one table of params/tables.yaml: CSV, Markdown, TeX, card")
    sub.add_argument("table")

    sub = stage("figure", _figure, "draw one figure of params/figures.yaml: PNG, PDF, card")
    sub.add_argument("figure")
    sub.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")

    sub = stage("show", _show, "print a table that is there")
    sub.add_argument("table")

    sub = stage(
        "compare", _compare, "say what changed in a table since another checkout, with intervals"
    )
    sub.add_argument("table")
    sub.add_argument("before", type=Path, help="root of the other checkout, with its results")
    sub.add_argument("--out", type=Path, default=None, help="also write it to this Markdown file")

    stage("report", _report, "put every table and figure on one HTML page")

    stage("keep", _keep, "copy a finished study's tables and page to where git holds them")

    sub = stage("track", _track, "put runs, evaluations and a table into MLflow")
    sub.add_argument("table")
    sub.add_argument(
        "--follow", action="store_true", help="keep on while trainings run, until Ctrl-C"
    )

    sub = stage("ui", _ui, "open MLflow's pages over the tracked runs", scale=False)
    sub.add_argument("--host", default="127.0.0.1")
    sub.add_argument("--port", type=int, default=5000)

    sub = stage("predict", _predict, "segment a photograph with any words")
    sub.add_argument("image", type=Path)
    sub.add_argument(
        "--words", required=True, help='classes by ";", synonyms by ",": "cat; dog, puppy"'
    )
    sub.add_argument("--stuff", default="", help='those of the words that are stuff: "road; sky"')
    model = sub.add_mutually_exclusive_group(required=True)
    model.add_argument("--checkpoint", type=Path, help="weights.safetensors of a training run")
    model.add_argument(
        "--random-init",
        action="store_true",
        help="random weights, towers included (to try the machinery; needs --sam)",
    )
    sub.add_argument("--sam", default=None, help="with --random-init: SAM size (b, l, h)")
    sub.add_argument(
        "--out", type=Path, required=True, help="folder for panoptic.png, .json, overlay.png"
    )
    sub.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")

    sub = stage("efficiency", _efficiency, "what the models of a scale cost")
    sub.add_argument(
        "--parameters",
        action="store_true",
        required=True,
        help="trainable, frozen and total parameters for every SAM size (nothing is allocated)",
    )

    sub = stage("pretrain", _pretrain, "train the small synthetic towers from nothing", scale=False)
    sub.add_argument("--out", type=Path, default=Path("data/towers"))
    sub.add_argument("--seed", type=int, default=0)
    return parser


def _ask_server(parsed: argparse.Namespace, given: Sequence[str]) -> int | None:
    """Exit code of a job of the pipeline's fork server; None where this process has to do it."""
    server = Environment.load().forkserver
    here = getattr(parsed, "launcher", "local") == "local"
    if server is None or parsed.stage not in forkserver.STAGES or not here:
        return None
    try:
        return forkserver.ask(server, given)
    except OSError as error:
        print(f"possam: no fork server at {server} ({error})", file=sys.stderr)
        return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. Returns the exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    parsed = _parser().parse_args(given)
    try:
        code = _ask_server(parsed, given)
        if code is None:
            code = parsed.call(parsed) or 0
        sys.stdout.flush()
        return code
    except PossamError as error:
        print(f"possam {parsed.stage}: {error}", file=sys.stderr)
        return 1 if isinstance(error, JobFailedError) else 2
    except KeyboardInterrupt:
        print(f"possam {parsed.stage}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read the output has gone (`| head`): the interpreter must not write to it either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


if __name__ == "__main__":
    sys.exit(main())
