"""Conversion of ADE20K and COCO, one process, against the usual loops over segments.

The data are drawn at random: flat regions with ragged borders, things on them, and photographs of
smooth noise, as large as ADE20K's and in the layouts of the real releases.
"""

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.harness import Case

ADE20K_SIZE, COCO_SIZE = (512, 683), (480, 640)
"""Height and width of the usual image, in pixels."""
IMAGES = 96
CLASSES, THINGS = 150, 100
"""Classes; the last ``THINGS`` of them have instances."""
REGIONS, OBJECTS = 8, 12
"""Stuff and things per image, about as many as in real ones."""

Array = npt.NDArray[Any]


def cases(
    *,
    images: int = IMAGES,
    ade20k_size: tuple[int, int] = ADE20K_SIZE,
    coco_size: tuple[int, int] = COCO_SIZE,
) -> Iterator[Case]:
    """Both data sets; one process on both sides, and a new folder for every call."""
    with tempfile.TemporaryDirectory() as folder:
        yield from _ade20k(Path(folder), images=images, size=ade20k_size)
    with tempfile.TemporaryDirectory() as folder:
        yield _coco(Path(folder), images=images, size=coco_size)


def _ade20k(folder: Path, *, images: int, size: tuple[int, int]) -> Iterator[Case]:
    from benchmarks.naive_conversion import prepare_ade20k
    from possam.datasets.validate import validate_dataset

    arguments = write_ade20k(folder / "upstream", images=images, size=size)
    ours = _to_new_folder(folder, convert_ade20k, **arguments, workers=1)
    theirs = _to_new_folder(
        folder,
        prepare_ade20k,
        labels=arguments["root"] / "annotations/validation",
        instances=arguments["instances_root"] / "validation",
        instance_classes={kind: CLASSES - THINGS + kind - 1 for kind in range(1, THINGS + 1)},
    )

    def checked() -> Path:
        out = ours()
        validate_dataset(out)
        return out

    note = "panoptic and semantic maps, and instances; ours also decodes every photograph"
    for name, run, more in (
        ("ade20k", ours, " and hashes every file"),
        ("ade20k_validated", checked, ", and reads and checks all that was written"),
    ):
        yield Case(
            name=f"conversion/{name}",
            reference="Mask2Former's three scripts: a mask over the image for each segment",
            ours=run,
            theirs=theirs,
            error=(panoptic_difference, "share of pixels of another class or another segment"),
            items=images,
            unit="image",
            target=5.0 if run is ours else None,
            note=note + more,
        )


def _coco(folder: Path, *, images: int, size: tuple[int, int]) -> Case:
    from benchmarks.naive_conversion import prepare_coco_semantic

    arguments = write_coco(folder / "upstream", images=images, size=size)
    return Case(
        name="conversion/coco",
        reference="Mask2Former's script for semantic maps: a mask over the image for each segment",
        ours=_to_new_folder(folder, convert_coco, **arguments, workers=1),
        theirs=_to_new_folder(
            folder,
            prepare_coco_semantic,
            panoptic_json=arguments["panoptic_json"],
            panoptic_png=arguments["panoptic_png"],
            classes={key: key - 1 for key in range(1, CLASSES + 1)},
        ),
        error=(semantic_difference, "share of pixels of another class"),
        items=images,
        unit="image",
        note="the reference writes only semantic maps; ours also decodes photographs, recounts "
        "areas and boxes, encodes instances as run lengths, and hashes files",
    )


def convert_coco(*, split: str, out: Path, workers: int, **files: Any) -> None:
    """Convert a folder in COCO's layout; ``files`` as :func:`write_coco` returns them."""
    from possam.datasets.conversion import convert
    from possam.datasets.upstream.coco import read_coco

    convert(read_coco(**files), name="coco", split=split, out=out, workers=workers)


def convert_ade20k(*, split: str, out: Path, workers: int, **files: Any) -> None:
    """As :func:`convert_coco`, in ADE20K's layout."""
    from possam.datasets.conversion import convert
    from possam.datasets.upstream.ade20k import read_ade20k

    source = read_ade20k(split=split, **files)
    convert(source, name="ade20k", split=split, out=out, workers=workers)


