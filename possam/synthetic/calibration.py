"""The figures by which the mini world is calibrated, measured on the towers.

Their scenes are of a seed that neither a training, nor a quality figure, nor a table uses.
"""

from pathlib import Path

from possam.model.encoders.clip import load_clip
from possam.model.encoders.sam import load_sam
from possam.synthetic.fitting import one_thread, render_scene_set
from possam.synthetic.pretrain_clip import CONFIG_NAME, WEIGHTS_NAME
from possam.synthetic.pretrain_sam import VARIANTS, weights_name
from possam.synthetic.towers import class_scores, region_embeddings, sam_click_iou
from possam.synthetic.vocabulary import CLASSES, domain_classes, domain_names

CALIBRATION_SEED = 1_009


def clip_figures(towers: Path, *, scenes: int) -> dict[str, float]:
    """Share of segments of domain B that CLIP names right, pooled in ground-truth masks.

    Returns ``clip_domain_b`` (the classes of B compete) and ``clip_large_vocabulary`` (all do).
    """
    clip = load_clip(config=towers / CONFIG_NAME, checkpoint=towers / WEIGHTS_NAME)
    data = render_scene_set(scenes, domain="b", split="val", seed=CALIBRATION_SEED)
    embeddings, classes = region_embeddings(clip, data)
    figures = {}
    for name, vocabulary in (
        ("clip_domain_b", domain_classes("b")),
        ("clip_large_vocabulary", CLASSES),
    ):
        names = [domain_names("b", each) for each in vocabulary]
        best = class_scores(clip, embeddings, names).argmax(1).tolist()
        guesses = [vocabulary[k].index for k in best]
        right = [a == b for a, b in zip(guesses, classes.tolist(), strict=True)]
        figures[name] = sum(right) / len(right)
    return figures


def sam_figures(towers: Path, *, scenes: int) -> dict[str, float]:
    """One inner click on each segment of domain B, by each SAM.

    Returns ``sam_h_click`` (mean IoU of the masks that the largest SAM's head chooses),
    ``sam_b_below_l`` and ``sam_l_below_h`` (what the next larger SAM adds), and ``click_ambiguity``
    (what the best of the three masks adds for the largest).
    """
    clicks = [
        sam_click_iou(
            load_sam(towers / weights_name(variant), architecture=variant),
            domain="b", scenes=scenes, seed=CALIBRATION_SEED,
        )
        for variant in VARIANTS
    ]  # fmt: skip
    small, middle, large = (each["chosen"] for each in clicks)
    return {
        "sam_h_click": large,
        "sam_b_below_l": middle - small,
        "sam_l_below_h": large - middle,
        "click_ambiguity": clicks[-1]["oracle"] - large,
    }


def tower_figures(
    towers: Path, *, clip_scenes: int = 250, sam_scenes: int = 60
) -> dict[str, float]:
    """All figures of :func:`clip_figures` and :func:`sam_figures`, on one thread."""
    with one_thread():
        return clip_figures(towers, scenes=clip_scenes) | sam_figures(towers, scenes=sam_scenes)
