"""What is unusual in upstream's files passes, is counted and named; what is broken is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as run_length

from possam import cli
from possam.assets.archives import unpack
from possam.datasets.catalogue import datasets
from possam.datasets.conversion import convert
from possam.datasets.format import ConvertedDataset
from possam.datasets.loader import SegmentationDataset
from possam.datasets.upstream import ade20k, coco
from possam.datasets.validate import validate_dataset
from possam.datasets.warts import KINDS, Tally, describe_warts
from possam.evaluation.instance import InstanceEvaluator
from possam.params.project import Project
from possam.runtime.errors import InputError
from possam.stages.convert import _convert_checked
from possam.synthetic.archives import write_world
from tests.support.coco_oracle import oracle
from tests.support.layouts import (
    coco_ids,
    convert_ade20k,
    convert_ade20k_full,
    convert_coco,
    make_ade20k,
    make_ade20k_full,
    make_coco,
    save_photo,
    save_rgb_ids,
    write,
)

GREY = (124, 116, 104)

FLAT = {
    "id": 918, "image_id": 12, "category_id": 1, "iscrowd": 0, "area": 0.0,
    "bbox": [1.5, 2.25, 1.0, 0.0],
    "segmentation": [[1.5, 2.25, 1.5, 2.25, 2.5, 2.25, 2.5, 2.25]],
}  # fmt: skip
"""A polygon without an area, as annotation 918 of COCO's instances_train2017.json."""


def once(*ids: int) -> dict[str, Any]:
    return {"count": len(ids), "images": len(ids), "ids": list(ids)}


def edit(path: Path, change: Callable[[Any], None]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def add_instance(root: Path, **changes: Any) -> None:
    edit(root / "instances.json", lambda data: data["annotations"].append(FLAT | changes))


def coco_warts(arguments: dict[str, Any]) -> dict[str, Any]:
    """The warts of a valid conversion, but for image 34, which has no instance in the miniature."""
    warts = convert_coco(**arguments)["warts"]
    validate_dataset(arguments["out"])
    assert warts.pop("no_instance") == once(34)
    return dict(warts)


def noise(mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(3).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


PHOTOS: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "grey": ("L", {}, "grey_photo"),
    "CMYK": ("CMYK", {}, "cmyk_photo"),
    "upside down by EXIF": ("RGB", {"exif": turned(3)}, "exif_orientation"),
    "on its side by EXIF": ("RGB", {"exif": turned(6)}, "exif_orientation"),
    "upright by EXIF": ("RGB", {"exif": turned(1)}, None),
    "damaged EXIF": ("RGB", {"exif": b"Exif\0\0garbage"}, "unreadable_exif"),
    "PNG by content": ("RGB", {"format": "PNG"}, None),
    "with transparency": ("RGBA", {"format": "PNG"}, "other_photo"),
}


@pytest.mark.parametrize("case", PHOTOS)
def test_photographs_are_read_as_stored_and_as_rgb(tmp_path: Path, case: str) -> None:
    mode, options, kind = PHOTOS[case]
    arguments = make_coco(tmp_path)
    path = arguments["images"] / "000000000012.jpg"
    noise(mode).save(path, **options)
    assert coco_warts(arguments) == ({kind: once(12)} if kind else {})
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB"))
    assert expected.shape == (4, 6, 3), "Pillow does not turn it"
    dataset = ConvertedDataset.open(arguments["out"])
    assert np.array_equal(dataset.image(0), expected)
    sample = SegmentationDataset(dataset, augmentation=None, padding=GREY, seed=0)[0]
    assert sample.image.shape == (3, 4, 6) and len(sample.masks) == 2


def test_orientation_is_found_wherever_it_is_written(tmp_path: Path) -> None:
    """In EXIF data, or in XMP, as ``possam predict`` finds it."""
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="3"/></x:xmpmeta>'
    arguments = make_coco(tmp_path)
    noise().save(arguments["images"] / "000000000012.jpg", xmp=xmp)
    assert coco_warts(arguments) == {"exif_orientation": once(12)}


def test_a_turned_tiff_is_refused_since_it_would_be_read_turned(tmp_path: Path) -> None:
    arguments = make_coco(tmp_path)
    path = arguments["images"] / "000000000012.jpg"
    path.unlink()
    noise().save(path.with_suffix(".tif"), exif=turned(3))
    with pytest.raises(InputError, match=r"12\.tif: a TIFF with EXIF orientation 3; save it upri"):
        convert_coco(**arguments)
    noise().save(path.with_suffix(".tif"), exif=turned(1))
    convert_coco(**arguments)


def test_deep_grey_photographs_are_scaled(tmp_path: Path) -> None:
    arguments = make_coco(tmp_path)
    path = arguments["images"] / "000000000012.jpg"
    path.unlink()
    deep = (np.arange(24, dtype=np.uint16) * 2570).reshape(4, 6)
    Image.fromarray(deep).save(path.with_suffix(".png"))
    assert coco_warts(arguments) == {"other_photo": once(12), "renamed_photo": once(12)}
    assert ConvertedDataset.open(arguments["out"]).image(0)[..., 1].ravel().tolist() == list(
        range(0, 240, 10)
    )


def test_most_images_may_be_empty_if_it_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_coco(tmp_path)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "panoptic.json").rename(tmp_path / "annotations/panoptic_val2017.json")
    (tmp_path / "panoptic_val2017").rename(tmp_path / "annotations/panoptic_val2017")

    def clear(data: Any) -> None:
        for entry in data["annotations"]:
            entry["segments_info"] = []
            path = tmp_path / "annotations/panoptic_val2017" / entry["file_name"]
            save_rgb_ids(path, np.zeros((4, 6), int))

    edit(tmp_path / "annotations/panoptic_val2017.json", clear)
    line = ["convert-files", "coco", str(tmp_path), "--split", "val2017", "--class-names"]
    line += [str(tmp_path / "names.txt"), "--out", str(tmp_path / "out")]
    assert cli.main(line) == 2
    assert "2 of 2 images have no" in capsys.readouterr().err
    assert cli.main([*line, "--allow-empty"]) == 0
    assert "2 images without a labelled pixel" in capsys.readouterr().out


