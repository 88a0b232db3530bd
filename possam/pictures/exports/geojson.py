"""GeoJSON: polygons with holes, in pixels or in the coordinates of a GeoTIFF."""

import warnings
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from possam.pictures.exports.polygons import outline, polygon_packages
from possam.pictures.exports.writer import Result, Writer, shapes, with_ending
from possam.runtime.files import write_json

if TYPE_CHECKING:
    from affine import Affine
    from rasterio.crs import CRS

_ORIENTATION = 0x0112


class GeoJsonWriter(Writer):
    """A folder with one ``.geojson`` per picture: see :func:`save_geojson`."""

    def __init__(self, out: Path | str, *, root: Path | str | None = None) -> None:
        polygon_packages()
        super().__init__(out, root=root)

    def add_picture(self, result: Result, name: PurePosixPath) -> None:
        save_geojson(result, with_ending(self.out, name, ".geojson"))


def save_geojson(result: Result, file: Path | str) -> None:
    """Write one feature per segment.

    Coordinates are pixels: x to the right and y down from the upper left corner. If the picture is
    a GeoTIFF with a georeference, they are its own coordinates, and ``crs`` names their reference
    system by its EPSG code, as GDAL and QGIS read it; if that has no such code, they are longitude
    and latitude (WGS 84).

    Raises:
        InputError: rasterio or shapely is not installed.
    """
    _, shapely = polygon_packages()
    found, sizes, place = outline(result.id_map), shapes(result), _georeference(result)
    content: dict[str, Any] = {"type": "FeatureCollection"}
    if place is not None and (code := place.code) is not None:
        content["crs"] = {"type": "name", "properties": {"name": f"urn:ogc:def:crs:EPSG::{code}"}}
    content["features"] = features = []
    for segment in result.segments:
        parts = found[segment.id]
        shape = parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)
        if place is not None:
            shape = place.locate(shape)
        features.append(
            {
                "type": "Feature",
                "id": segment.id,
                "geometry": shapely.geometry.mapping(shapely.orient_polygons(shape)),
                "properties": {
                    "name": segment.name,
                    "class_index": segment.class_index,
                    "is_thing": segment.is_thing,
                    "seen": segment.seen,
                    "score": float(segment.score),
                    "area": sizes[segment.id][0],
                },
            }
        )
    write_json(Path(file), content, indent=None)


class _Georeference(NamedTuple):
    """Where a raster lies: from pixels to the coordinates of its reference system."""

    transform: "Affine"
    crs: "CRS | None"

    @property
    def code(self) -> int | None:
        """EPSG code of the reference system."""
        return None if self.crs is None else self.crs.to_epsg()

    def locate(self, shape: Any) -> Any:
        """A shape in pixels, in the coordinates that are written."""
        _, shapely = polygon_packages()

        matrix = np.array(self.transform[:6]).reshape(2, 3)

        def move(points: Any) -> Any:
            return points @ matrix[:, :2].T + matrix[:, 2]

        moved = shapely.transform(shape, move)
        if self.crs is None or self.code is not None:
            return moved
        from rasterio.warp import transform_geom

        turned = transform_geom(self.crs, "EPSG:4326", shapely.geometry.mapping(moved))
        return shapely.geometry.shape(turned)


def _georeference(result: Result) -> _Georeference | None:
    """That of a GeoTIFF, if the masks lie on its pixels as they are stored."""
    if result.path is None or result.path.suffix.lower() not in (".tif", ".tiff"):
        return None
    import rasterio

    with Image.open(result.path) as image:
        if image.getexif().get(_ORIENTATION, 1) != 1:
            return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(result.path) as raster:
            if raster.transform.is_identity or raster.shape != result.id_map.shape:
                return None
            return _Georeference(raster.transform, raster.crs)
