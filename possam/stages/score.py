"""Stage ``score``: predictions of any system against a converted data set, without a model."""

import sys
from pathlib import Path

from possam.evaluation.metrics import METRICS
from possam.params.project import Project
from possam.runtime.errors import InputError
from possam.runtime.provenance import usable_cores


def score_predictions(
    project: Project,
    dataset: Path,
    predictions: Path,
    *,
    segmentations: Path | None,
    subset: bool,
    out: Path | None,
    category_ids: str,
    workers: int | None,
) -> None:
    """Print what ``predictions`` give: PQ and mIoU, only mAP (instances), only mIoU (label PNGs).

    The bootstrap's settings are those of ``project``'s scale.

    Args:
        subset: only the images that have a prediction; how many is printed.
        workers: processes; None: one for each core. The result does not depend on it.

    Raises:
        InputError: predictions that cannot be scored, or fewer than one worker.
    """
    from possam.datasets.format import ConvertedDataset
    from possam.evaluation.score import NOTES, score

    if workers is not None and workers < 1:
        raise InputError(f"--workers: {workers}: at least 1 is needed")
    result = score(
        dataset=ConvertedDataset.open(dataset),
        predictions=predictions,
        segmentations=segmentations,
        subset=subset,
        category_ids=category_ids,
        evaluation=project.scale.evaluation,
        out=out,
        workers=usable_cores() if workers is None else workers,
    )
    for note in result["protocol"].get(NOTES, []):
        print(f"possam score: WARNING: {note}", file=sys.stderr)
    if part := result["protocol"].get("subset"):
        print(f"possam score: {part}")
    for name, value in result["metrics"].items():
        if value is not None:
            interval = result["intervals"].get(name)
            bounds = f"  [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else ""
            print(f"{METRICS[name]}: {value:.4f}{bounds}")
