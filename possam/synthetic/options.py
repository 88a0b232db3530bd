"""Sizes of the procedural world."""

from possam.runtime.options import Count, Options, Positive


class WorldOptions(Options):
    """Sizes of the procedural stand-in for the upstream data sets; ``null`` at paper scale."""

    seed: Count
    coco_train: Positive
    coco_val: Positive
    ade20k_train: Positive
    ade20k_val: Positive
    ade20k_full_val: Positive
    pascal_context_val: Positive
