"""Archives: upstream layouts that read back as the scenes that were written."""

import csv
import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from scipy.io import loadmat

from possam.runtime.errors import InputError
from possam.runtime.files import sha256_file
from possam.synthetic.annotate import Task, ade_scene, bounding_box, coco_scene, run_lengths
from possam.synthetic.archives import write_world
from possam.synthetic.options import WorldOptions
from possam.synthetic.scenes import render_scene, scene_rng
from possam.synthetic.vocabulary import CLASSES

COUNTS = {
    "coco_train": 6, "coco_val": 3, "ade20k_train": 5, "ade20k_val": 3, "ade20k_full_val": 3,
    "pascal_context_459_val": 4,
}  # fmt: skip


def _pixels(content: bytes) -> npt.NDArray[Any]:
    return np.asarray(Image.open(io.BytesIO(content)))


def _rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("world")
    return folder, write_world(folder, WorldOptions(seed=9, **COUNTS))


def test_manifest_names_every_file(world: tuple[Path, dict[str, Any]]) -> None:
    folder, manifest = world
    assert json.loads((folder / "manifest.json").read_text()) == manifest
    assert manifest["seed"] == 9 and manifest["counts"] == COUNTS
    assert {p.name for p in folder.iterdir()} == {*manifest["files"], "manifest.json"}
    for name, entry in manifest["files"].items():
        assert entry["sha256"] == sha256_file(folder / name)
        assert entry["bytes"] == (folder / name).stat().st_size


def test_same_seed_same_bytes_with_any_number_of_processes(
    world: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    assert write_world(tmp_path / "two", WorldOptions(seed=9, **COUNTS), workers=2) == world[1]
    other = write_world(tmp_path / "other", WorldOptions(seed=10, **COUNTS))["files"]
    same = {name for name, entry in other.items() if entry == world[1]["files"][name]}
    assert same == {name for name in other if name.startswith("synthetic_")}


@pytest.mark.parametrize(("split", "count"), [("train", 6), ("val", 3)])
def test_coco_layout(world: tuple[Path, dict[str, Any]], split: str, count: int) -> None:
    folder, _ = world
    with zipfile.ZipFile(folder / "panoptic_annotations_trainval2017.zip") as outer:
        panoptic = json.loads(outer.read(f"annotations/panoptic_{split}2017.json"))
        inner = zipfile.ZipFile(io.BytesIO(outer.read(f"annotations/panoptic_{split}2017.zip")))
    with zipfile.ZipFile(folder / "annotations_trainval2017.zip") as archive:
        instances = json.loads(archive.read(f"annotations/instances_{split}2017.json"))
    images = zipfile.ZipFile(folder / f"{split}2017.zip")
    assert len(panoptic["images"]) == len(panoptic["annotations"]) == count
    categories = {c["id"]: c for c in panoptic["categories"]}
    things = {k for k, c in categories.items() if c["isthing"]}
    assert len(categories) == 34 and len(things) == 24
    assert sorted(categories) != list(range(1, 35)), "upstream's ids have gaps"
    assert {c["id"] for c in instances["categories"]} == things
    assert images.infolist()[0].is_dir() and inner.infolist()[0].is_dir()
    objects: dict[int, list[dict[str, Any]]] = {}
    for entry in instances["annotations"]:
        objects.setdefault(entry["image_id"], []).append(entry)
    assert len({e["id"] for e in instances["annotations"]}) == len(instances["annotations"])
    for info, annotation in zip(panoptic["images"], panoptic["annotations"], strict=True):
        assert annotation["image_id"] == info["id"] and len(info["file_name"]) == 16
        picture = _pixels(images.read(f"{split}2017/{info['file_name']}"))
        assert picture.shape == (info["height"], info["width"], 3)
        rgb = _pixels(inner.read(f"panoptic_{split}2017/{annotation['file_name']}")).astype(int)
        ids = rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]
        listed = {s["id"] for s in annotation["segments_info"]}
        assert set(np.unique(ids)) - {0} == listed and 0 not in listed
        for segment in annotation["segments_info"]:
            mask = ids == segment["id"]
            assert segment["area"] == mask.sum()
            assert segment["bbox"] == bounding_box(mask)
        of_image = [s for s in annotation["segments_info"] if s["category_id"] in things]
        assert len(of_image) == len(objects.get(info["id"], []))
        for segment, entry in zip(of_image, objects.get(info["id"], []), strict=True):
            code = coco_mask.frPyObjects(entry["segmentation"], *entry["segmentation"]["size"])
            assert np.array_equal(coco_mask.decode(code) > 0, ids == segment["id"])
            assert entry["iscrowd"] == segment["iscrowd"]