def test_labels_on_the_turned_photograph_are_refused_with_the_remedy(tmp_path: Path) -> None:
    arguments = make_coco(tmp_path)
    photo = noise().transpose(Image.Transpose.ROTATE_90)
    photo.save(arguments["images"] / "000000000012.jpg", exif=turned(6))
    with pytest.raises(InputError, match=r"12\.jpg: 4x6 pixels.*turn the photograph's pixels"):
        convert_coco(**arguments)
    arguments = make_ade20k(tmp_path / "ade")
    photo.crop((0, 0, 3, 5)).save(tmp_path / "ade/images/validation/ADE_val_00000001.jpg")
    with pytest.raises(InputError, match=r"5x3 pixels.*turn the photograph's pixels"):
        convert_ade20k(**arguments)


def test_bytes_that_a_jpeg_decoder_skips_are_no_fault(tmp_path: Path) -> None:
    arguments = make_coco(tmp_path)
    path = arguments["images"] / "000000000012.jpg"
    path.write_bytes(path.read_bytes()[:-2] + bytes(40) + b"\xff\xd9")
    assert coco_warts(arguments) == {}


def test_equal_photographs_are_named_all(tmp_path: Path) -> None:
    arguments = make_coco(tmp_path)
    shutil.copy(arguments["images"] / "000000000012.jpg", arguments["images"] / "000000000034.jpg")
    assert coco_warts(arguments) == {"duplicate_photo": once(12, 34)}


