"""Render labelled scenes of the mini world.

A scene is one to three material regions with two to five things on them, 128 x 128 pixels. The
domains differ in layout (A: horizontal bands; B: Voronoi cells), sizes, lighting and noise. A
thing's pattern (plain, striped, spotted or checkered, in two shades) says nothing of its class. The
towers learn from scenes of a third look ("web"), so that B's light, and its smallest
things, are new to them (docs/calibration.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from possam.runtime.progress import track
from possam.synthetic.materials import smooth_noise, texture
from possam.synthetic.vocabulary import COLOURS, MATERIALS, Domain, WorldClass, domain_classes

SIZE = 128
"""Side of every scene in pixels."""

Split = Literal["train", "val"]
Array = npt.NDArray[np.floating]
Ids = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

_DOMAIN_CODES: dict[str, int] = {"a": 1, "b": 2, "web": 3, "held": 4}
_SPLIT_CODES: dict[str, int] = {"train": 1, "val": 2}
_MIN_SEGMENT = 40
_MIN_REGION = 150
_OUTLINE = 1.14
_PATTERNS = ("plain", "striped", "spotted", "checkered")


@dataclass(frozen=True, kw_only=True)
class Segment:
    """``id`` in the scene's map, ``class_index`` into ``CLASSES``, ``area`` in visible pixels."""

    id: int
    class_index: int
    is_thing: bool
    area: int


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Image (uint8 RGB, (128, 128, 3)), segment ids (uint8 (128, 128), 0 is void), segments.

    ``shaded`` (bool (128, 128)) marks the shaded part of each segment. Labels do not know parts;
    SAM does.
    """

    image: npt.NDArray[np.uint8]
    ids: Ids
    shaded: Mask
    segments: tuple[Segment, ...]


@dataclass(frozen=True, kw_only=True)
class Style:
    """What distinguishes the looks of the domains; lengths in pixels, gains are factors."""

    bands: bool | None
    """Layout: horizontal bands or cells; None: each in half of the scenes."""
    max_things: int
    radius: tuple[float, float]
    log_radius: bool = False
    """Whether radii are drawn log-uniformly, for as many small things as large ones."""
    stuff_gain: tuple[float, float]
    thing_gain: tuple[float, float]
    haze: float
    noise: float
    cast: float = 0
    """Colour cast of the whole picture: channels are scaled by factors of 1 - ``cast`` to 1."""
    mix: float = 0
    """Highest share of another colour (things) or material (stuff) in a segment's own paint."""
    shade: float = 1
    """Gain of one of the two parts of each segment; 1: segments have no visible parts."""


STYLES: dict[str, Style] = {
    "web": Style(bands=None, max_things=5, radius=(8, 28), log_radius=True, stuff_gain=(0.9, 1.05),
                 thing_gain=(0.9, 1.05), haze=0, noise=4, cast=0.1, mix=0.3, shade=0.72),
    "a": Style(bands=True, max_things=4, radius=(9, 27), log_radius=True, stuff_gain=(0.95, 1.05),
               thing_gain=(0.95, 1.05), haze=0, noise=3, cast=0.1, mix=0.3, shade=0.72),
    "b": Style(bands=False, max_things=5, radius=(5.5, 23), log_radius=True, stuff_gain=(0.78, 1.0),
               thing_gain=(0.8, 1.0), haze=10, noise=6, cast=0.34, mix=0.3, shade=0.72),
}  # fmt: skip
"""Looks of domains; "held" scenes look like the web's."""


def shape_mask(shape: str, u: Array, v: Array) -> Mask:
    """Whether points (u right, v down, the shape within [-1, 1]) lie inside ``shape``."""
    if shape == "disc":
        return np.hypot(u, v) < 0.9
    if shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) < 0.8
    if shape == "triangle":
        return (v < 0.75) & (np.abs(u) * 1.7 < (v + 0.95) * 0.98)
    if shape == "star":
        turn = np.arctan2(u, -v) / (2 * np.pi) * 5
        return np.hypot(u, v) < 0.4 + 0.62 * (np.abs(turn % 1 - 0.5) * 2) ** 1.3
    if shape == "ring":
        radius = np.hypot(u, v)
        return (radius < 0.97) & (radius > 0.48)
    if shape == "cross":
        arms = (np.abs(u) < 0.32) | (np.abs(v) < 0.32)
        return arms & (np.maximum(np.abs(u), np.abs(v)) < 0.97)
    if shape == "crescent":
        return (np.hypot(u, v) < 0.98) & (np.hypot(u - 0.5, v) > 0.78)
    if shape == "bar":
        return (np.abs(u) < 1) & (np.abs(v) < 0.3)
    raise ValueError(f"unknown shape {shape!r}")