@pytest.mark.parametrize(
    ("split", "folder", "count"), [("train", "training", 5), ("val", "validation", 3)]
)
def test_ade_layout(
    world: tuple[Path, dict[str, Any]], split: str, folder: str, count: int
) -> None:
    root, _ = world
    rows = _rows(root / "synthetic_ade20k_instances.csv")
    numbers = [(r["instance_index"], int(r["scene_parse_index"])) for r in rows]
    things = {int(instance): semantic for instance, semantic in numbers if instance}
    assert sorted(things) == list(range(1, 25)) and len(rows) == 34
    archive = zipfile.ZipFile(root / "ADEChallengeData2016.zip")
    with tarfile.open(root / "annotations_instance.tar") as tar:
        files = [m for m in tar if m.isfile()]
        instances = {m.name: tar.extractfile(m).read() for m in files}  # type: ignore[union-attr]
    base = "ADEChallengeData2016"
    stems = [f"ADE_{split}_{k:08d}" for k in range(1, count + 1)]
    pictures = [n for n in archive.namelist() if n.startswith(f"{base}/images/{folder}/ADE")]
    assert pictures == [f"{base}/images/{folder}/{stem}.jpg" for stem in stems]
    info = archive.read(f"{base}/objectInfo150.txt").decode().splitlines()
    assert info[0].split("\t") == ["Idx", "Ratio", "Train", "Val", "Name"] and len(info) == 35
    assert sum(float(line.split("\t")[1]) for line in info[1:]) == pytest.approx(1, abs=0.01)
    assert len(archive.read(f"{base}/sceneCategories.txt").decode().splitlines()) == 8
    for stem in stems:
        semantic = _pixels(archive.read(f"{base}/annotations/{folder}/{stem}.png"))
        instance = _pixels(instances[f"annotations_instance/{folder}/{stem}.png"])
        assert semantic.dtype == np.uint8 and semantic.ndim == 2 and semantic.max() <= 34
        expected = np.zeros_like(semantic)
        for k, index in things.items():
            expected[instance[..., 0] == k] = index
        thing = np.isin(semantic, list(things.values()))
        assert np.array_equal(expected, np.where(thing, semantic, 0))
        assert np.array_equal(instance[..., 1] > 0, thing)
        for number in np.unique(instance[..., 1][thing]):
            assert len(np.unique(instance[..., 0][instance[..., 1] == number])) == 1


def test_all_but_the_images_with_warts_are_as_without_them(tmp_path: Path) -> None:
    counts = COUNTS | {"coco_train": 15, "ade20k_train": 14}
    write_world(tmp_path, WorldOptions(seed=9, **counts))
    photos = zipfile.ZipFile(tmp_path / "train2017.zip")
    ade = zipfile.ZipFile(tmp_path / "ADEChallengeData2016.zip")
    base = "ADEChallengeData2016/{}/training/ADE_train_{:08d}{}"
    for k in range(15):
        task = Task(domain="a", split="train", seed=9, index=k, number=k + 1)
        same = photos.read(f"train2017/{k + 1:012d}.jpg") == coco_scene(task).jpeg
        assert same == (k not in (6, 7, 8, 9)), "crowds, missing and flat things are annotations"
    for k in range(14):
        scene = ade_scene(Task(domain="b", split="train", seed=9, index=k, number=k + 1))
        photo = ade.read(base.format("images", k + 1, ".JPG" if k == 10 else ".jpg"))
        assert (photo == scene.jpeg) == (k not in (6, 7, 8, 9))
        labels = ade.read(base.format("annotations", k + 1, ".png"))
        assert (labels == scene.labels) == (k not in (9, 11)), "the duplicate, the unlabelled"


