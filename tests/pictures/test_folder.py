"""A folder of scenes and real photographs in every format, read back with the same masks."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools.coco import COCO

from possam.pictures.exports import Writers
from possam.pictures.formats import FORMATS
from possam.pictures.result import PictureClass, Result
from possam.synthetic.scenes import render_scene, scene_rng
from tests.support.lazy import LazyModule
from tests.support.results import make_result

pytest.importorskip("shapely")
features = pytest.importorskip("rasterio.features")
panoptic_api = LazyModule("panopticapi.utils")

SAMPLES = Path(__file__).resolve().parents[3] / "shared/samples"
CLASSES = [PictureClass(f"class {n}, Klasse", (f"κλάση {n}",), n % 3 > 0) for n in range(7)]
SCENES = 50
SHIPPED = (
    "astronaut.png", "camera.png", "chelsea.png", "coffee.png", "coins.png",
    "motorcycle_left.png", "retina.jpg", "rocket.jpg",
)  # fmt: skip
"""Photographs in scikit-image's wheel, in colour and grey."""


def _scenes(folder: Path) -> list[Result]:
    """Scenes of the synthetic world with their true segments."""
    found = []
    for index in range(SCENES):
        domain = ("a", "b")[index % 2]
        scene = render_scene(scene_rng(seed=0, domain=domain, split="val", index=index), domain)
        path = folder / domain / f"scene {index // 2}.png"
        found.append(make_result(scene.ids, path=path, classes=CLASSES, image=scene.image))
    return found


def _photographs(folder: Path) -> list[Result]:
    """Ten photographs of scikit-image and scikit-learn, cut into ragged regions with holes."""
    data = pytest.importorskip("skimage.data")
    segmentation = pytest.importorskip("skimage.segmentation")
    images = pytest.importorskip("sklearn.datasets").load_sample_images()
    shipped = Path(data.__file__).parent
    pictures = {name: np.asarray(Image.open(shipped / name).convert("RGB")) for name in SHIPPED}
    pictures |= {Path(n).name: i for n, i in zip(images.filenames, images.images, strict=True)}
    found = []
    for name, pixels in pictures.items():
        pixels = pixels[::3, ::3]
        ids = segmentation.felzenszwalb(pixels, scale=300, min_size=40)  # 0, one of them, is void
        found.append(make_result(ids, path=folder / name, classes=CLASSES, image=pixels))
    assert len(found) == 10
    return found


def _samples() -> list[Result]:
    """COCO's own picture with its own segments, where the samples are."""
    found = []
    for png in sorted(SAMPLES.glob("coco/annotations/panoptic_val2017/*.png")):
        ids = panoptic_api.rgb2id(np.asarray(Image.open(png)))
        photo = SAMPLES / f"coco/val2017/{png.stem}.jpg"
        pixels = np.asarray(Image.open(photo).convert("RGB"))
        found.append(make_result(ids, path=photo, classes=CLASSES, image=pixels))
    return found


@pytest.mark.slow
def test_a_folder_in_all_formats(tmp_path: Path) -> None:
    root, out = tmp_path / "pictures", tmp_path / "out"
    results = [*_scenes(root), *_photographs(root), *_samples()]
    with Writers([*FORMATS], out, root=root) as writers:
        for result in results:
            writers.add(result)
    polygons, codes = (COCO(out / f"coco-{kind}.json") for kind in ("polygons", "instances"))
    panoptic = json.loads((out / "coco-panoptic/panoptic.json").read_text())
    names = yaml.safe_load((out / "yolo/data.yaml").read_text(encoding="utf-8"))["names"]
    assert list(names.values()) == [each.name for each in CLASSES if each.is_thing]
    for number, (result, entry) in enumerate(zip(results, panoptic["annotations"], strict=True), 1):
        ids = result.id_map
        with Image.open(out / "coco-panoptic/panoptic" / entry["file_name"]) as image:
            assert np.array_equal(panoptic_api.rgb2id(np.asarray(image)), ids)
        things = [segment for segment in result.segments if segment.is_thing]
        for coco in (polygons, codes):
            drawn = np.zeros_like(ids)
            found = coco.loadAnns(coco.getAnnIds(imgIds=number))
            for segment, annotation in zip(things, found, strict=True):
                drawn[coco.annToMask(annotation) > 0] = segment.id
            assert np.array_equal(drawn, np.where(np.isin(ids, [t.id for t in things]), ids, 0))
        stem = Path(entry["file_name"]).with_suffix("")
        shapes = json.loads((out / f"geojson/{stem}.geojson").read_text())["features"]
        drawn = features.rasterize([(s["geometry"], s["id"]) for s in shapes], out_shape=ids.shape)
        assert np.array_equal(drawn, ids)
        assert len((out / f"yolo/labels/{stem}.txt").read_text().splitlines()) == len(things)
        labels = np.asarray(Image.open(out / f"label-png/{stem}.png"))
        assert np.array_equal(labels, np.where(ids == 0, 255, (ids - 1) % len(CLASSES)))
        marked = json.loads((out / f"labelme/{stem}.json").read_text())["shapes"]
        assert len(marked) == len(result.segments)
        with np.load(out / f"npz/{stem}.npz") as arrays:
            assert arrays["segment_id"].tolist() == [s.id for s in result.segments]
