"""Polygons of segments: exact, with holes and parts, however they are drawn."""

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as run_length
from scipy.ndimage import gaussian_filter

from possam.pictures.exports.polygons import flat, inset, join, outline, rings

rasterio_features = pytest.importorskip("rasterio.features")
shapely = pytest.importorskip("shapely")


def _maps(count: int) -> list[np.ndarray]:
    """Noise, from single pixels to large parts with holes."""
    rng, maps = np.random.default_rng(0), []
    for number in range(count):
        height, width = rng.integers(1, 40, 2)
        noise = gaussian_filter(rng.random((height, width)), (0, 0.7, 1.5, 3)[number % 4])
        maps.append((noise > np.median(noise)).astype(np.int32) * (1 + number))
    return maps


def _discs() -> list[np.ndarray]:
    """One part without a hole each, from a pixel to a disc that reaches over the edge."""
    rows, columns = np.mgrid[:15, :21]
    return [(np.hypot(rows - 6, columns - 8 - size) <= size).astype(np.int32) for size in range(10)]


@pytest.mark.parametrize("joined", ["each part", "all parts"])
def test_pycocotools_draws_joined_rings_as_the_same_mask(joined: str) -> None:
    for ids in _maps(32):
        for key, parts in outline(ids).items():
            polygons = [flat(join(rings(part))) for part in parts]
            if joined == "all parts":
                polygons = [flat(join([ring for part in parts for ring in rings(part)]))]
            code = run_length.merge(run_length.frPyObjects(polygons, *ids.shape))
            assert np.array_equal(run_length.decode(code) > 0, ids == key)


def test_rasterio_draws_polygons_with_holes_as_the_same_mask() -> None:
    for ids in _maps(32):
        drawn = [(part, key) for key, parts in outline(ids).items() for part in parts]
        if drawn:
            found = rasterio_features.rasterize(drawn, out_shape=ids.shape, dtype=np.int32)
            assert np.array_equal(found, ids)


@pytest.mark.parametrize("whole", [np.floor, np.round])
def test_tools_that_draw_whole_pixels_get_the_same_mask(whole: np.ufunc) -> None:
    """One ring exactly; where rings are joined, only pixels near the joining lines are added."""
    exact = added = 0
    for ids in [*_maps(32), *_discs()]:
        for key, parts in outline(ids).items():
            own = [ring for part in inset(parts) for ring in rings(part)]
            path = join(own)
            picture = Image.new("1", ids.shape[::-1])
            points = whole(path).astype(int).ravel().tolist()
            ImageDraw.Draw(picture).polygon(points, outline=1, fill=1)
            found, mask = np.asarray(picture), ids == key
            if len(own) == 1:
                assert np.array_equal(found, mask)
                exact += 1
                continue
            added += bool((found & ~mask).any())
            line = shapely.LineString(path).difference(
                shapely.unary_union([shapely.LinearRing(ring) for ring in own]).buffer(1e-9)
            )
            wrong = shapely.points(np.argwhere(found != mask)[:, ::-1].astype(float))
            assert not len(wrong) or shapely.distance(wrong, line).max() <= 1.5
    assert exact > 5 and added > 5, (exact, added)


def test_a_line_to_a_hole_lies_in_the_polygon() -> None:
    ids = np.ones((9, 9), np.int32)
    ids[1:2, 1:2] = ids[6:8, 6:8] = 0
    (shape,) = outline(ids)[1]
    assert len(shape.interiors) == 2
    path = join(rings(shape))
    lines = shapely.linestrings(np.stack([path, np.roll(path, -1, axis=0)], axis=1))
    assert all(shape.covers(line) for line in lines)
    assert shapely.Polygon(path).area == shape.area == 76.0


def test_pixels_that_touch_at_a_corner_are_two_parts() -> None:
    assert len(outline(np.eye(2, dtype=np.int32) * 7)[7]) == 2
