"""Results of pictures that no model has seen: what the writers get."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from possam.datasets.label_runs import segment_table
from possam.pictures.result import Box, PictureClass, Result, Segment

CLASSES = (
    PictureClass("dog", ("puppy",), True),
    PictureClass("grass", (), False),
    PictureClass("made of paper, cardboard", ("a\\b",), True),
    PictureClass("Straßenbahn 路面電車 ترام", (), True),
)


def make_result(
    ids: np.ndarray,
    *,
    path: Path | None = None,
    classes: Sequence[PictureClass] = CLASSES,
    class_of: dict[int, int] | None = None,
    image: np.ndarray | None = None,
) -> Result:
    """A result with the map ``ids`` (H, W); segment n is of class n - 1, in turns.

    With a ``path``, the picture is written there unless it exists.
    """
    ids = np.asarray(ids, np.int32)
    if image is None:
        image = np.random.default_rng(0).integers(0, 256, (*ids.shape, 3)).astype(np.uint8)
    if path is not None and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    segments = []
    for key, area, box in segment_table(ids):
        index = (key - 1) % len(classes) if class_of is None else class_of[key]
        vector = np.zeros(8, np.float32)
        vector[key % 8] = 1
        segments.append(
            Segment(
                id=key,
                class_index=index,
                name=classes[index].name,
                score=round(1 / (1 + key), 6),
                seen=bool(index % 2),
                is_thing=classes[index].is_thing,
                box=Box(*box),
                area=area,
                embedding=vector,
                clip_embedding=vector[::-1].copy(),
                alternatives=(),
                id_map=ids,
            )
        )
    return Result(
        image=image, path=path, id_map=ids, classes=tuple(classes), segments=tuple(segments),
        rejected=(),
    )  # fmt: skip


def hard_ids() -> np.ndarray:
    """24 x 30: a dog of one pixel, grass with a hole that holds another dog, a thing of two parts.

    1 (dog): one pixel; 2 (grass); 3 (paper): a ring around 2; 4 (tram): two parts, one of them one
    pixel wide; 5 (dog): inside the ring's hole.
    """
    ids = np.zeros((24, 30), np.int32)
    ids[0, 29] = 1
    ids[14:, :20] = 2
    ids[2:12, 3:15] = 3
    ids[4:10, 5:12] = 0
    ids[5:7, 6:9] = 5
    ids[1:5, 20:25] = 4
    ids[20, 22:29] = 4
    return ids
