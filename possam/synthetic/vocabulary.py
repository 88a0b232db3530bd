"""Classes, names and domains of the mini world.

A thing is a colour and a shape ("red disc"), a stuff is a material ("grass"). Class indices count
the 64 things (shape by shape), then the 16 materials. Domain A stands in for COCO, domain B for
ADE20K: B repeats twelve things and five materials of A, some under a synonym, and adds six new
combinations of known shapes and colours, six things of two new shapes, and five new materials. The
"web" domain, on which the towers are trained, has a look of its own and holds every class but a few
combinations (domain "held"), which test whether CLIP composes colour and shape.
"""

import gzip
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

from possam.runtime.files import atomic_write

Domain = Literal["a", "b", "web", "held"]

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 38, 38),
    "yellow": (240, 222, 45),
    "green": (45, 175, 60),
    "blue": (45, 70, 215),
    "purple": (135, 50, 175),
    "pink": (245, 135, 190),
    "white": (242, 242, 242),
    "black": (24, 24, 24),
}
SHAPES: tuple[str, ...] = (
    "disc", "square", "triangle", "star", "ring", "cross", "crescent", "bar",
)  # fmt: skip
MATERIALS: tuple[str, ...] = (
    "grass", "sand", "water", "sky", "brick", "wood", "snow", "gravel", "tiles", "carpet",
    "lava", "mud", "marble", "hay", "moss", "concrete",
)  # fmt: skip

SYNONYMS: dict[str, str] = {
    "disc": "circle",
    "square": "block",
    "triangle": "wedge",
    "ring": "hoop",
    "cross": "plus",
    "crescent": "moon",
    "bar": "stick",
    "grass": "lawn",
    "sand": "beach",
    "water": "lake",
    "brick": "bricks",
    "wood": "planks",
    "gravel": "pebbles",
    "carpet": "rug",
    "lava": "magma",
    "mud": "dirt",
    "hay": "straw",
    "concrete": "cement",
}
"""Second name of a shape or material; words that are not here have one name."""

TEMPLATES: tuple[str, ...] = (
    "a photo of a {}.",
    "This is a photo of a {}",
    "There is a {} in the scene",
    "There is the {} in the scene",
    "a photo of a {} in the scene",
    "a photo of a small {}.",
    "a photo of a medium {}.",
    "a photo of a large {}.",
    "This is a photo of a small {}.",
    "This is a photo of a medium {}.",
    "This is a photo of a large {}.",
    "There is a small {} in the scene.",
    "There is a medium {} in the scene.",
    "There is a large {} in the scene.",
    "{}",
    "a {}",
)
"""Caption templates: the fourteen of ViLD (Gu et al. 2022), and the bare name."""

# A thing's colour has its shape's index plus an offset, which says which domains hold the thing.
_OFFSETS_A = (0, 2, 3, 5)
_OFFSETS_SHARED = (0, 3)
_OFFSET_NEW = 1
_OFFSETS_NEW_SHAPE = (0, 2, 5)
_OFFSET_HELD = 6
_SHAPES_A = 6
# Shapes and materials that domain B calls by their synonym first.
_RENAMED = frozenset({"disc", "square", "water", "hay"})


@dataclass(frozen=True, kw_only=True)
class WorldClass:
    """One class of the world; ``names`` holds its canonical name first, then the synonym."""

    index: int
    names: tuple[str, ...]
    is_thing: bool
    colour: str | None
    form: str
    """Shape of a thing, material of a stuff."""

    @property
    def name(self) -> str:
        """The canonical name."""
        return self.names[0]


def _build_classes() -> tuple[WorldClass, ...]:
    kinds: list[tuple[str, str | None]] = [(form, colour) for form in SHAPES for colour in COLOURS]
    kinds += [(form, None) for form in MATERIALS]
    classes = []
    for index, (form, colour) in enumerate(kinds):
        words = (form, SYNONYMS[form]) if form in SYNONYMS else (form,)
        names = tuple(f"{colour} {word}" if colour else word for word in words)
        thing = colour is not None
        classes.append(
            WorldClass(index=index, names=names, is_thing=thing, colour=colour, form=form)
        )
    return tuple(classes)


