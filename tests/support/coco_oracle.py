"""pycocotools' verdict on detections, with its default parameters."""

import contextlib
import copy
import io

import numpy as np
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def encode(mask: np.ndarray) -> dict:
    return rle.encode(np.asfortranarray(mask.astype(np.uint8)))


def oracle(
    instances: dict, detections: list[dict], draw: list[int]
) -> tuple[np.ndarray, float, dict[int, float]]:
    """COCOeval with its default parameters on the images ``draw`` (repeats become new images).

    Precision (T,R,K) of the things, AP, and AP of each class with objects.
    """
    by_image: dict[int, list[dict]] = {}
    for annotation in instances["annotations"]:
        by_image.setdefault(annotation["image_id"], []).append(annotation)
    images, truth, found = [], [], []
    for number, place in enumerate(draw):
        image = {**instances["images"][place], "id": number}
        images.append(image)
        for annotation in by_image.get(instances["images"][place]["id"], []):
            copied = copy.deepcopy(annotation)
            truth.append({**copied, "id": len(truth) + 1, "image_id": number})
        d = detections[place]
        for mask, label, score in zip(d["masks"], d["labels"], d["scores"], strict=True):
            found.append(
                {
                    "image_id": number,
                    "category_id": int(label),
                    "segmentation": encode(mask),
                    "score": float(score),
                }
            )
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        categories = instances["categories"]
        coco.dataset = {"images": images, "annotations": truth, "categories": categories}
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(found), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    kinds = [category["id"] for category in categories]
    per_class = {
        kind: float(precision[:, :, place].mean())
        for place, kind in enumerate(kinds)
        if (precision[:, :, place] > -1).any()
    }
    return precision, float(evaluation.stats[0]), per_class