def test_labels_are_those_of_the_scene(world: tuple[Path, dict[str, Any]]) -> None:
    root, _ = world
    lines = (root / "synthetic_ade20k_with_prompt_eng.txt").read_text().splitlines()
    names = {int(line.split(":")[0]): line.split(":")[1].split(",") for line in lines}
    rng = scene_rng(seed=9, domain="b", split="val", index=1)
    scene = render_scene(rng, "b")
    archive = zipfile.ZipFile(root / "ADEChallengeData2016.zip")
    base = "ADEChallengeData2016/{}/validation/ADE_val_00000002."
    picture = _pixels(archive.read(base.format("images") + "jpg")).astype(int)
    assert np.abs(picture - scene.image).mean() < 4
    semantic = _pixels(archive.read(base.format("annotations") + "png"))
    for segment in scene.segments:
        labels = np.unique(semantic[scene.ids == segment.id])
        assert len(set(labels) - {0}) == 1
        assert set(names[labels[-1]]) & set(CLASSES[segment.class_index].names)


def _names(path: Path) -> dict[int, list[str]]:
    pairs = [line.split(":") for line in path.read_text().splitlines()]
    return {int(k): v.split(",") for k, v in pairs if v != "invalid_class_id"}


def test_ade_full_layout(world: tuple[Path, dict[str, Any]]) -> None:
    """Colours, JSON and table agree; photographs are those of ADE20K's validation, as upstream."""
    root, _ = world
    rows = _rows(root / "synthetic_ade20k_full_classes.csv")
    assert [int(row["train_id"]) for row in rows] == list(range(80))
    names = _names(root / "synthetic_ade20k_full_with_prompt_eng.txt")
    assert [names[k + 1] for k in range(80)] == [row["name"].split(", ") for row in rows]
    name_of = {int(row["ade_index"]): row["name"] for row in rows}
    assert len(name_of) == 80 and max(name_of) > 256, "both colours are needed"
    small = zipfile.ZipFile(root / "ADEChallengeData2016.zip")
    archive = zipfile.ZipFile(root / "ADE20K_2021_17_01.zip")
    base = "ADE20K_2021_17_01/images/ADE/validation/synthetic/scene/ADE_val_{:08d}{}"
    files = [n for n in archive.namelist() if not n.endswith("/")]
    assert sorted(files) == sorted(
        base.format(k, end) for k in (1, 2, 3) for end in (".jpg", ".json", "_seg.png")
    )
    by_class: dict[str, set[int]] = {}
    instances = _rows(root / "synthetic_ade20k_instances.csv")
    scene_parse = {row["name"]: int(row["scene_parse_index"]) for row in instances}
    for number in (1, 2, 3):
        photo = archive.read(base.format(number, ".jpg"))
        stem = f"ADEChallengeData2016/{{}}/validation/ADE_val_{number:08d}."
        assert photo == small.read(stem.format("images") + "jpg")
        rgb = _pixels(archive.read(base.format(number, "_seg.png"))).astype(int)
        indices = rgb[..., 0] // 10 * 256 + rgb[..., 1]
        semantic = _pixels(small.read(stem.format("annotations") + "png"))
        assert np.array_equal(indices == 0, semantic == 0)
        entry = json.loads(archive.read(base.format(number, ".json")))["annotation"]
        assert entry["imsize"] == [128, 128, 3] and entry["filename"] == f"ADE_val_{number:08d}.jpg"
        blue = {5 * (thing["id"] + 1) for thing in entry["object"]}
        assert set(np.unique(rgb[..., 2])) - {0} == blue
        for thing in entry["object"]:
            mask = rgb[..., 2] == 5 * (thing["id"] + 1)
            assert set(indices[mask]) == {thing["name_ndx"]}
            assert name_of[thing["name_ndx"]] == thing["name"]
            assert set(semantic[mask]) == {scene_parse[thing["name"]]}
            x, y = thing["polygon"]["x"], thing["polygon"]["y"]
            assert bounding_box(mask) == [
                min(x), min(y), max(x) - min(x) + 1, max(y) - min(y) + 1,
            ]  # fmt: skip
            by_class.setdefault(thing["name"], set()).add(number)
    assert len(by_class) < 40, "most classes are absent"