CLASSES: tuple[WorldClass, ...] = _build_classes()


def _thing(shape: int, offset: int) -> WorldClass:
    return CLASSES[shape * len(COLOURS) + (shape + offset) % len(COLOURS)]


def _stuff(start: int, stop: int) -> list[WorldClass]:
    first = len(SHAPES) * len(COLOURS)
    return list(CLASSES[first + start : first + stop])


def domain_classes(domain: Domain) -> tuple[WorldClass, ...]:
    """Classes that scenes of ``domain`` hold, in the order of the domain's category list."""
    known, new = range(_SHAPES_A), range(_SHAPES_A, len(SHAPES))
    if domain == "a":
        return (*(_thing(s, o) for s in known for o in _OFFSETS_A), *_stuff(0, 10))
    if domain == "b":
        things = [_thing(s, o) for s in known for o in (*_OFFSETS_SHARED, _OFFSET_NEW)]
        things += [_thing(s, o) for s in new for o in _OFFSETS_NEW_SHAPE]
        stuff = _stuff(1, 4) + _stuff(7, 9) + _stuff(10, 14) + _stuff(15, 16)
        # Like SceneParse150, B's list does not separate things from stuff.
        mixed = [c for pair in zip(stuff, things, strict=False) for c in pair]
        return (*mixed, *things[len(stuff) :])
    held = {_thing(s, _OFFSET_HELD).index for s in range(len(SHAPES))}
    if domain == "held":
        return tuple(c for c in CLASSES if c.index in held or not c.is_thing)
    return tuple(c for c in CLASSES if c.index not in held)


def context_classes() -> tuple[WorldClass, ...]:
    """Classes of both domains, by name: the vocabulary of the stand-in for PASCAL Context."""
    found = {c.index: c for domain in ("a", "b") for c in domain_classes(domain)}
    return tuple(sorted(found.values(), key=lambda c: c.name))


def domain_names(domain: Literal["a", "b"], world_class: WorldClass) -> tuple[str, ...]:
    """Names that ``domain``'s class-name file gives a class, the preferred one first.

    Of most classes A gives both names and B the canonical one. Some shapes and materials have both
    names in B, the synonym first, and only the canonical one in A: B's second name is shared.
    """
    if world_class.form in _RENAMED:
        return world_class.names[:1] if domain == "a" else world_class.names[::-1]
    return world_class.names if domain == "a" else world_class.names[:1]


def seen_in_training(world_class: WorldClass) -> bool:
    """Whether domain A holds the class ("seen" by a segmenter that is trained on A)."""
    return any(c.index == world_class.index for c in domain_classes("a"))


def caption_words() -> tuple[str, ...]:
    """Words of class names and templates and a few more, lower-case, sorted; each is one token."""
    words = {w for c in CLASSES for name in c.names for w in name.split()}
    for template in TEMPLATES:
        words.update(w.strip(".").lower() for w in template.replace("{}", "").split())
    words.update({"and", "an", "on", "with", "some", "picture", "image"})
    return tuple(sorted(w for w in words if w))


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

    Words are added in turn: the parts that earlier merges leave of a word are joined from the left
    by new merges. A later merge has a higher rank, so it never disturbs the words before it.
    """
    ranks: dict[tuple[str, str], int] = {}
    for word in words:
        while len(parts := _apply(word, ranks)) > 1:
            ranks[(parts[0], parts[1])] = len(ranks)
    return list(ranks)


def write_bpe(path: Path, words: Iterable[str]) -> int:
    """Write open_clip's gzip file of merges (same words, same bytes); returns the token count."""
    merges = build_merges(words)
    text = "\n".join(["#version: 0.2 - synthetic", *(f"{a} {b}" for a, b in merges)])
    with atomic_write(path, "wb") as stream:
        stream.write(gzip.compress(text.encode(), mtime=0))
    return 512 + len(merges) + 2  # bytes, inside and at the end of a word; start and end of a text
