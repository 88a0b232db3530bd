"""Stage ``calibrate``: the mini world's figures beside those of the real world."""

from pathlib import Path

from possam.datasets.class_names import seen_classes
from possam.datasets.format import ConvertedDataset
from possam.evaluation.evaluate import evaluate_run
from possam.evaluation.options import GROUND_TRUTH_MASKS, ORACLE_LABELS
from possam.params.calibration import calibration_targets
from possam.params.layout import Layout
from possam.params.project import Project
from possam.runtime.files import sha256_file, write_json
from possam.stages.common import finished_run, set_up_process
from possam.stages.models import embed_names, load_segmenter

BASELINE = "fcclip_coco"
VARIANT = "geometric"
CALIBRATION_NAME = "calibration.json"


def calibrate(project: Project, *, towers: Path) -> None:
    """Measure what ``params/calibration.yaml`` asks for, print it and write it among its results.

    ``project``: the scale whose FC-CLIP baseline counts; it must be trained there.

    Raises:
        InputError: the baseline, a data set or a tower is missing.
    """
    from possam.synthetic.calibration import tower_figures
    from possam.synthetic.towers import tower_files

    set_up_process(project)
    targets = calibration_targets(project.folder)
    figures = baseline_figures(project) | tower_figures(towers)
    rounded = {name: round(figures[name], 4) for name in targets}
    record = {
        "towers": {name: sha256_file(towers / name) for name in tower_files()},
        "scale": project.name,
        "figures": rounded,
    }
    write_json(Layout(project).results / CALIBRATION_NAME, record)
    print(f"{'figure':<22} {'measured':>9}  {'target':<16} met")
    for name, target in targets.items():
        met = "yes" if target.holds(rounded[name]) else "NO"
        print(f"{name:<22} {rounded[name]:>9.3f}  {target.low:g} to {target.high:<8g} {met}")


def baseline_figures(project: Project) -> dict[str, float]:
    """PQ of FC-CLIP on A and B, and mIoU on B that true labels and true masks add (in percent).

    The evaluations lie in ``calibration/`` among the scale's results.
    """
    layout, run = Layout(project), project.run(BASELINE, seed=None)
    finished_run(layout, BASELINE, run.seed)
    segmenter = load_segmenter(
        layout, run.sam, layout.run(BASELINE, run.seed) / "weights.safetensors"
    )
    training_set = ConvertedDataset.open(layout.dataset(run.train, "train"))
    found = {}
    for benchmark in ("coco", "ade20k"):
        test = project.benchmark(benchmark)
        dataset = ConvertedDataset.open(layout.dataset(test.dataset, test.split))
        names = dataset.vocabulary
        identity = {"run": BASELINE, "seed": run.seed, "benchmark": benchmark}
        found[benchmark] = evaluate_run(
            segmenter=segmenter,
            dataset=dataset,
            text=embed_names(layout, segmenter.clip, names, templates=project.scale.templates),
            seen=seen_classes(names, training_set.vocabulary),
            variants={VARIANT: project.variants[VARIANT]},
            evaluation=project.scale.evaluation,
            metrics=("panoptic", "semantic"),
            out=layout.results / "calibration" / benchmark,
            identity=identity | {"condition": "trained"},
            budget=VARIANT,
        )["variants"]
    closed, opened = (found[name][VARIANT]["metrics"]["pq"] for name in ("coco", "ade20k"))
    own = found["ade20k"][VARIANT]["metrics"]["miou"]
    gains = {
        probe: found["ade20k"][probe]["metrics"]["miou"] - own
        for probe in (ORACLE_LABELS, GROUND_TRUTH_MASKS)
    }
    return {"closed_set_pq": closed, "open_over_closed": opened / closed, **gains}
