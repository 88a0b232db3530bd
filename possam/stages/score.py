"""Stage ``score``: predictions of any system against a converted data set, without a model."""

from pathlib import Path

from possam.params import METRICS, EvaluationParams


def score_predictions(
    dataset: Path,
    predictions: Path,
    *,
    segmentations: Path | None,
    out: Path | None,
    category_ids: str,
) -> None:
    """Print PQ and mIoU of ``predictions`` (COCO panoptic JSON; of label PNGs mIoU alone)."""
    from possam.datasets.format import ConvertedDataset
    from possam.evaluation.score import score

    result = score(
        dataset=ConvertedDataset.open(dataset),
        predictions=predictions,
        segmentations=segmentations,
        category_ids=category_ids,
        evaluation=EvaluationParams(
            bootstrap_samples=1000,
            bootstrap_seed=0,
            confidence=0.95,
            check_panopticapi=False,
            batch_size=1,
        ),
        out=out,
    )
    intervals = result.get("intervals", {})
    for name, value in result["metrics"].items():
        line = f"{METRICS.get(name, name)}: {value:.4f}" if value is not None else ""
        low, high = intervals.get(name) or (None, None)
        if line and low is not None:
            line += f"  [{low:.2f}, {high:.2f}]"
        if line:
            print(line)