def test_context_layout(world: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    root, _ = world
    names = _names(root / "synthetic_pascal_context_with_prompt_eng.txt")
    assert sorted(names) == list(range(1, 52)) and list(names.values()) == sorted(names.values())
    for archive in ("VOCtrainval_03-May-2010.tar", "trainval.tar.gz"):
        with tarfile.open(root / archive) as tar:
            tar.extractall(tmp_path, filter="data")
    head = (root / "trainval.tar.gz").read_bytes()[:8]
    assert head == b"\x1f\x8b\x08" + bytes(5), "gzip without name and time"
    voc = tmp_path / "VOCdevkit/VOC2010"
    stems = (voc / "ImageSets/Main/val.txt").read_text().splitlines()
    assert stems == [f"2010_{k:06d}" for k in range(1, 5)]
    assert {p.stem for p in (tmp_path / "trainval").iterdir()} == set(stems)
    for number, stem in enumerate(stems):
        domain = "ab"[number % 2]
        rng = scene_rng(seed=9, domain=domain, split="val", index=500_000 + number)  # type: ignore[arg-type]
        scene = render_scene(rng, domain)  # type: ignore[arg-type]
        picture = _pixels((voc / f"JPEGImages/{stem}.jpg").read_bytes()).astype(int)
        assert np.abs(picture - scene.image).mean() < 4
        labels = loadmat(tmp_path / "trainval" / f"{stem}.mat")["LabelMap"]
        assert labels.dtype == np.uint16 and labels.shape == (128, 128)
        for segment in scene.segments:
            found = set(labels[scene.ids == segment.id].tolist()) - {0}
            assert [names[k] for k in found] == [list(CLASSES[segment.class_index].names)]
        assert not labels[scene.ids == 0].any()


def test_class_name_files_have_the_upstream_shape(world: tuple[Path, dict[str, Any]]) -> None:
    root, _ = world
    for name, last, classes in (
        ("synthetic_coco_with_prompt_eng.txt", 200, 34),
        ("synthetic_ade20k_with_prompt_eng.txt", 34, 34),
        ("synthetic_ade20k_full_with_prompt_eng.txt", 80, 80),
        ("synthetic_pascal_context_with_prompt_eng.txt", 51, 51),
    ):
        lines = (root / name).read_text().splitlines()
        assert [int(line.split(":")[0]) for line in lines] == list(range(last + 1))
        assert lines[0] == "0:invalid_class_id"
        assert sum(not line.endswith(":invalid_class_id") for line in lines) == classes
    coco = (root / "synthetic_coco_with_prompt_eng.txt").read_text().splitlines()
    assert coco[1] == "1:red disc" and coco[92] == "92:grass,lawn"


def test_crowds_and_void_occur() -> None:
    crowds = void = 0
    for k in range(150):
        made = coco_scene(Task(domain="a", split="train", seed=1, index=k, number=k + 1))
        crowds += sum(s["iscrowd"] for s in made.segments)
        void += sum(s["area"] for s in made.segments) < 128 * 128 - 30
    assert crowds >= 1 and 3 <= void <= 40


def test_run_lengths_by_hand() -> None:
    mask = np.array([[1, 0, 1], [1, 0, 0]], bool)
    assert run_lengths(mask) == [0, 2, 2, 1, 1]
    assert run_lengths(~mask) == [2, 2, 1, 1]
    assert bounding_box(np.array([[0, 0, 0], [0, 1, 1]], bool)) == [1, 1, 2, 1]


def test_no_worker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--workers: 0: at least 1"):
        write_world(tmp_path, WorldOptions(seed=0, **COUNTS), workers=0)