def _to_new_folder(
    folder: Path, convert: Callable[..., object], **arguments: Any
) -> Callable[[], Path]:
    """A function that converts into a new folder below ``folder`` at each call, and returns it."""

    def run() -> Path:
        out = Path(tempfile.mkdtemp(dir=folder), "out")
        convert(**arguments, out=out)
        return out

    return run


def panoptic_difference(ours: Path, theirs: Path) -> float:
    """Share of pixels with another class, or in a segment whose first pixel is another one."""
    from possam.datasets.pixels import read_ids

    entries = [json.loads((ours / "annotations.json").read_text())["annotations"]]
    entries.append(json.loads((theirs / "panoptic.json").read_text())["annotations"])
    differing, total = 0, 0
    for pair in zip(*entries, strict=True):
        maps = [
            _identity(read_ids(folder / "panoptic" / entry["file_name"]), entry["segments_info"])
            for folder, entry in zip((ours, theirs), pair, strict=True)
        ]
        differing += int((maps[0] != maps[1]).any(-1).sum())
        total += maps[0][..., 0].size
    return differing / total


def _identity(ids: Array, segments: list[dict[str, Any]]) -> Array:
    """(H, W, 2): first pixel and class of each pixel's segment; -1 void. Ids do not matter."""
    classes = {segment["id"]: segment["category_id"] for segment in segments}
    values, first, own = np.unique(ids, return_index=True, return_inverse=True)
    table = [(-1, -1) if v == 0 else (f, classes[v]) for v, f in zip(values, first, strict=True)]
    return np.array(table)[own.reshape(ids.shape)]


