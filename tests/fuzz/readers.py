"""The readers of foreign files: what each gets, and what must go on to work with what it accepts.

``read`` raises InputError to refuse. It returns the later stages, in which an InputError is a fault
as well: nothing that one stage accepts may be refused by the next.
"""

import functools
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from pycocotools import mask as run_length
from scipy.io import savemat

from possam.datasets.class_names import read_class_index
from possam.datasets.coco_json import check_instance
from possam.datasets.conversion import convert
from possam.datasets.format import ConvertedDataset
from possam.datasets.images import check_photo, convert_regions
from possam.datasets.loader import SegmentationDataset
from possam.datasets.masks import decode_counts
from possam.datasets.pixels import decode_file, decode_ids, read_image
from possam.datasets.records import Source
from possam.datasets.upstream import ade20k, ade20k_full, coco
from possam.datasets.upstream.pascal_context_459 import read_label_map
from possam.datasets.validate import validate_dataset
from possam.datasets.warts import find_warts
from possam.evaluation.options import EvaluationOptions
from possam.evaluation.run_lengths import encode_array, encode_file
from possam.evaluation.score import score
from possam.model.encoders.sam import ARCHITECTURES, build_sam, load_sam
from possam.params.project import Project
from possam.pictures.photographs import read_photograph
from possam.runtime.files import read_json
from possam.training.checkpoint import load_trained, save_trained
from tests.support.layouts import (
    COCO_NAMES,
    context_labels,
    make_coco,
    save_photo,
    save_rgb_ids,
    write,
)
from tests.support.training_fakes import FROZEN, possam, weights_metadata

GREY = (124, 116, 104)

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT.parent / "shared/samples"
SETTINGS = EvaluationOptions(
    bootstrap_samples=2, bootstrap_seed=0, confidence=0.9, check_panopticapi=False, batch_size=1,
    compile="none", precision="fp32",
)  # fmt: skip

Later = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Reader:
    """``make`` writes sound files into a folder; one of ``files`` (patterns) is then mutated.

    ``outputs``: what ``read`` may write; it must not be there after a refusal.
    """

    make: Callable[[Path], object]
    files: tuple[str, ...]
    read: Callable[[Path], Later]
    outputs: tuple[str, ...] = field(default=("out",))


def _samples(folder: Path, pattern: str, *, limit: int = 4) -> None:
    """Copy the real samples that match, where they are beside this checkout."""
    found = [path for path in sorted(SAMPLES.rglob(pattern)) if path.stat().st_size < 300_000]
    for number, path in enumerate(found[:limit]):
        shutil.copyfile(path, folder / f"sample_{number}{path.suffix.lower()}")


def _only(folder: Path, pattern: str) -> Path:
    """The file that was mutated: its name is in ``mutated``."""
    return folder / (folder / "mutated").read_text()


def _read_coco(folder: Path) -> Later:
    source = coco.read_coco(
        images=folder / "val2017",
        panoptic_json=folder / "panoptic.json",
        panoptic_png=folder / "panoptic_val2017",
        instances_json=folder / "instances.json",
        class_names=folder / "names.txt",
    )
    return _convert(source, folder)


def _convert(source: Source, folder: Path) -> Later:
    out = folder / "out"

    def check(path: Path) -> None:
        validate_dataset(path)

    convert(source, name="coco", split="val", out=out, workers=1, check=check)
    return lambda: _use(ConvertedDataset.open(out))


def _use(dataset: ConvertedDataset) -> None:
    """The loader, the instances' masks, and the score of the ground truth as a prediction."""
    samples = SegmentationDataset(dataset, augmentation=None, padding=GREY, seed=0)
    for position in range(len(dataset)):
        samples.sample(position)
    for entry in dataset.instances()["annotations"]:
        run_length.decode(entry["segmentation"])
    found = score(
        dataset=dataset,
        predictions=dataset.directory / "annotations.json",
        segmentations=dataset.directory / "panoptic",
        evaluation=SETTINGS,
    )
    segments = [s for record in dataset.images for s in record.segments if not s.is_crowd]
    if segments and found["metrics"]["pq"] != 100.0:
        raise AssertionError(f"the ground truth scores {found['metrics']['pq']}")


def _make_predictions(folder: Path) -> None:
    make_coco(folder / "data")
    source = coco.read_coco(
        images=folder / "data/val2017",
        panoptic_json=folder / "data/panoptic.json",
        panoptic_png=folder / "data/panoptic_val2017",
        instances_json=None,
        class_names=folder / "data/names.txt",
    )
    convert(source, name="coco", split="val", out=folder / "data/out", workers=1)
    shutil.copytree(folder / "data/out/panoptic", folder / "predictions")
    content = json.loads((folder / "data/out/annotations.json").read_text())
    write(folder / "predictions.json", content)


