"""Stage ``score``: predictions of any system against a converted data set, without a model."""

from pathlib import Path

from possam.params import Project
from possam.table_params import METRICS


def score_predictions(
    project: Project,
    dataset: Path,
    predictions: Path,
    *,
    segmentations: Path | None,
    out: Path | None,
    category_ids: str,
) -> None:
    """Print PQ and mIoU of ``predictions`` (COCO panoptic JSON; of label PNGs mIoU alone).

    The bootstrap's settings are those of ``project``'s scale.
    """
    from possam.datasets.format import ConvertedDataset
    from possam.evaluation.score import score

    result = score(
        dataset=ConvertedDataset.open(dataset),
        predictions=predictions,
        segmentations=segmentations,
        category_ids=category_ids,
        evaluation=project.scale.evaluation,
        out=out,
    )
    intervals = result.get("intervals", {})
    for name, value in result["metrics"].items():
        if value is None:
            continue
        line = f"{METRICS.get(name, name)}: {value:.4f}"
        if interval := intervals.get(name):
            line += f"  [{interval[0]:.2f}, {interval[1]:.2f}]"
        print(line)
