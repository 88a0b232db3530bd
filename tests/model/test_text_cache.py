"""Text embeddings on disk: the same numbers, made once, never another content's."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from possam.model.encoders.text import TextEmbeddings, embed_vocabulary
from possam.runtime.errors import InputError
from possam.stages.models import embed_cached
from tests.support.model_fakes import FakeClip

VOCABULARY = [("cat", "kitten"), ("sky",)]
ENCODER = {"weights": "aa", "device": "cpu"}
TEMPLATES = ("a photo of a {}", "a {}")


class CountingClip(FakeClip):
    """Counts the sentences that it embeds."""

    def __init__(self) -> None:
        super().__init__()
        self.sentences: list[str] = []

    def encode_text(self, texts: list[str]) -> Tensor:
        self.sentences += texts
        return super().encode_text(texts)


def embed(clip: CountingClip, folder: Path, **changes: Any) -> TextEmbeddings:
    arguments: dict[str, Any] = {"vocabulary": VOCABULARY, "templates": TEMPLATES} | changes
    vocabulary: Sequence[tuple[str, ...]] = arguments.pop("vocabulary")
    return embed_cached(clip, vocabulary, **{"encoder": ENCODER, "folder": folder, **arguments})


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.exists() else []


def test_what_was_embedded_is_read_and_is_the_same(tmp_path: Path) -> None:
    clip = CountingClip()
    plain = embed_vocabulary(FakeClip(), VOCABULARY, templates=TEMPLATES)
    first = embed(clip, tmp_path / "text")
    assert len(clip.sentences) == 6 and len(files(tmp_path / "text")) == 1
    again = embed(clip, tmp_path / "text")
    assert len(clip.sentences) == 6
    for text in (first, again):
        assert torch.equal(text.names, plain.names) and text.names.dtype == torch.float32
        assert text.class_index.tolist() == [0, 0, 1] and text.num_classes == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"vocabulary": [("cat", "kitten"), ("skies",)]},
        {"vocabulary": [("cat",), ("kitten", "sky")]},
        {"vocabulary": [("kitten", "cat"), ("sky",)]},
        {"templates": ("a {}", "a photo of a {}")},
        {"encoder": {"weights": "bb", "device": "cpu"}},
        {"encoder": {"weights": "aa", "device": "cuda"}},
    ],
)
def test_other_content_is_another_file(tmp_path: Path, changes: dict[str, Any]) -> None:
    clip = CountingClip()
    embed(clip, tmp_path)
    before = len(clip.sentences)
    changed = embed(clip, tmp_path, **changes)
    assert len(clip.sentences) == 2 * before and len(files(tmp_path)) == 2
    vocabulary = changes.get("vocabulary", VOCABULARY)
    plain = embed_vocabulary(FakeClip(), vocabulary, templates=changes.get("templates", TEMPLATES))
    assert torch.equal(changed.names, plain.names)
    assert torch.equal(changed.class_index, plain.class_index)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "foreign"])
def test_a_damaged_file_is_named_and_kept(tmp_path: Path, damage: str) -> None:
    embed(CountingClip(), tmp_path)
    (path,) = files(tmp_path)
    content = path.read_bytes()
    flipped = content[:-1] + bytes([content[-1] ^ 1])
    damaged = {
        "truncated": content[:-5],
        "flipped": flipped,
        "empty": b"",
        "foreign": b"not safetensors",
    }[damage]
    path.write_bytes(damaged)
    clip = CountingClip()
    with pytest.raises(InputError, match=f"{path.name}.*delete it"):
        embed(clip, tmp_path)
    assert not clip.sentences and path.read_bytes() == damaged


def test_what_is_refused_leaves_nothing(tmp_path: Path) -> None:
    for changes in ({"vocabulary": [("cat",), ()]}, {"templates": ("no place",)}):
        with pytest.raises(InputError):
            embed(CountingClip(), tmp_path / "text", **changes)
    assert not files(tmp_path / "text")