def _read_predictions(folder: Path) -> Later:
    _score(folder, folder / "predictions.json")
    return lambda: read_json(folder / "out/evaluation.json")


def _make_instances(folder: Path) -> None:
    _make_predictions(folder)
    content = json.loads((folder / "data/out/instances.json").read_text())
    results = [{**entry, "score": 0.5} for entry in content["annotations"]]
    write(folder / "results.json", results)
    write(folder / "object.json", {**content, "annotations": results})


def _read_instances(folder: Path) -> Later:
    _score(folder, _only(folder, "*.json"))
    return lambda: read_json(folder / "out/evaluation.json")


def _make_maps(folder: Path) -> None:
    _make_predictions(folder)
    dataset = ConvertedDataset.open(folder / "data/out")
    for position, record in enumerate(dataset.images):
        ids = torch.from_numpy(dataset.panoptic(position))
        infos = [{"id": s.id, "label_id": s.category, "score": 0.5} for s in record.segments]
        content: Any = {"segmentation": ids, "segments_info": infos}
        if position:
            infos = [{"id": s.id, "category_id": s.category} for s in record.segments]
            content = (ids, infos)
        (folder / "maps").mkdir(exist_ok=True)
        torch.save(content, folder / f"maps/{record.panoptic.stem}.pt")


def _read_maps(folder: Path) -> Later:
    _score(folder, folder / "maps")
    return lambda: read_json(folder / "out/evaluation.json")


def _score(folder: Path, predictions: Path) -> None:
    score(
        dataset=ConvertedDataset.open(folder / "data/out"),
        predictions=predictions,
        evaluation=SETTINGS,
        out=folder / "out",
    )


def _read_manifest(folder: Path) -> Later:
    dataset = ConvertedDataset.open(folder / "data/out")
    return lambda: (len(dataset), dataset.name, dataset.split, dataset.manifest["content"])


@functools.cache
def _tokenizer() -> SimpleTokenizer:
    return SimpleTokenizer()


def _read_names(folder: Path) -> Later:
    names = read_class_index(folder / "names.txt")
    words = [name for synonyms in names.values() for name in synonyms]

    def use() -> None:
        json.dumps(list(names.items())).encode()
        "\n".join(words).encode()
        _tokenizer()(words[:50])

    return use


def _make_pngs(folder: Path) -> None:
    rng = np.random.default_rng(0)
    save_rgb_ids(folder / "ids.png", rng.integers(0, 1 << 24, (5, 7)))
    labels = rng.integers(0, 5, (6, 9)).astype(np.uint8)
    save_photo(folder / "photo.png", 5, 6)
    Image.fromarray(labels).save(folder / "labels.png")
    Image.fromarray(labels.astype(np.uint16)).save(folder / "deep.png")
    for mode in ("1", "P", "LA", "RGBA"):
        Image.fromarray(labels * 50).convert(mode).save(folder / f"mode_{mode}.png")
    _samples(folder, "*.png")


def _read_png(folder: Path) -> Later:
    path = _only(folder, "*.png")
    pixels, _ = decode_file(path)
    photo, size = read_image(path), check_photo(path)[0]

    def use() -> None:
        if photo.shape != (*size, 3):
            raise AssertionError(f"{photo.shape} and {size}")
        for colour in (True, False):  # the reader of runs agrees with that of pixels
            found = encode_file(path, colour=colour)
            if found is not None:
                whole = decode_ids(pixels, path) if colour else pixels
                same = encode_array(whole)
                if found.shape != whole.shape or not np.array_equal(found.values, same.values):
                    raise AssertionError("two readers see different pixels")

    _label_readers(path)
    return use


def _label_readers(path: Path) -> None:
    """Those of all layouts; each may refuse."""
    from possam.runtime.errors import InputError

    for read in (
        lambda: ade20k._read_labels(path, 4),
        lambda: ade20k._read_instances(path, {1: 0, 2: 1}),
        lambda: ade20k_full.read_indices(path),
    ):
        try:
            read()
        except InputError as error:
            if str(path) not in str(error):
                raise AssertionError(f"no name in {error}") from error