def _pattern_mask(pattern: str, x: Array, y: Array, period: float) -> Mask:
    if pattern == "striped":
        return ((0.83 * x + 0.56 * y) / period) % 1 < 0.45
    if pattern == "spotted":
        return np.hypot(x / period % 1 - 0.5, y / period % 1 - 0.5) < 0.32
    if pattern == "checkered":
        return (x / period % 1 < 0.5) ^ (y / period % 1 < 0.5)
    return np.zeros(x.shape, bool)


def _shades(colour: str, mix: float, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Body, pattern and outline colour of a thing, with up to a share ``mix`` of another colour."""
    body = np.array(COLOURS[colour], np.float32)
    if mix:
        other = list(COLOURS.values())[int(rng.integers(len(COLOURS)))]
        body += rng.uniform(0, mix) * (np.array(other, np.float32) - body)
    if colour == "black":
        return body, body + 42, body + 85
    return body, body * 0.72, body * 0.45


def _layout(
    rng: np.random.Generator, style: Style, regions: int, x: Array, y: Array
) -> npt.NDArray[np.int64]:
    """Number (0 to regions - 1) of the region at each pixel, (H, W)."""
    if style.bands or (style.bands is None and rng.random() < 0.5):
        label = np.zeros(x.shape, np.int64)
        for number, height in enumerate(np.sort(rng.uniform(0.25, 0.85, regions - 1)) * SIZE):
            slope, wave, phase = rng.uniform(-0.25, 0.25), rng.uniform(8, 20), rng.uniform(0, 6)
            label[y > height + slope * (x - SIZE / 2) + 4 * np.sin(x / wave + phase)] = number + 1
        return label
    centres = rng.uniform(0.1 * SIZE, 0.9 * SIZE, (regions, 2))
    wobble = 3 * smooth_noise(rng, 5, SIZE)
    distance = [np.hypot(x - a, y - b) + wobble * (k % 2) for k, (a, b) in enumerate(centres)]
    return np.asarray(np.argmin(np.stack(distance), axis=0))


def _paint_stuff(
    rng: np.random.Generator, style: Style, stuff: list[WorldClass], image: Array, ids: Ids
) -> list[WorldClass]:
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
    count = min(int(rng.integers(1, 4)), len(stuff))
    chosen = [stuff[k] for k in rng.choice(len(stuff), count, replace=False)]
    label = _layout(rng, style, count, x, y)
    areas = np.bincount(label.ravel(), minlength=count)
    # The largest region takes over regions that are too small to be labelled.
    for k in np.flatnonzero(areas < _MIN_REGION):
        label[label == k] = int(areas.argmax())
    painted: list[WorldClass] = []
    for k in np.flatnonzero(np.bincount(label.ravel(), minlength=count)):
        inside = label == k
        paint = texture(chosen[k].form, rng, x, y)
        if style.mix:
            other = MATERIALS[int(rng.integers(len(MATERIALS)))]
            paint += rng.uniform(0, style.mix) * (texture(other, rng, x, y) - paint)
        paint *= rng.uniform(*style.stuff_gain)
        np.copyto(image, paint, where=inside[..., None], casting="same_kind")
        painted.append(chosen[k])
        ids[inside] = len(painted)
    return painted


def _half(rng: np.random.Generator, u: Array, v: Array, *, reach: float) -> Mask:
    """Points on one side of a random line that passes the origin within ``reach``."""
    angle = rng.uniform(0, 2 * np.pi)
    return np.asarray(u * np.cos(angle) + v * np.sin(angle) > rng.uniform(-reach, reach))


def _shade_regions(
    rng: np.random.Generator, style: Style, image: Array, ids: Ids, shaded: Mask
) -> None:
    """Let a shadow fall on one side of a line through each region's centre."""
    for number in range(1, int(ids.max()) + 1):
        inside = ids == number
        y, x = (axis.astype(np.float32) for axis in np.nonzero(inside))
        part = _half(rng, x - x.mean(), y - y.mean(), reach=0.1 * SIZE)
        shaded[inside] = part
        image[inside] *= np.where(part, style.shade, 1)[:, None]


def _cast(rng: np.random.Generator, image: Array, strength: float) -> None:
    """Tint the light: scale the channels by random factors between 1 - ``strength`` and 1."""
    image *= (1 - strength * rng.permutation([0, rng.random(), 1])).astype(np.float32)


def _paint_thing(
    rng: np.random.Generator, style: Style, thing: WorldClass, image: Array, ids: Ids,
    shaded: Mask, occupied: Mask, number: int,
) -> bool:  # fmt: skip
    """Place a thing where it covers little of the other things; returns whether there was room."""
    low, high = style.radius
    radius = low * (high / low) ** rng.random() if style.log_radius else rng.uniform(low, high)
    for _ in range(8):
        centre_x, centre_y = rng.uniform(radius * 0.7, SIZE - radius * 0.7, 2)
        angle = rng.uniform(-0.3, 0.3)
        reach = int(np.ceil(radius * 1.45))
        left, top = max(0, int(centre_x) - reach), max(0, int(centre_y) - reach)
        right, bottom = min(SIZE, int(centre_x) + reach + 1), min(SIZE, int(centre_y) + reach + 1)
        y, x = np.mgrid[top:bottom, left:right].astype(np.float32)
        du, dv = (x - centre_x) / radius, (y - centre_y) / radius
        u = du * np.cos(angle) + dv * np.sin(angle)
        v = dv * np.cos(angle) - du * np.sin(angle)
        inside = shape_mask(thing.form, u, v)
        window = (slice(top, bottom), slice(left, right))
        if np.count_nonzero(inside & occupied[window]) < 0.1 * np.count_nonzero(inside):
            break
    else:
        return False
    body, shade, outline = _shades(str(thing.colour), style.mix, rng)
    palette = np.stack((outline, body, shade))
    pattern = _PATTERNS[int(rng.integers(len(_PATTERNS)))]
    period = rng.uniform(8, 11)
    marked = _pattern_mask(pattern, u * radius, v * radius, period)
    core = shape_mask(thing.form, u * _OUTLINE, v * _OUTLINE)
    paint = palette.take(core * (1 + marked), axis=0)
    if style.shade != 1:
        part = _half(rng, u, v, reach=0.35)
        paint[part] *= style.shade
        shaded[window][inside] = part[inside]
    lit = paint * (1 - 0.1 * (du + dv))[..., None] * rng.uniform(*style.thing_gain) + style.haze
    np.copyto(image[window], lit, where=inside[..., None], casting="same_kind")
    ids[window][inside] = number
    occupied[window] |= inside
    return True


def render_scene(
    rng: np.random.Generator, domain: Domain, *, styles: Mapping[str, Style] = STYLES
) -> Scene:
    """Render one scene of ``domain``; everything in it depends only on ``rng`` and ``styles``."""
    classes = domain_classes(domain)
    things = [c for c in classes if c.is_thing]
    stuff = [c for c in classes if not c.is_thing]
    style = styles["web" if domain == "held" else domain]
    image = np.zeros((SIZE, SIZE, 3), np.float32)
    ids = np.zeros((SIZE, SIZE), np.uint8)
    shaded = np.zeros((SIZE, SIZE), bool)
    content = _paint_stuff(rng, style, stuff, image, ids)
    if style.shade != 1:
        _shade_regions(rng, style, image, ids, shaded)
    occupied = np.zeros((SIZE, SIZE), bool)
    for _ in range(int(rng.integers(2, style.max_things + 1))):
        thing = things[int(rng.integers(len(things)))]
        if _paint_thing(rng, style, thing, image, ids, shaded, occupied, len(content) + 1):
            content.append(thing)
    if style.cast:
        _cast(rng, image, style.cast)
    image += rng.standard_normal(image.shape, dtype=np.float32) * style.noise
    final = np.zeros_like(ids)
    segments: list[Segment] = []
    for number, world_class in enumerate(content, start=1):
        visible = ids == number
        area = int(np.count_nonzero(visible))
        if area < _MIN_SEGMENT:
            continue
        segment = Segment(id=len(segments) + 1, class_index=world_class.index,
                          is_thing=world_class.is_thing, area=area)  # fmt: skip
        segments.append(segment)
        final[visible] = segment.id
    return Scene(
        image=np.clip(np.rint(image), 0, 255).astype(np.uint8), ids=final, shaded=shaded,
        segments=tuple(segments),
    )  # fmt: skip


def scene_rng(*, seed: int, domain: Domain, split: Split, index: int) -> np.random.Generator:
    """The random generator of scene ``index``, whichever other scenes are rendered."""
    return np.random.default_rng([seed, _DOMAIN_CODES[domain], _SPLIT_CODES[split], index])


def render_scenes(
    count: int, *, domain: Domain, split: Split = "train", seed: int, start: int = 0,
    styles: Mapping[str, Style] = STYLES,
) -> list[Scene]:  # fmt: skip
    """Scenes ``start`` to ``start + count - 1`` of a domain and split, about 4 ms each."""
    indices = track(range(start, start + count), total=count, label=f"scenes {domain} {split}")
    return [
        render_scene(
            scene_rng(seed=seed, domain=domain, split=split, index=i), domain, styles=styles
        )
        for i in indices
    ]
