"""Text embeddings of vocabularies on disk, so that names are embedded once per encoder.

They lie under the hash of what they are made from: encoder, names, templates. A file holds one
vocabulary: ``names``, (N, E) float32. Files are never changed, only added.
"""

import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import load_file, save_file
from torch import Tensor

from possam.model.encoders.text import TextEmbeddings, TextEncoder, embed_vocabulary, of_names
from possam.runtime.errors import InputError
from possam.runtime.files import atomic_path, hash_json
from possam.runtime.progress import Progress
from possam.runtime.reading import check_readable

_TEXT_FORMAT = "possam-text-1"


def embed_cached(
    clip: TextEncoder,
    vocabulary: Sequence[Sequence[str]],
    *,
    templates: Sequence[str],
    encoder: Mapping[str, Any],
    folder: Path,
) -> TextEmbeddings:
    """Call ``embed_vocabulary``, or read what an earlier call has left in ``folder``.

    The embeddings are on the CPU, and the same numbers whether computed or read.

    Args:
        encoder: what ``clip``'s embeddings depend on besides the sentences, as JSON.
        folder: of the files; made if missing, left alone if it may not be written.

    Raises:
        InputError: a damaged file, or input that ``embed_vocabulary`` refuses.
    """
    content = {
        "format": _TEXT_FORMAT,
        "encoder": dict(encoder),
        "vocabulary": [list(synonyms) for synonyms in vocabulary],
        "templates": list(templates),
    }
    path = folder / f"{hash_json(content)}.safetensors"
    count = sum(map(len, vocabulary))
    if path.is_file():
        return of_names(_read(path, count), vocabulary)
    sentences, label = count * len(templates), f"embed {count} names of classes"
    with Progress(sentences, label=label, unit="sentences") as progress:
        text = embed_vocabulary(clip, vocabulary, templates=templates, report=progress.update)
    names = text.names.cpu().contiguous()
    existing = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if os.access(existing, os.W_OK):
        with atomic_path(path) as temporary:
            save_file({"names": names}, temporary, metadata={"sha256": _digest(names)})
    else:
        reason = f"{folder}: may not be written: the next call embeds these names again"
        print(reason, file=sys.stderr, flush=True)
    return of_names(names, vocabulary)


def _read(path: Path, count: int) -> Tensor:
    """The embeddings of ``count`` names in a file."""
    check_readable(path)
    try:
        names = load_file(path)["names"]
        with safetensors.safe_open(path, framework="pt") as file:
            digest = (file.metadata() or {}).get("sha256")
    except (OSError, KeyError, ValueError, safetensors.SafetensorError) as error:
        raise InputError(f"{path}: damaged ({error}); delete it and run again") from error
    if names.dim() != 2 or len(names) != count or _digest(names) != digest:
        raise InputError(f"{path}: damaged (not what was written); delete it and run again")
    return names


def _digest(names: Tensor) -> str:
    return hashlib.sha256(names.numpy().tobytes()).hexdigest()