def _make_photos(folder: Path) -> None:
    save_photo(folder / "photo.jpg", 40, 50)
    photo = Image.open(folder / "photo.jpg")
    photo.convert("L").save(folder / "grey.jpg")
    photo.convert("CMYK").save(folder / "cmyk.jpg")
    photo.save(folder / "progressive.jpg", progressive=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(folder / "turned.jpg", exif=exif)
    _samples(folder, "*.jpg")


def _read_photo(folder: Path) -> Later:
    path = _only(folder, "*.jpg")
    size, _ = check_photo(path)
    part: dict[str, Any] = {"pixels": {"0": 1}, "segments": [], "instances": []}
    find_warts(path, part, instances=False)
    read_image(path)
    return lambda: (read_photograph(path), size)


def _make_mats(folder: Path) -> None:
    labels = np.kron(context_labels(), np.ones((4, 3), np.uint16))
    savemat(folder / "compressed.mat", {"LabelMap": labels}, do_compression=True)
    savemat(folder / "plain.mat", {"LabelMap": labels}, do_compression=False)
    savemat(folder / "others.mat", {"a": {"b": [1.0]}, "LabelMap": labels.astype(np.uint8)})


def _read_mat(folder: Path) -> Later:
    labels = read_label_map(_only(folder, "*.mat"), 3, (12, 15), folder / "photo.jpg")
    return lambda: convert_regions(labels, image="")


def _make_masks(folder: Path) -> None:
    ids = np.zeros((30, 40), np.uint8)
    ids[3:9, 4:20], ids[12:20, 5:9] = 1, 1
    code = run_length.encode(np.asfortranarray(ids))
    text = {"size": [30, 40], "counts": code["counts"].decode()}
    numbers = {"size": [30, 40], "counts": decode_counts(text["counts"]).tolist()}
    polygons = [[2.0, 1.0, 4.5, 1.0, 4.0, 3.0, 2.0, 3.0], [5, 5, 20, 5, 20.5, 18]]
    for name, mask in (("text", text), ("numbers", numbers), ("polygons", polygons)):
        entry = {"area": 5, "bbox": [1, 2, 3, 4], "iscrowd": 0, "segmentation": mask}
        write(folder / f"{name}.json", entry)


def _read_mask(folder: Path) -> Later:
    path = _only(folder, "*.json")
    entry = read_json(path)
    kept = {key: entry.get(key) for key in ("area", "bbox", "iscrowd", "segmentation")} \
        if isinstance(entry, dict) else entry  # fmt: skip
    check_instance(kept, 30, 40, f"{path}: annotation 1")

    def use() -> None:
        code = coco._instance({"category_id": 0, **kept}, 30, 40)["segmentation"]
        area, mask = int(run_length.area(code)), run_length.decode(code)
        if mask.shape != (30, 40) or area != int(mask.sum()):
            raise AssertionError(f"area {area}, {int(mask.sum())} pixels of {mask.shape}")

    return use


def _read_checkpoint(folder: Path) -> Later:
    model = load_trained(folder / "weights.safetensors", frozen=FROZEN)
    features = (torch.zeros(1, 4, 4, 4),), torch.zeros(1, 6, 4, 4)
    return lambda: model(*features)


def _make_sams(folder: Path) -> None:
    torch.manual_seed(0)
    state = build_sam(ARCHITECTURES["synthetic_b"]).state_dict()
    torch.save(state, folder / "zip.pth")
    torch.save(state, folder / "legacy.bin", _use_new_zipfile_serialization=False)


def _read_sam(folder: Path) -> Later:
    load_sam(_only(folder, "*"), architecture="synthetic_b")
    return lambda: None


def _make_params(folder: Path) -> None:
    shutil.copytree(ROOT / "params", folder / "params")


def _read_params(folder: Path) -> Later:
    project = Project("smoke", folder=folder / "params")
    return lambda: project.run("possam_b_coco")


READERS = {
    "coco": Reader(
        make=make_coco, files=("panoptic.json", "instances.json"), read=_read_coco,
        outputs=("out",),
    ),
    "coco-images": Reader(
        make=make_coco, files=("val2017/*", "panoptic_val2017/*"), read=_read_coco
    ),
    "predictions": Reader(
        make=_make_predictions, files=("predictions.json", "predictions/*"), read=_read_predictions
    ),
    "instances": Reader(
        make=_make_instances, files=("results.json", "object.json"), read=_read_instances
    ),
    "saved-maps": Reader(make=_make_maps, files=("maps/*.pt",), read=_read_maps),
    "manifest": Reader(
        make=_make_predictions, files=("data/out/manifest.json",), read=_read_manifest
    ),
    "class-names": Reader(
        make=lambda folder: write(folder / "names.txt", COCO_NAMES),
        files=("names.txt",), read=_read_names,
    ),
    "png": Reader(make=_make_pngs, files=("*.png",), read=_read_png),
    "jpeg": Reader(make=_make_photos, files=("*.jpg",), read=_read_photo),
    "mat": Reader(make=_make_mats, files=("*.mat",), read=_read_mat),
    "masks": Reader(make=_make_masks, files=("*.json",), read=_read_mask),
    "checkpoint": Reader(
        make=lambda folder: save_trained(
            folder / "weights.safetensors", possam(), weights_metadata(), step=7
        ),
        files=("weights.safetensors",), read=_read_checkpoint,
    ),
    "sam": Reader(make=_make_sams, files=("zip.pth", "legacy.bin"), read=_read_sam),
    "yaml": Reader(
        make=_make_params,
        files=("params/*.yaml", "params/scales/smoke.yaml"), read=_read_params,
    ),
}  # fmt: skip
"""Every reader by its name on the command line."""
