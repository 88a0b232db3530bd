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
    pascal_context_459_val: Positive

    def images(self, dataset: str, split: str) -> int | None:
        """Number of images that the world makes for a split of a data set; None: it makes none."""
        count: int | None = self.model_dump().get(f"{dataset}_{split}")
        return count
