"""The synthetic CLIP's small byte-pair vocabulary, in the format of open_clip's tokenizer."""

import gzip
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from possam.runtime.files import atomic_write

_HEADER = "#version: 0.2 - synthetic"
_BYTE_TOKENS = 512
_SPECIAL_TOKENS = 2


def _apply(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """Byte-pair encode ``word``: merge the pair of lowest rank until none is left."""
    parts = [*word[:-1], word[-1] + "</w>"]
    while len(parts) > 1:
        pairs = [(ranks.get(pair, len(ranks)), pair) for pair in pairwise(parts)]
        rank, best = min(pairs)
        if rank == len(ranks):
            break
        merged: list[str] = []
        for part in parts:
            if merged and (merged[-1], part) == best:
                merged[-1] += part
            else:
                merged.append(part)
        parts = merged
    return parts


def build_merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Merges after which each of ``words`` (lower-case ASCII letters) is a single token.

    Words are added in turn: what the merges so far leave of a word is joined from the left by new
    merges. A later merge has a higher rank, so it never disturbs the words before it.
    """
    ranks: dict[tuple[str, str], int] = {}
    for word in words:
        while len(parts := _apply(word, ranks)) > 1:
            ranks[(parts[0], parts[1])] = len(ranks)
    return list(ranks)


def write_bpe(path: Path, words: Iterable[str]) -> int:
    """Write the gzip merges file (same words, same bytes); returns the vocabulary size."""
    merges = build_merges(words)
    text = "\n".join([_HEADER, *(f"{a} {b}" for a, b in merges)])
    with atomic_write(path, "wb") as stream:
        stream.write(gzip.compress(text.encode(), mtime=0))
    return _BYTE_TOKENS + len(merges) + _SPECIAL_TOKENS