def test_an_annotation_of_area_0_is_kept_and_counts_as_in_cocos_evaluation(tmp_path: Path) -> None:
    arguments = make_coco(tmp_path)
    add_instance(tmp_path)
    assert coco_warts(arguments) == {
        "instance_without_area": once(12), "instance_without_pixel": once(12),
    }  # fmt: skip
    dataset = ConvertedDataset.open(arguments["out"])
    instances = dataset.instances()
    flat = instances["annotations"][2]
    assert (flat["area"], flat["bbox"], flat["category_id"]) == (0.0, [1.5, 2.25, 1.0, 0.0], 0)
    assert not run_length.decode(flat["segmentation"]).any()
    disc = (coco_ids() == 300)[None]
    evaluator = InstanceEvaluator(instances, image_ids=[12], num_classes=3)
    evaluator.update(12, disc, np.array([0]), np.array([0.9]))
    matches = evaluator.finish()
    assert matches.targets[0].tolist() == [2, 0, 0], "a miss, whatever is predicted"
    found = {"masks": disc, "labels": [0], "scores": [0.9]}
    _, _, per_class = oracle(instances, [found], [0])
    assert per_class[0] == pytest.approx(51 / 101), "recall ends at one half"
    assert matches.matched.all()


def test_a_tiny_mask_without_a_pixel_is_named(tmp_path: Path) -> None:
    arguments = make_coco(tmp_path)
    add_instance(tmp_path, area=0.2)
    assert coco_warts(arguments) == {"instance_without_pixel": once(12)}


def test_crowd_regions_of_one_class_are_counted_beyond_the_first(tmp_path: Path) -> None:
    arguments = make_coco(tmp_path)
    ids = coco_ids()
    ids[:1, 5], ids[1:2, 5] = 8, 7
    save_rgb_ids(arguments["panoptic_png"] / "000000000034.png", ids)
    more = [{"id": key, "category_id": 7, "iscrowd": 1, "area": 1, "bbox": []} for key in (8, 7)]
    edit(
        arguments["panoptic_json"],
        lambda data: data["annotations"][1]["segments_info"].extend(more),
    )
    assert coco_warts(arguments) == {"several_crowds": {"count": 2, "images": 1, "ids": [34]}}


@pytest.mark.parametrize("order", [(7, 8, 9), (9, 8, 7), (8, 9, 7)])
def test_upstreams_order_of_crowd_regions_does_not_matter(
    tmp_path: Path, order: tuple[int, ...]
) -> None:
    """panopticapi excuses predictions on the last one: this is always the largest."""
    arguments = make_coco(tmp_path)
    ids = coco_ids()  # bars 9 at the right: 4 pixels, of which 8 takes one and 7 takes one
    ids[:1, 5], ids[1:2, 5] = 8, 7
    save_rgb_ids(arguments["panoptic_png"] / "000000000034.png", ids)
    crowds = [{"id": key, "category_id": 7, "iscrowd": 1} for key in order]

    def reorder(data: Any) -> None:
        grass, disc, _ = data["annotations"][1]["segments_info"]
        data["annotations"][1]["segments_info"] = [crowds[0], disc, crowds[1], grass, crowds[2]]

    edit(arguments["panoptic_json"], reorder)
    convert_coco(**arguments)
    segments = ConvertedDataset.open(arguments["out"]).images[1].segments
    assert [segment.id for segment in segments] == [7, 300, 8, 70000, 9]


def empty_labels(root: Path, number: int, *folders: str) -> None:
    for folder in folders:
        path = root / folder / "validation" / f"ADE_val_{number:08d}.png"
        Image.fromarray(np.zeros_like(np.asarray(Image.open(path)))).save(path)


def test_images_without_labels_and_without_segments_are_told_apart(tmp_path: Path) -> None:
    arguments = make_ade20k(tmp_path, count=4)
    empty_labels(tmp_path, 2, "annotations", "annotations_instance")
    empty_labels(tmp_path, 3, "annotations_instance")
    path = tmp_path / "annotations/validation/ADE_val_00000003.png"
    Image.fromarray(np.full((3, 5), 2, np.uint8)).save(path)  # beds, no instance: panoptic void
    warts = convert_ade20k(**arguments)["warts"]
    assert warts == {"unlabelled": once(2), "no_segment": once(3), "no_instance": once(2, 3)}
    report = validate_dataset(arguments["out"])
    assert (report["void_images"], report["empty_images"]) == ([2], [2, 3])
    samples = SegmentationDataset(
        ConvertedDataset.open(arguments["out"]), augmentation=None, padding=(0, 0, 0), seed=0
    )
    assert [len(samples[k].masks) for k in range(4)] == [5, 0, 0, 5]


