"""The metrics: their printed names and decimals. No number depends on this module."""

EFFICIENCY = "efficiency"
"""Metrics measured with a clock depend on the machine, and have benchmarks of their own."""

METRICS_OF: dict[str, dict[str, str]] = {
    "panoptic": {
        "pq": "PQ",
        "sq": "SQ",
        "rq": "RQ",
        "pq_things": "PQ_th",
        "pq_stuff": "PQ_st",
        "pq_seen": "PQ_seen",
        "pq_unseen": "PQ_unseen",
        "pq_class_agnostic": "class-agnostic PQ",
    },
    "instance": {"map": "mAP"},
    "semantic": {
        "miou": "mIoU (classes in the ground truth)",
        "miou_union": "mIoU (classes in ground truth or prediction)",
    },
    EFFICIENCY: {
        "fps": "images per second",
        "trainable_m": "trainable parameters (millions)",
        "frozen_m": "frozen parameters (millions)",
        "total_m": "all parameters (millions)",
    },
}
"""Printed names of the metrics, by what a benchmark measures
(:data:`possam.evaluation.options.Measured`). All except efficiency's are in percent."""

METRICS: dict[str, str] = {k: v for group in METRICS_OF.values() for k, v in group.items()}
"""Printed name of every metric that a table column can show."""

PER_IMAGE = frozenset(METRICS) - METRICS_OF[EFFICIENCY].keys()
"""Metrics that are counted per image, so that images can be resampled."""

DECIMALS = {metric: 2 if metric == "fps" else 1 for metric in METRICS}
"""Decimals in print: one, as in the paper, except for the speed."""
