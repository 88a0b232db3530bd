"""Segments as polygons along the borders of their pixels, with holes and several parts.

Coordinates are x, y in pixels from the upper left corner: the first pixel is the square from 0, 0
to 1, 1. Pixels that only touch at a corner belong to different parts.
"""

from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from possam.runtime.errors import InputError

if TYPE_CHECKING:
    from shapely import Polygon

_INSET, _SHIFT = 0.4, 0.25
"""How far :func:`inset` moves an outline inwards, and then to the left and up, in pixels."""

Ring = NDArray[np.float64]
"""(N, 2) x, y, not closed."""


def polygon_packages() -> tuple[ModuleType, ModuleType]:
    """``rasterio.features`` and ``shapely``; InputError if they are not installed."""
    try:
        import shapely
        from rasterio import features
    except ImportError as error:
        raise InputError(
            f"polygons need rasterio and shapely ({error}); pip install 'possam[exports]'"
        ) from error
    return features, shapely


def outline(ids: NDArray[np.int32]) -> dict[int, list["Polygon"]]:
    """The polygons of each segment of a map (H, W), one per part; 0 is no segment.

    Holes run the other way round than outer rings, so every rule of filling leaves them out.
    """
    features, shapely = polygon_packages()
    found: dict[int, list[Polygon]] = {}
    for shape, value in features.shapes(ids, mask=ids != 0, connectivity=4):
        shell, *holes = shape["coordinates"]
        polygon = shapely.orient_polygons(shapely.Polygon(shell, holes))
        found.setdefault(int(value), []).append(polygon)
    return found


def inset(polygons: list["Polygon"]) -> list["Polygon"]:
    """The outlines moved into the pixels at the border, for tools that draw whole pixels.

    Such a tool rounds each coordinate, or cuts off its fraction, and draws the lines between these
    pixels, too: from an outline between pixels it would draw one more on the right and below. Here
    all fractions are 0.15 or 0.35, so both ways give the pixels at the border.
    """
    _, shapely = polygon_packages()
    moved = [shapely.buffer(one, -_INSET, join_style="mitre", mitre_limit=5) for one in polygons]
    return [*shapely.transform(shapely.get_parts(moved), lambda points: points - _SHIFT)]


def rings(polygon: "Polygon") -> list[Ring]:
    """The outer ring and the holes."""
    return [np.asarray(ring.coords)[:-1] for ring in (polygon.exterior, *polygon.interiors)]


def join(parts: list[Ring]) -> Ring:
    """All rings as one, joined by lines that are drawn there and back.

    It covers what the rings cover, however it is filled. Each line is the shortest to the
    rings that are joined already, so none crosses a ring: the line to a hole lies in its polygon,
    that between two parts outside of both.
    """
    if len(parts) == 1:
        return parts[0]
    _, shapely = polygon_packages()
    loops = shapely.linearrings(np.concatenate(parts), indices=_numbers(parts))
    nearest = np.zeros(len(parts), np.int64)
    distance = np.asarray(shapely.distance(loops[0], loops), np.float64)
    path, waiting = parts[0], np.arange(len(parts)) > 0
    while waiting.any():
        new = int(np.where(waiting, distance, np.inf).argmin())
        here, there = np.asarray(shapely.shortest_line(loops[nearest[new]], loops[new]).coords)
        path = _splice(path, here, _from(parts[new], there))
        waiting[new] = False
        own = shapely.distance(loops[new], loops)
        nearest[own < distance] = new
        distance = np.minimum(distance, own)
    return path


def _numbers(parts: list[Ring]) -> NDArray[np.int64]:
    return np.repeat(np.arange(len(parts)), [len(part) for part in parts])


def _from(ring: Ring, point: Ring) -> Ring:
    """A ring that starts and ends at ``point``, which lies on it."""
    place = _segment(ring, point)
    return np.concatenate([[point], ring[place + 1 :], ring[: place + 1], [point]])


def _splice(path: Ring, point: Ring, ring: Ring) -> Ring:
    """``path`` with a way from ``point`` on it to ``ring``, around that, and back."""
    place = _segment(path, point) + 1
    return np.concatenate([path[:place], [point], ring, [point], path[place:]])


def _segment(ring: Ring, point: Ring) -> int:
    """Which line of the ring holds ``point``: that from the vertex of this number to the next."""
    start = ring
    step = np.roll(ring, -1, axis=0) - start
    length = np.maximum((step**2).sum(axis=1), 1e-30)
    share = (((point - start) * step).sum(axis=1) / length).clip(0, 1)
    return int(((start + share[:, None] * step - point) ** 2).sum(axis=1).argmin())


def flat(ring: Ring) -> list[Any]:
    """x, y, x, y, ...; whole numbers where the coordinates are."""
    return [int(value) if value.is_integer() else value for value in ring.ravel().tolist()]