def test_upper_case_suffixes(tmp_path: Path) -> None:
    for make, run, folder in (
        (make_ade20k, convert_ade20k, "images/validation"),
        (make_ade20k_full, convert_ade20k_full, "images/ADE/validation/urban/street"),
    ):
        root = tmp_path / make.__name__
        arguments = make(root, count=2)
        photo = root / folder / "ADE_val_00000002.jpg"
        photo.rename(photo.with_suffix(".JPG"))
        assert run(**arguments)["warts"] == {"upper_case_suffix": once(2)}
        dataset = ConvertedDataset.open(arguments["out"])
        assert [record.file.suffix for record in dataset.images] == [".jpg", ".JPG"]
        assert dataset.image(1).shape == (3, 5, 3)
        validate_dataset(arguments["out"])
        save_photo(photo, 3, 5)
        with pytest.raises(InputError, match=r"ADE_val_00000002\.\w+ has the same name"):
            run(**arguments)


def test_ids_are_listed_up_to_a_hundred() -> None:
    tally = Tally()
    for number in range(150):
        tally.add(number, {"warts": {"grey_photo": 1}, "images": str(number)})
    found = tally.to_json()["grey_photo"]
    assert (found["count"], found["images"], found["ids"]) == (150, 150, list(range(100)))
    assert describe_warts({"grey_photo": found}) == [
        "150 grey photographs (read as RGB): image 0, 1, 2, 3, 4, ..."
    ]


def test_the_validator_counts_unlabelled_images_again(tmp_path: Path) -> None:
    arguments = make_ade20k(tmp_path, count=3)
    empty_labels(tmp_path, 2, "annotations", "annotations_instance")
    convert_ade20k(**arguments)
    edit(arguments["out"] / "manifest.json", lambda data: data["warts"].pop("unlabelled"))
    with pytest.raises(InputError, match=r"warts\.unlabelled does not match"):
        validate_dataset(arguments["out"])


