"""Results as the objects of other libraries, without a file between."""

from typing import TYPE_CHECKING

import numpy as np

from possam.pictures.exports.writer import Result, shapes
from possam.runtime.errors import InputError

if TYPE_CHECKING:
    from supervision import Detections


def to_detections(result: Result) -> "Detections":
    """The segments, stuff included, as ``supervision.Detections``, best first.

    ``xyxy`` (N, 4) float32, pixels, right and lower edge outside; ``mask`` (N, H, W) bool;
    ``confidence`` (N,) float32; ``class_id`` (N,): place in the vocabulary. ``data`` holds N each
    of ``class_name``, ``is_thing``, ``segment_id`` and ``clip_embedding`` (N, E).

    Raises:
        InputError: supervision is not installed.
    """
    try:
        from supervision import Detections
    except ImportError as error:
        raise InputError(f"supervision is needed ({error}); pip install supervision") from error
    segments, found = result.segments, shapes(result)
    ids = np.array([each.id for each in segments], np.int32)
    boxes = np.array([found[each.id][1] for each in segments], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    vectors = [each.clip_embedding for each in segments]
    return Detections(
        xyxy=boxes,
        mask=result.id_map == ids[:, None, None],
        confidence=np.array([each.score for each in segments], np.float32),
        class_id=np.array([each.class_index for each in segments], int),
        data={
            "class_name": np.array([each.name for each in segments], np.str_),
            "is_thing": np.array([each.is_thing for each in segments], bool),
            "segment_id": ids,
            "clip_embedding": np.stack(vectors) if vectors else np.zeros((0, 0), np.float32),
        },
    )