def semantic_difference(ours: Path, theirs: Path) -> float:
    """Share of pixels with another value."""
    from possam.datasets.pixels import decode_file

    shares = [
        (decode_file(path)[0] != decode_file(theirs / "semantic" / path.name)[0]).mean()
        for path in sorted((ours / "semantic").iterdir())
    ]
    return float(np.mean(shares))


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One drawn image: (H, W) maps, 0 is none.

    Attributes:
        photo: uint8 RGB (H, W, 3).
        labels: uint8, 1 + class index.
        kinds, numbers: uint8, instance class 1..THINGS and instance id.
    """

    photo: Array
    labels: Array
    kinds: Array
    numbers: Array


def draw_scene(seed: int, *, size: tuple[int, int]) -> Scene:
    """A scene that is a pure function of its arguments."""
    from PIL import Image

    height, width = size
    random = np.random.default_rng(seed)

    def field(cells: int) -> Array:
        """Smooth noise of unit variance with ``cells`` waves from left to right."""
        coarse = random.standard_normal((max(2, cells * height // width), cells), np.float32)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        return np.asarray(image)

    kinds, numbers = np.zeros((2, height, width), np.uint8)
    stuff = 1 + random.permutation(CLASSES - THINGS)[:REGIONS].astype(np.uint8)
    labels = stuff[np.argmax([field(5) + 0.15 * field(40) for _ in stuff], axis=0)]
    labels[field(12) > 2.0] = 0
    down, right = np.mgrid[:height, :width]
    ragged = 1 + 0.2 * field(32) + 0.05 * field(80)
    for number in range(1, OBJECTS + 1):
        radius = height * np.exp(random.uniform(np.log(0.02), np.log(0.2))) * ragged
        y, x, aspect = random.uniform(0, height), random.uniform(0, width), random.uniform(0.5, 2)
        inside = (down - y) ** 2 * aspect + (right - x) ** 2 / aspect < radius**2
        kind = random.integers(1, THINGS + 1)
        kinds[inside], numbers[inside] = kind, number
        labels[inside] = CLASSES - THINGS + kind
    layers = ((4, 40.0), (16, 25.0), (64, 12.0), (256, 5.0))
    channels = [128 + sum(size * field(cells) for cells, size in layers) for _ in range(3)]
    photo = np.stack(channels, axis=-1).clip(0, 255).astype(np.uint8)
    return Scene(photo=photo, labels=labels, kinds=kinds, numbers=numbers)


def write_ade20k(root: Path, *, images: int, size: tuple[int, int]) -> dict[str, Any]:
    """Drawn scenes in the layout of ``ADEChallengeData2016``; returns the arguments of
    ``convert_ade20k`` except ``out`` and ``workers``."""
    for number in range(1, images + 1):
        scene, name = draw_scene(number, size=size), f"validation/ADE_val_{number:08d}"
        things = np.stack([scene.kinds, scene.numbers, np.zeros_like(scene.kinds)], axis=-1)
        _save(root / f"images/{name}.jpg", scene.photo)
        _save(root / f"annotations/{name}.png", scene.labels)
        _save(root / f"annotations_instance/{name}.png", things)
    table = ["scene_parse_index,instance_index,name"]
    for index in range(1, CLASSES + 1):
        thing = index - (CLASSES - THINGS)
        table.append(f"{index},{thing if thing > 0 else ''},class {index}")
    (root / "table.csv").write_text("\n".join(table) + "\n", encoding="utf-8")
    return {
        "root": root,
        "instances_root": root / "annotations_instance",
        "class_names": _write_names(root),
        "instance_classes_csv": root / "table.csv",
        "split": "val",
    }


def write_coco(root: Path, *, images: int, size: tuple[int, int]) -> dict[str, Any]:
    """Drawn scenes in the layout of COCO, with boxes for the polygons of instances; returns the
    arguments of ``convert_coco`` except ``out`` and ``workers``."""
    records: list[Any] = []
    annotations: list[Any] = []
    boxes: list[Any] = []
    for key in range(1, images + 1):
        scene, name = draw_scene(key, size=size), f"{key:012d}"
        keys = np.where(scene.numbers > 0, 256 + scene.numbers.astype(np.int64), scene.labels)
        keys = keys * 7919  # uses all three channels, as COCO's random colours do
        segments = []
        for value in np.unique(keys[keys > 0]).tolist():
            rows, columns = np.nonzero(keys == value)
            label = int(scene.labels[rows[0], columns[0]])
            x, y = int(columns.min()), int(rows.min())
            box = [x, y, int(columns.max()) + 1 - x, int(rows.max()) + 1 - y]
            about = {"category_id": label, "area": len(rows), "bbox": box, "iscrowd": 0}
            segments.append({"id": value, **about})
            if label > CLASSES - THINGS:
                right, low = x + box[2], y + box[3]
                outline = [[x, y, right, y, right, low, x, low]]
                about |= {"image_id": key, "segmentation": outline}
                boxes.append({"id": len(boxes) + 1, **about})
        _save(root / f"val2017/{name}.jpg", scene.photo)
        colours = np.stack([keys >> 8 * channel & 255 for channel in range(3)], axis=-1)
        _save(root / f"panoptic_val2017/{name}.png", colours.astype(np.uint8))
        about = {"id": key, "file_name": f"{name}.jpg", "height": size[0], "width": size[1]}
        records.append(about)
        entry = {"image_id": key, "file_name": f"{name}.png", "segments_info": segments}
        annotations.append(entry)
    categories = [
        {"id": key, "name": f"class {key}", "isthing": int(key > CLASSES - THINGS)}
        for key in range(1, CLASSES + 1)
    ]
    for name, items in (("panoptic", annotations), ("instances", boxes)):
        content = {"images": records, "annotations": items, "categories": categories}
        (root / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return {
        "images": root / "val2017",
        "panoptic_json": root / "panoptic.json",
        "panoptic_png": root / "panoptic_val2017",
        "instances_json": root / "instances.json",
        "class_names": _write_names(root),
        "split": "val",
    }


def _write_names(root: Path) -> Path:
    path = root / "names.txt"
    lines = ["0:invalid_class_id", *(f"{index}:class {index}" for index in range(1, CLASSES + 1))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _save(path: Path, pixels: Array) -> None:
    """JPEG or PNG, as the name says, the way that Pillow writes them."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=85)