BROKEN: dict[str, Callable[[Any, Any], None]] = {
    "segments_info null": lambda s, i: s["annotations"][1].update(segments_info=None),
    "segment id a list": lambda s, i: s["annotations"][1]["segments_info"][0].update(id=[1]),
    "segment class a list": lambda s, i: s["annotations"][1]["segments_info"][0].update(
        category_id=[1]
    ),
    "segment twice": lambda s, i: s["annotations"][1]["segments_info"][0].update(id=300),
    "width -1": lambda s, i: s["images"][1].update(width=-1),
    "area null": lambda s, i: i.update(area=None),
    "area text": lambda s, i: i.update(area="4"),
    "area negative": lambda s, i: i.update(area=-1.0),
    "area NaN": lambda s, i: i.update(area=float("nan")),
    "box of three": lambda s, i: i.update(bbox=[1, 2, 3]),
    "iscrowd 2": lambda s, i: i.update(iscrowd=2),
    "class a list": lambda s, i: i.update(category_id=[1]),
    "no polygon": lambda s, i: i.update(segmentation=[]),
    "two points": lambda s, i: i.update(segmentation=[[1, 1, 2, 2]]),
    "odd coordinates": lambda s, i: i.update(segmentation=[[1, 1, 2, 2, 3, 3, 4]]),
    "NaN in a polygon": lambda s, i: i.update(segmentation=[[1, 1, float("nan"), 2, 3, 3]]),
    "polygon beyond all images": lambda s, i: i.update(segmentation=[[1, 1, 1e9, 2, 3, 3]]),
    "runs too short": lambda s, i: i.update(segmentation={"size": [4, 6], "counts": [10, 5]}),
    "negative run": lambda s, i: i.update(segmentation={"size": [4, 6], "counts": [30, -6]}),
    "runs of another size": lambda s, i: i.update(segmentation={"size": [6, 4], "counts": [24]}),
    "runs null": lambda s, i: i.update(segmentation={"size": [4, 6], "counts": None}),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_annotations_are_refused_before_the_first_image(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = make_coco(tmp_path)
    add_instance(tmp_path, id=103_000, image_id=34)
    panoptic, instances = (
        json.loads((tmp_path / f"{kind}.json").read_text()) for kind in ("panoptic", "instances")
    )
    BROKEN[case](panoptic, instances["annotations"][-1])
    write(tmp_path / "panoptic.json", panoptic)
    write(tmp_path / "instances.json", instances)
    monkeypatch.setattr(coco, "_convert", None)
    with pytest.raises(InputError, match=r"annotation 103000:|image 34|int.* is not"):
        convert_coco(**arguments)
    assert not list(tmp_path.glob("*converted*"))


def test_maps_that_were_not_unpacked_are_missed_before_the_first_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = make_coco(tmp_path)
    (arguments["panoptic_png"] / "000000000034.png").unlink()
    monkeypatch.setattr(coco, "_convert", None)
    with pytest.raises(InputError, match=r"34\.png: .*\(1 such PNGs of 2\).*count of entries"):
        convert_coco(**arguments)


def test_a_refused_result_keeps_its_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = make_ade20k(tmp_path, count=3)
    full = (tmp_path / "annotations/validation/ADE_val_00000001.png").read_bytes()
    for number in (1, 2):
        empty_labels(tmp_path, number, "annotations", "annotations_instance")
    converted: list[int] = []
    original = ade20k._convert

    def spy(task: Any, **options: Any) -> Any:
        converted.append(task.id)
        return original(task, **options)

    monkeypatch.setattr(ade20k, "_convert", spy)
    out = arguments["out"]

    def run() -> dict[str, Any]:
        files = {key: value for key, value in arguments.items() if key not in ("out", "workers")}
        source = ade20k.read_ade20k(**files)
        return _convert_checked(source, "ade20k", "val", out=out, workers=1)

    with pytest.raises(InputError, match="2 of 3 images have no labelled pixel"):
        run()
    assert converted == [1, 2, 3] and not out.exists()
    with pytest.raises(InputError, match=r"converted: not written; .* \S+\.converted\.partial$"):
        run()
    assert converted == [1, 2, 3], "nothing is converted again"
    (tmp_path / "annotations/validation/ADE_val_00000002.png").write_bytes(full)
    assert run()["void_images"] == [1]
    assert converted == [1, 2, 3, 2], "only what changed"
    assert sorted(path.name for path in out.iterdir()) == [
        "annotations.json", "instances.json", "manifest.json", "panoptic", "semantic",
    ]  # fmt: skip
    assert [path.name for path in tmp_path.glob("*converted*")] == ["converted"]


def test_parts_that_other_code_made_are_not_kept(tmp_path: Path) -> None:
    arguments = make_coco(tmp_path)
    source = coco.read_coco(
        **{key: value for key, value in arguments.items() if key not in ("split", "out", "workers")}
    )
    staged = tmp_path / ".converted.partial/parts/000000000012.png.json"

    def run(code: str) -> int:
        with pytest.raises(InputError, match="refused"):
            convert(
                source, name="coco", split="val", out=arguments["out"], workers=1, code=code,
                check=refuse,
            )  # fmt: skip
        return staged.stat().st_mtime_ns

    def refuse(folder: Path) -> None:
        raise InputError("refused")

    first = run("a")
    assert run("a") == first
    assert run("b") > first


def test_the_command_converts_a_sample_with_an_annotation_of_area_0(
    tmp_path: Path, shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sample, root = shared / "samples/coco", tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    (root / "val2017").symlink_to(sample / "val2017")
    for name in ("panoptic_val2017", "panoptic_val2017.json"):
        (root / "annotations" / name).symlink_to(sample / "annotations" / name)
    panoptic = json.loads((sample / "annotations/panoptic_val2017.json").read_text())
    things = [entry for entry in panoptic["categories"] if entry["isthing"]]
    content = {"images": panoptic["images"], "categories": things}
    flat = FLAT | {"image_id": 142238, "category_id": 58}
    write(root / "annotations/instances_val2017.json", content | {"annotations": [flat]})
    names = shared / "upstream/openseg_labels/coco_panoptic_with_prompt_eng.txt"
    line = ["convert-files", "coco", str(root), "--split", "val2017"]
    assert cli.main([*line, "--class-names", str(names), "--out", str(tmp_path / "out")]) == 0
    assert "1 instance annotations of area 0: image 142238" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["warts"]["instance_without_area"] == once(142238)


WORLD = {
    ("coco", "train"): {
        "grey_photo": once(7), "cmyk_photo": once(8), "exif_orientation": once(9),
        "duplicate_photo": once(1, 10), "several_crowds": once(11), "no_instance": once(12),
        "instance_without_area": once(13), "instance_without_pixel": once(13),
    },
    ("coco", "val"): {
        "grey_photo": once(500_007), "cmyk_photo": once(500_008),
        "exif_orientation": once(500_009), "duplicate_photo": once(500_001, 500_010),
        "several_crowds": once(500_011), "no_instance": once(500_012),
    },
    ("ade20k", "train"): {
        "grey_photo": once(7), "cmyk_photo": once(8), "exif_orientation": once(9),
        "duplicate_photo": once(1, 10), "upper_case_suffix": once(11), "unlabelled": once(12),
        "no_instance": once(12),
    },
    ("ade20k", "val"): {
        "grey_photo": once(7), "cmyk_photo": once(8), "exif_orientation": once(9),
        "duplicate_photo": once(1, 10), "upper_case_suffix": once(11),
    },
    ("ade20k_full", "val"): {
        "grey_photo": once(7), "cmyk_photo": once(8), "exif_orientation": once(9),
        "duplicate_photo": once(1, 10), "upper_case_suffix": once(11),
    },
    ("pascal_context_459", "val"): {},
}  # fmt: skip


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """The world at smoke scale: the path of a part (an asset's file, or its unpacked folder)."""
    root, project = tmp_path_factory.mktemp("world"), Project("smoke")
    assert project.scale.world is not None
    write_world(root, project.scale.world)

    def part(asset: str) -> Path:
        declared = project.assets[asset]
        file, folder = root / declared.file, root / "raw" / asset
        if declared.unpack and not folder.exists():
            unpack(file, folder)
        return folder if declared.unpack else file

    return lambda dataset, split: {  # type: ignore[return-value]
        name: part(asset) for name, asset in project.dataset_assets(dataset, split).items()
    }


@pytest.mark.parametrize(("dataset", "split"), WORLD)
def test_the_world_has_warts_and_the_manifest_names_each(
    unpacked: Callable[[str, str], Any], tmp_path: Path, dataset: str, split: str
) -> None:
    declared = datasets()[dataset]
    source = declared.read(unpacked(dataset, split), split)
    manifest = convert(source, name=dataset, split=split, out=tmp_path / "out", workers=1)
    assert manifest["warts"] == WORLD[dataset, split]
    assert set(manifest["warts"]) <= set(KINDS)
    validate_dataset(tmp_path / "out", more=declared.faults)


def test_the_worlds_inner_zip_states_too_few_entries(unpacked: Callable[[str, str], Any]) -> None:
    folder = unpacked("coco", "train")["panoptic"]
    record = json.loads((folder / "unpacked.json").read_text())
    assert record["warts"] == {"panoptic_train2017.zip": "its end record counts 9 of 25 entries"}
    assert len(list((folder / "annotations/panoptic_train2017").iterdir())) == 24
    assert not (folder / "__MACOSX").exists()
