"""Every format, read back by its tool: the same masks, classes and scores."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools.coco import COCO

from possam.datasets.class_names import read_class_index
from possam.pictures.exports import Writers, export
from possam.pictures.exports.writer import PictureNames
from possam.pictures.formats import FORMATS
from possam.pictures.result import PictureClass, Result
from possam.runtime.errors import InputError
from tests.support.lazy import LazyModule
from tests.support.results import CLASSES, hard_ids, make_result

pytest.importorskip("rasterio")
pytest.importorskip("shapely")

panoptic_api = LazyModule("panopticapi.utils")
OUTS = {name: "out.json" if name.startswith(("coco-in", "coco-po")) else "out" for name in FORMATS}


@pytest.fixture
def results(tmp_path: Path) -> list[Result]:
    """The hard map, nothing at all, a single pixel, and a map that is all one segment."""
    root = tmp_path / "pictures"
    many = np.kron(np.arange(1, 31).reshape(5, 6), np.ones((2, 3), int))
    maps = {
        "a/photo.png": hard_ids(),
        "b/photo.png": np.zeros((5, 7)),
        "café 写真.jpg": [[3]],
        "whole.webp": np.ones((6, 4)),
        "many.bmp": many,
    }
    return [make_result(ids, path=root / name) for name, ids in maps.items()]


def things(result: Result) -> list[Any]:
    return [segment for segment in result.segments if segment.is_thing]


def test_coco_panoptic(results: list[Result], tmp_path: Path) -> None:
    export("coco-panoptic", results, tmp_path / "out", root=tmp_path / "pictures")
    content = json.loads((tmp_path / "out/panoptic.json").read_text())
    assert [image["file_name"] for image in content["images"]][:3] == [
        "a/photo.png", "b/photo.png", "café 写真.jpg",
    ]  # fmt: skip
    assert [each["names"] for each in content["categories"]] == [list(c.names) for c in CLASSES]
    for result, entry in zip(results, content["annotations"], strict=True):
        with Image.open(tmp_path / "out/panoptic" / entry["file_name"]) as image:
            assert np.array_equal(panoptic_api.rgb2id(np.asarray(image)), result.id_map)
        listed = {s["id"]: (s["category_id"], s["area"], s["bbox"], s["score"])
                  for s in entry["segments_info"]}  # fmt: skip
        assert listed == {
            s.id: (s.class_index, s.area, list(s.box), s.score) for s in result.segments
        }


@pytest.mark.parametrize("name", ["coco-instances", "coco-polygons"])
def test_coco_instances(results: list[Result], tmp_path: Path, name: str) -> None:
    export(name, results, tmp_path / "out.json")
    coco = COCO(tmp_path / "out.json")
    assert coco.getCatIds() == [0, 2, 3], "things only"
    assert coco.loadCats(3)[0]["name"] == CLASSES[3].name
    for number, result in enumerate(results, start=1):
        found = coco.loadAnns(coco.getAnnIds(imgIds=number))
        for entry, segment in zip(found, things(result), strict=True):
            assert isinstance(entry["segmentation"], list) == (name == "coco-polygons")
            assert np.array_equal(coco.annToMask(entry) > 0, segment.mask)
            assert (entry["category_id"], entry["score"]) == (segment.class_index, segment.score)
            assert (entry["area"], tuple(entry["bbox"])) == (segment.area, segment.box)


def test_label_png(results: list[Result], tmp_path: Path) -> None:
    export("label-png", results, tmp_path / "out", root=tmp_path / "pictures")
    names = read_class_index(tmp_path / "out/names.txt")
    assert names == {index: each.names for index, each in enumerate(CLASSES)}
    for result in results:
        place = (tmp_path / "out" / result.path.relative_to(tmp_path / "pictures")).with_suffix("")
        labels = np.asarray(Image.open(f"{place}.png"))
        assert labels.dtype == np.uint8
        expected = np.full(result.id_map.shape, 255)
        for segment in result.segments:
            expected[segment.mask] = segment.class_index
        assert np.array_equal(labels, expected)


def test_many_classes_need_16_bits_and_more_are_refused(tmp_path: Path) -> None:
    classes = [PictureClass(f"class {number}", (), False) for number in range(65_536)]
    for count, none in ((254, 255), (255, 65535), (65_535, 65535)):
        last = {1: count - 1}
        result = make_result([[0, 1]], classes=classes[:count], class_of=last)
        export("label-png", [result], tmp_path / "out")
        labels = np.asarray(Image.open(tmp_path / "out/picture_000001.png")).tolist()
        assert labels == [[none, count - 1]]
    with pytest.raises(InputError, match="65,535 classes at most, not 65,536"):
        export("label-png", [make_result([[1]], classes=classes)], tmp_path / "more")
    assert not (tmp_path / "more").exists()


def yolo_masks(folder: Path, name: str, shape: tuple[int, int]) -> list[tuple[int, np.ndarray]]:
    """Class and mask of each line, drawn by supervision."""
    supervision = pytest.importorskip("supervision")
    rows = []
    for line in (folder / "labels" / f"{name}.txt").read_text().splitlines():
        number, *values = line.split()
        points = np.array(values, float).reshape(-1, 2) * shape[::-1]
        rows.append(
            (int(number), supervision.polygon_to_mask(points.round().astype(int), shape[::-1]))
        )
    return rows


@pytest.mark.filterwarnings("ignore:OpenCV")
def test_yolo_read_by_supervision(results: list[Result], tmp_path: Path) -> None:
    """Masks of one ring are the same; of the others, the joining line is drawn, too."""
    supervision = pytest.importorskip("supervision")
    export("yolo", results, tmp_path / "out")
    folder = tmp_path / "out"
    described = yaml.safe_load((folder / "data.yaml").read_text(encoding="utf-8"))
    assert described["names"] == {0: "dog", 1: CLASSES[2].name, 2: CLASSES[3].name}
    flat = supervision.DetectionDataset.from_yolo(
        str(folder / "images"), str(folder / "labels"), str(folder / "data.yaml"), force_masks=True
    )
    names = {"a/photo.png": "photo.png", "b/photo.png": "b/photo.png", "whole.webp": "whole.png"}
    for path, _, found in flat:
        name = Path(path).name
        result = next(
            r for r in results
            if names.get(key := r.path.relative_to(tmp_path / "pictures").as_posix(), key) == name
            or (key == "many.bmp" and name == "many.png")
        )  # fmt: skip
        own = things(result)
        assert [[0, None, 1, 2][s.class_index] for s in own] == list(found.class_id)
        for segment, mask in zip(own, found.mask, strict=True):
            if segment.id == 4 and name == "photo.png":  # two parts
                assert (mask & segment.mask).sum() == segment.area
                assert 0 < (mask & ~segment.mask).sum() <= 20
            else:
                assert np.array_equal(mask, segment.mask), (name, segment)
    assert (folder / "labels/b/photo.txt").read_text() == ""


def test_yolo_read_by_ultralytics(
    results: list[Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path / "settings"))
    monkeypatch.setenv("YOLO_OFFLINE", "true")
    pytest.importorskip("ultralytics")
    from ultralytics.data.dataset import YOLODataset
    from ultralytics.data.utils import check_det_dataset, polygon2mask

    large = [r for r in results if min(r.id_map.shape) > 9]  # of fewer pixels it takes none
    export("yolo", large, tmp_path / "out", root=tmp_path / "pictures")
    described = check_det_dataset(str(tmp_path / "out/data.yaml"), autodownload=False)
    dataset = YOLODataset(
        img_path=described["val"], data=described, task="segment", augment=False
    )  # fmt: skip
    assert len(dataset.labels) == len(large) == 2
    for entry in dataset.labels:
        result = next(r for r in large if r.path.stem == Path(entry["im_file"]).stem)
        own = things(result)
        assert [[0, None, 1, 2][s.class_index] for s in own] == entry["cls"][:, 0].astype(
            int
        ).tolist()
        for segment, points in zip(own, entry["segments"], strict=True):
            scaled = points * np.array(entry["shape"][::-1], np.float32)
            mask = polygon2mask(entry["shape"], [scaled.reshape(-1)]) > 0
            if segment.id == 4 and result.path.stem == "photo":
                assert (mask & segment.mask).sum() == segment.area
            else:
                assert np.array_equal(mask, segment.mask)


def test_labelme(results: list[Result], tmp_path: Path) -> None:
    labelme = pytest.importorskip("labelme")
    from labelme.utils import shapes_to_label

    export("labelme", results, tmp_path / "out", root=tmp_path / "pictures")
    for result in results:
        below = result.path.relative_to(tmp_path / "pictures")
        file = labelme._label_file.read_label_file(
            str(tmp_path / "out" / below.with_suffix(".json"))
        )
        shapes = [{**shape, "label": str(number)} for number, shape in enumerate(file.shapes, 1)]
        names = {str(number): s.id for number, s in enumerate(result.segments, 1)}
        labels, _ = shapes_to_label(result.id_map.shape, shapes, names)
        assert [shape["label"] for shape in file.shapes] == [s.name for s in result.segments]
        assert np.array_equal(labels, result.id_map)


def test_labelme_without_labelme(results: list[Result], tmp_path: Path) -> None:
    """The picture lies beside the JSON; only parts and holes need a mask."""
    export("labelme", results, tmp_path / "out", root=tmp_path / "pictures")
    content = json.loads((tmp_path / "out/a/photo.json").read_text())
    assert [s["shape_type"] for s in content["shapes"]] == [
        "polygon", "polygon", "mask", "mask", "polygon",
    ]  # fmt: skip
    with Image.open(tmp_path / "out/a" / content["imagePath"]) as image:
        assert image.size == (content["imageWidth"], content["imageHeight"]) == (30, 24)


def read_geojson(path: Path, shape: tuple[int, int], transform: Any = None) -> np.ndarray:
    """The map of ids, drawn by rasterio."""
    from rasterio.features import rasterize

    content = json.loads(path.read_text())
    drawn = [(each["geometry"], each["id"]) for each in content["features"]]
    options = {} if transform is None else {"transform": transform}
    if not drawn:
        return np.zeros(shape, np.int32)
    return rasterize(drawn, out_shape=shape, dtype=np.int32, **options)


def test_geojson_in_pixels(results: list[Result], tmp_path: Path) -> None:
    export("geojson", results, tmp_path / "out", root=tmp_path / "pictures")
    for result in results:
        below = result.path.relative_to(tmp_path / "pictures").with_suffix(".geojson")
        assert np.array_equal(
            read_geojson(tmp_path / "out" / below, result.id_map.shape), result.id_map
        )
    content = json.loads((tmp_path / "out/a/photo.geojson").read_text())
    assert "crs" not in content
    assert [each["properties"]["name"] for each in content["features"]] == [
        s.name for s in results[0].segments
    ]


def write_tiff(path: Path, crs: Any, turned: bool = False) -> Any:
    import rasterio
    from affine import Affine

    transform = Affine(0.5, 0.0, 500_000.0, 0.0, -0.5, 5_400_000.0)
    if turned:
        transform = Affine(0.4, 0.3, 500_000.0, 0.3, -0.4, 5_400_000.0)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 24, 30)).astype(np.uint8)
    with rasterio.open(
        path, "w", driver="GTiff", height=24, width=30, count=3, dtype="uint8", crs=crs,
        transform=transform,
    ) as raster:  # fmt: skip
        raster.write(pixels)
    return transform


@pytest.mark.parametrize("turned", [False, True])
def test_geojson_of_a_geotiff_has_its_coordinates(tmp_path: Path, turned: bool) -> None:
    transform = write_tiff(tmp_path / "field.tif", "EPSG:32633", turned)
    result = make_result(hard_ids(), path=tmp_path / "field.tif")
    result.to_geojson(tmp_path / "field.geojson")
    assert np.array_equal(read_geojson(tmp_path / "field.geojson", (24, 30), transform), hard_ids())
    pyogrio = pytest.importorskip("pyogrio")  # GDAL's reader of vectors, as QGIS has it
    import shapely
    from rasterio.features import rasterize

    meta, _, shapes, fields = pyogrio.raw.read(tmp_path / "field.geojson")
    assert meta["crs"] == "EPSG:32633"
    names = fields[list(meta["fields"]).index("name")]
    assert list(names) == [segment.name for segment in result.segments]
    drawn = zip(shapely.from_wkb(shapes), (s.id for s in result.segments), strict=True)
    found = rasterize(drawn, out_shape=(24, 30), transform=transform, dtype=np.int32)
    assert np.array_equal(found, hard_ids())


def test_geojson_without_a_code_has_longitude_and_latitude(tmp_path: Path) -> None:
    write_tiff(tmp_path / "own.tif", "+proj=tmerc +lon_0=15.1 +x_0=500000 +ellps=GRS80 +units=m")
    make_result(hard_ids(), path=tmp_path / "own.tif").to_geojson(tmp_path / "own.geojson")
    content = json.loads((tmp_path / "own.geojson").read_text())
    assert "crs" not in content
    first = np.array(content["features"][0]["geometry"]["coordinates"]).reshape(-1, 2)
    assert np.allclose(first, (15.1, 48.75), atol=0.1)


def test_npz(results: list[Result], tmp_path: Path) -> None:
    export("npz", results, tmp_path / "out", root=tmp_path / "pictures")
    for result in results:
        below = result.path.relative_to(tmp_path / "pictures").with_suffix(".npz")
        with np.load(tmp_path / "out" / below, allow_pickle=False) as arrays:
            assert str(arrays["picture"]) == str(result.path)
            assert arrays["name"].tolist() == [s.name for s in result.segments]
            assert arrays["box"].tolist() == [list(s.box) for s in result.segments]
            for name in ("embedding", "clip_embedding"):
                expected = [getattr(s, name).tolist() for s in result.segments]
                assert arrays[name].tolist() == expected


def test_all_formats_in_one_pass_and_again_the_same_files(
    results: list[Result], tmp_path: Path
) -> None:
    """A run that breaks off leaves no index; called again, it gives the files of a whole run."""

    def run(out: Path, *, fail: bool = False) -> dict[str, bytes]:
        with Writers(list(FORMATS), out, root=tmp_path / "pictures") as writers:
            for number, result in enumerate(results):
                if fail and number == 3:
                    raise KeyboardInterrupt
                writers.add(result)
        return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}

    whole = run(tmp_path / "whole")
    assert {Path(name).parts[0].removesuffix(".json") for name in whole} == set(FORMATS)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", fail=True)
    left = {str(p.relative_to(tmp_path / "broken")) for p in (tmp_path / "broken").rglob("*")}
    assert not {"coco-instances.json", "coco-panoptic/panoptic.json", "yolo/data.yaml"} & left
    assert not [name for name in left if name.endswith(".tmp")]
    assert run(tmp_path / "broken") == whole


def test_no_picture_gives_an_empty_list(tmp_path: Path) -> None:
    export("coco-instances", [], tmp_path / "out.json")
    content = json.loads((tmp_path / "out.json").read_text())
    assert content == {"categories": [], "images": [], "annotations": []}


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_in_the_way_is_refused_before_anything_is_written(
    tmp_path: Path, name: str
) -> None:
    if OUTS[name] == "out":
        (tmp_path / "out").write_text("mine")
        with pytest.raises(InputError, match="is a file; name a folder"):
            export(name, [make_result([[1]])], tmp_path / "out")
    else:
        (tmp_path / "out.json").mkdir()
        with pytest.raises(InputError, match="is a folder; name a file"):
            export(name, [make_result([[1]])], tmp_path / "out.json")
    assert len(list(tmp_path.rglob("*"))) == 1


def test_another_vocabulary_is_refused(tmp_path: Path) -> None:
    results = [make_result([[1]]), make_result([[1]], classes=CLASSES[:2])]
    with pytest.raises(InputError, match="another vocabulary"):
        export("coco-panoptic", results, tmp_path / "out")
    assert not (tmp_path / "out/panoptic.json").exists()


def test_an_unknown_format_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="'coco'; valid choices: coco-panoptic, "):
        export("coco", [], "out")


def test_names_of_pictures_are_unique(tmp_path: Path) -> None:
    names = PictureNames(tmp_path)
    given = ["a/x.jpg", "b/x.jpg", "b/x.png", "b/X.jpg", "x"]
    assert [str(names.name(tmp_path / each)) for each in given] == [
        "a/x.jpg", "b/x.jpg", "b/x_2.png", "b/X_3.jpg", "x",
    ]  # fmt: skip
    free = PictureNames(None)
    assert [str(free.name(tmp_path / each)) for each in given] == [
        "x.jpg", "b/x.jpg", str(tmp_path.relative_to("/").parts[-1]) + "/b/x.png", *[
            str(Path(*(tmp_path / "b").parts[-3:]) / "X.jpg"), f"{tmp_path.name}/x",
        ],
    ]  # fmt: skip
    assert str(free.name(None)) == "picture_000006.png"


def test_a_turned_photograph_is_written_upright(tmp_path: Path) -> None:
    """LabelMe and YOLO get the pixels that the masks lie on."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 30, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(pixels)).save(tmp_path / "photo.jpg", exif=exif)
    result = make_result(hard_ids(), path=tmp_path / "photo.jpg", image=pixels)
    result.to_yolo(tmp_path / "yolo")
    result.to_labelme(tmp_path / "labelme")
    for path in (tmp_path / "yolo/images/photo.png", tmp_path / "labelme/photo.png"):
        assert np.array_equal(np.asarray(Image.open(path)), pixels)


def test_memory_does_not_grow_with_the_pictures(tmp_path: Path) -> None:
    """No result is held once the next one is there."""
    import weakref

    alive: list[Any] = []

    def stream() -> Any:
        for _ in range(5):
            result = make_result(hard_ids())
            alive.append(weakref.ref(result))
            yield result
            del result
            assert sum(each() is not None for each in alive[:-1]) == 0

    with Writers(list(FORMATS), tmp_path) as writers:
        for result in stream():
            writers.add(result)
            del result


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "rasterio", None)
    with pytest.raises(InputError, match=r"pip install 'possam\[exports\]'"):
        Writers(["npz", "yolo"], tmp_path)
    assert not os.listdir(tmp_path)
