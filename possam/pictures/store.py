"""Results on disk, one folder per picture, so that a run that was killed goes on where it was.

``panoptic.png`` (COCO's ids), ``overlay.png``, ``embeddings.npz`` and ``panoptic.json``, which is
written last: a folder that has it is complete.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np

from possam.datasets.pixels import decode_file, decode_ids, encode_ids, write_png
from possam.pictures.photographs import read_photograph
from possam.pictures.result import Box, PictureClass, Result, Segment
from possam.runtime.errors import InputError
from possam.runtime.files import atomic_path, read_json, write_json

PANOPTIC, OVERLAY, EMBEDDINGS, DESCRIPTION = (
    "panoptic.png",
    "overlay.png",
    "embeddings.npz",
    "panoptic.json",
)


def save_result(result: Result, folder: Path, info: dict[str, Any]) -> None:
    """Write a result of a file; ``info``: what it was made from, see :func:`is_done`."""
    write_png(folder / PANOPTIC, encode_ids(result.id_map))
    with atomic_path(folder / OVERLAY) as temporary:
        result.overlay().save(temporary, format="PNG")
    clip = np.array([segment.clip_embedding for segment in result.segments], np.float32)
    own = [segment.embedding for segment in result.segments if segment.embedding is not None]
    packed = io.BytesIO()
    np.savez(packed, clip=clip, ldp=np.array(own, np.float32))
    with atomic_path(folder / EMBEDDINGS) as temporary:
        temporary.write_bytes(packed.getvalue())
    write_json(folder / DESCRIPTION, _describe(result, info))


def _describe(result: Result, info: dict[str, Any]) -> dict[str, Any]:
    height, width = result.id_map.shape
    name = result.path.name if result.path is not None else "picture"
    segments = [
        {
            "id": segment.id,
            "category_id": segment.class_index,
            "name": segment.name,
            "isthing": int(segment.is_thing),
            "seen": segment.seen,
            "score": round(segment.score, 6),
            "area": segment.area,
            "bbox": list(segment.box),
            "iscrowd": 0,
            "alternatives": [[name, round(score, 6)] for name, score in segment.alternatives],
        }
        for segment in result.segments
    ]
    return {
        "info": info | {"rejected": [[name, round(score, 6)] for name, score in result.rejected]},
        "images": [{"id": 1, "file_name": name, "width": width, "height": height}],
        "annotations": [{"image_id": 1, "file_name": PANOPTIC, "segments_info": segments}],
        "categories": [
            {
                "id": index,
                "name": each.name,
                "names": list(each.names),
                "isthing": int(each.is_thing),
            }
            for index, each in enumerate(result.classes)
        ],
    }


def is_done(folder: Path, info: dict[str, Any]) -> bool:
    """Whether ``folder`` holds a complete result that was made from ``info``."""
    path = folder / DESCRIPTION
    if not path.is_file():
        return False
    try:
        found = read_json(path)["info"]
        return all(found[key] == value for key, value in info.items())
    except (InputError, KeyError, TypeError):
        return False  # of another program, or an older version: made anew


def load_result(folder: Path, picture: Path) -> Result:
    """The result that :func:`save_result` wrote; ``picture``: the file that it is of."""
    content = read_json(folder / DESCRIPTION)
    path = folder / PANOPTIC
    id_map = decode_ids(decode_file(path, mode="RGB")[0], path)
    with np.load(folder / EMBEDDINGS) as arrays:
        clip, ldp = arrays["clip"], arrays["ldp"]
    segments = tuple(
        Segment(
            id=one["id"],
            class_index=one["category_id"],
            name=one["name"],
            score=one["score"],
            seen=one["seen"],
            is_thing=bool(one["isthing"]),
            box=Box(*one["bbox"]),
            area=one["area"],
            embedding=ldp[place] if len(ldp) else None,
            clip_embedding=clip[place],
            alternatives=tuple((name, score) for name, score in one["alternatives"]),
            id_map=id_map,
        )
        for place, one in enumerate(content["annotations"][0]["segments_info"])
    )
    classes = tuple(
        PictureClass(one["names"][0], tuple(one["names"][1:]), bool(one["isthing"]))
        for one in content["categories"]
    )
    rejected = tuple((name, score) for name, score in content["info"]["rejected"])
    image = read_photograph(picture)
    return Result(image, picture, id_map, classes, segments, rejected)
