"""Stage ``calibrate``: the mini world's figures beside those of the real world."""

from pathlib import Path
from typing import Any

import torch

from possam.datasets.class_names import seen_classes
from possam.datasets.format import ConvertedDataset
from possam.params.calibration import calibration_targets
from possam.params.layout import Layout
from possam.params.project import Project
from possam.runtime.errors import InputError
from possam.runtime.files import read_json, sha256_file, write_json
from possam.stages.common import set_up_process
from possam.stages.models import embed_names, load_segmenter

BASELINE = "fcclip_coco"
VARIANT = "geometric"
CALIBRATION_NAME = "calibration.json"


def calibrate(project: Project, *, towers: Path) -> None:
    """Measure what ``params/calibration.yaml`` asks for, print it and write it among its results.

    ``project``: the scale whose FC-CLIP baseline counts; it must be trained and evaluated there.

    Raises:
        InputError: an evaluation of the baseline or a tower is missing.
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


def _evaluation(layout: Layout, benchmark: str, seed: int) -> dict[str, Any]:
    path = layout.evaluation(BASELINE, seed, benchmark, "trained") / "evaluation.json"
    if not path.is_file():
        raise InputError(f"{path}: missing; make it with: snakemake {path}")
    variants: dict[str, Any] = read_json(path)["variants"]
    return variants[VARIANT] if VARIANT in variants else variants["default"]


def baseline_figures(project: Project) -> dict[str, float]:
    """PQ of FC-CLIP on A and B, and mIoU on B that its labels and its masks cost (in percent)."""
    layout, seed = Layout(project), project.scale.seeds[0]
    closed, opened = (
        float(_evaluation(layout, name, seed)["metrics"]["pq"]) for name in ("coco", "ade20k")
    )
    budget = _label_budget(project, layout, seed)
    return {
        "closed_set_pq": closed,
        "open_over_closed": opened / closed,
        "oracle_labels": budget["oracle_labels"] - budget["own"],
        "ground_truth_masks": budget["ground_truth_masks"] - budget["own"],
    }


def _label_budget(project: Project, layout: Layout, seed: int) -> dict[str, float]:
    from possam.evaluation.label_budget import label_budget
    from possam.model.inference import classify

    dataset = ConvertedDataset.open(layout.dataset("ade20k", "val"))
    training_set = ConvertedDataset.open(layout.dataset("coco", "train"))
    segmenter = load_segmenter(layout, None, layout.run(BASELINE, seed) / "weights.safetensors")
    text = embed_names(
        layout, segmenter.clip, dataset.vocabulary, templates=project.scale.templates
    )
    seen = torch.tensor(seen_classes(dataset.vocabulary, training_set.vocabulary))
    inference = project.variants[VARIANT]
    return label_budget(
        segmenter,
        dataset,
        score=lambda raw: classify(
            raw, text, possam=segmenter.possam, clip_logit_scale=segmenter.clip.logit_scale,
            seen=seen, options=inference,
        ),
        inference=inference,
        batch_size=project.scale.evaluation.batch_size,
    )  # fmt: skip
