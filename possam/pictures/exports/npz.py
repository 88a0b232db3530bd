"""The embeddings of segments as NumPy arrays, to search and to cluster."""

from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from possam.pictures.exports.writer import Result, Writer, shapes, with_ending
from possam.runtime.files import atomic_write


class EmbeddingsWriter(Writer):
    """A folder with one ``.npz`` per picture: see :func:`save_embeddings`."""

    def add_picture(self, result: Result, name: PurePosixPath) -> None:
        save_embeddings(result, with_ending(self.out, name, ".npz"))


def save_embeddings(result: Result, file: Path | str) -> None:
    """Write the segments of one picture, one row each; ``np.load`` reads it without pickle.

    Arrays of N segments: ``segment_id``, ``class_index`` (int32), ``name`` (text), ``is_thing``
    (bool), ``score`` (float32), ``area`` (int64), ``box`` (N, 4; x, y, width, height in pixels),
    ``clip_embedding`` and, where the model has it, ``embedding`` (N, E; float32, unit norm). Also
    ``picture``: the picture's path, or an empty text.
    """
    found, segments = shapes(result), result.segments
    arrays: dict[str, Any] = {
        "picture": np.array(str(result.path or "")),
        "segment_id": np.array([each.id for each in segments], np.int32),
        "class_index": np.array([each.class_index for each in segments], np.int32),
        "name": np.array([each.name for each in segments], np.str_),
        "is_thing": np.array([each.is_thing for each in segments], np.bool_),
        "score": np.array([each.score for each in segments], np.float32),
        "area": np.array([found[each.id][0] for each in segments], np.int64),
        "box": np.array([found[each.id][1] for each in segments], np.int64).reshape(-1, 4),
        "clip_embedding": _rows([each.clip_embedding for each in segments]),
    }
    own = [each.embedding for each in segments]
    if all(each is not None for each in own):
        arrays["embedding"] = _rows(own)
    with atomic_write(Path(file), "wb") as stream:
        np.savez_compressed(stream, **arrays)


def _rows(vectors: list[Any]) -> Any:
    return np.stack(vectors).astype(np.float32) if vectors else np.zeros((0, 0), np.float32)
