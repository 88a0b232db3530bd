"""Predictions as other systems save them: COCO's instance results, detectron2, transformers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from possam.datasets.format import ConvertedDataset
from possam.evaluation.options import EvaluationOptions
from possam.evaluation.score import score
from possam.pictures.exports import export
from possam.pictures.result import PictureClass
from possam.runtime.errors import InputError
from tests.support.results import make_result


@pytest.fixture
def run(dataset: ConvertedDataset, settings_small: EvaluationOptions) -> Callable:
    def call(predictions: Path, **options: Any) -> dict[str, Any]:
        return score(dataset=dataset, predictions=predictions, evaluation=settings_small, **options)

    return call


def detections(dataset: ConvertedDataset, *, polygons: bool = True) -> list[dict[str, Any]]:
    """The objects, some of them moved, with scores, and perhaps false ones, as polygons."""
    found = []
    for number, entry in enumerate(dataset.instances()["annotations"]):
        mask = rle.decode(entry["segmentation"])
        if number % 3 == 0:
            mask = np.roll(mask, 1 + number % 4, axis=1)
        code = rle.encode(np.asfortranarray(mask))
        found.append(
            {
                "image_id": entry["image_id"],
                "category_id": entry["category_id"],
                "score": 1 / (2 + number % 5),
                "segmentation": {"size": code["size"], "counts": code["counts"].decode()},
            }
        )
        if polygons:
            square = [1, 1, 5, 1, 5, 5, 1, 5]
            found.append({**found[-1], "score": 0.05 + number / 100, "segmentation": [square]})
    return found


def test_instance_results_have_the_ap_of_pycocotools(
    run: Callable, dataset: ConvertedDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "found.json").write_text(json.dumps(detections(dataset, polygons=False)))
    result = run(tmp_path / "found.json")
    content = dataset.instances()
    for entry in content["annotations"]:
        entry["id"] += 1  # pycocotools takes an id of 0 for "no match"
    (tmp_path / "truth.json").write_text(json.dumps(content))
    truth = COCO(tmp_path / "truth.json")
    reference = COCOeval(truth, truth.loadRes(str(tmp_path / "found.json")), "segm")
    reference.evaluate()
    reference.accumulate()
    reference.summarize()
    capsys.readouterr()
    assert 0 < reference.stats[0] < 1
    assert result["metrics"] == {"map": pytest.approx(100 * reference.stats[0], abs=1e-9)}
    low, high = result["intervals"]["map"]
    assert low <= result["metrics"]["map"] <= high
    assert "subset" not in result["protocol"]


def test_upstream_ids_and_run_lengths_as_numbers(
    run: Callable, dataset: ConvertedDataset, tmp_path: Path
) -> None:
    found = detections(dataset)
    before = (tmp_path / "own.json", tmp_path / "upstream.json")
    before[0].write_text(json.dumps(found))
    upstream = {c.index: c.upstream_id for c in dataset.categories}
    for entry in found:
        entry["category_id"] = upstream[entry["category_id"]]
        if isinstance(entry["segmentation"], dict):
            mask = rle.decode(entry["segmentation"]).T.ravel()
            edges = np.flatnonzero(np.diff(mask, prepend=0)).tolist()
            entry["segmentation"]["counts"] = np.diff([0, *edges, mask.size]).tolist()
    before[1].write_text(json.dumps(found))
    assert run(before[0])["metrics"] == run(before[1], category_ids="upstream")["metrics"]
    with pytest.raises(InputError, match=r"result\[0\]: category_id \d+ is no contiguous"):
        run(before[1])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda e: e.update(score="high"), "score 'high' is not a number"),
        (lambda e: e.update(score=float("nan")), "(?i)nan"),
        (lambda e: e.update(image_id=999), "image_id 999 is not in toy"),
        (lambda e: e.update(category_id=-1), "category_id -1 is not a whole number"),
        (lambda e: e.pop("segmentation"), "neither a list of polygons nor"),
        (lambda e: e["segmentation"].update(size=[1, 2]), "size is not the image's"),
    ],
)
def test_bad_results_are_refused(
    run: Callable, dataset: ConvertedDataset, tmp_path: Path, change: Callable, text: str
) -> None:
    found = detections(dataset)
    change(found[0])
    (tmp_path / "found.json").write_text(json.dumps(found))
    with pytest.raises(InputError, match=text):
        run(tmp_path / "found.json", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_list_of_results_is_no_subset(
    run: Callable, dataset: ConvertedDataset, tmp_path: Path
) -> None:
    (tmp_path / "found.json").write_text(json.dumps(detections(dataset)))
    with pytest.raises(InputError, match="does not say which images were looked at in vain"):
        run(tmp_path / "found.json", subset=True)


def save_maps(dataset: ConvertedDataset, folder: Path, form: str) -> Path:
    """The ground truth without crowds, as transformers or detectron2 return it."""
    folder.mkdir()
    for position, record in enumerate(dataset.images):
        ids = torch.from_numpy(dataset.panoptic(position).astype(np.int32))
        own = [segment for segment in record.segments if not segment.is_crowd]
        kept = torch.isin(ids, torch.tensor([segment.id for segment in own]))
        void = -1 if form == "transformers" else 0
        ids = torch.where(kept, ids, void)
        if form == "transformers":
            infos = [{"id": s.id, "label_id": s.category, "score": 0.9, "was_fused": False}
                     for s in own]  # fmt: skip
            content: Any = {"segmentation": ids, "segments_info": infos}
        else:
            infos = [{"id": s.id, "category_id": s.category, "isthing": True} for s in own]
            content = {"panoptic_seg": (ids, infos)}
        torch.save(content, folder / f"{record.panoptic.stem}.pt")
    return folder


@pytest.mark.parametrize("form", ["transformers", "detectron2"])
def test_saved_outputs_are_perfect(
    run: Callable, dataset: ConvertedDataset, tmp_path: Path, form: str
) -> None:
    folder = save_maps(dataset, tmp_path / "maps", form)
    metrics = run(folder)["metrics"]
    assert metrics["pq"] == 100.0
    assert run(folder, workers=2)["metrics"] == metrics


def test_post_processing_of_transformers_is_read_as_it_is_saved(tmp_path: Path) -> None:
    """The class that makes these outputs, on logits made by hand."""
    transformers = pytest.importorskip("transformers")
    from possam.evaluation.saved_maps import _load

    processor = transformers.Mask2FormerImageProcessor()
    logits = torch.full((1, 2, 3), -9.0)
    logits[0, 0, 1] = logits[0, 1, 0] = 9.0
    masks = torch.full((1, 2, 8, 8), -9.0)
    masks[0, 0, :4], masks[0, 1, 5:] = 9.0, 9.0
    outputs = type("Outputs", (), {"class_queries_logits": logits, "masks_queries_logits": masks})
    (found,) = processor.post_process_panoptic_segmentation(outputs, target_sizes=[(16, 16)])
    torch.save(found, tmp_path / "a.pt")
    pixels, infos = _load(tmp_path / "a.pt")
    assert pixels.shape == (16, 16) and {info["label_id"] for info in infos} == {0, 1}
    assert set(np.unique(pixels)) - {0, -1} == {info["id"] for info in infos}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda c: c["segments_info"][0].update(label_id=77), "label_id 77 is no contiguous"),
        (lambda c: c["segments_info"][0].update(id=-5), "id -5 is not a whole number"),
        (lambda c: c["segments_info"].append(c["segments_info"][0]), "comes twice"),
        (lambda c: c["segments_info"].pop(), "in the map, but not in segments_info"),
        (lambda c: c.pop("segments_info"), "one image's output is expected"),
        (lambda c: c.update(segmentation=c["segmentation"].float()), "the map has whole numbers"),
        (lambda c: c.update(segmentation=c["segmentation"][1:]), "target_sizes"),
    ],
)
def test_bad_maps_are_refused(
    run: Callable, dataset: ConvertedDataset, tmp_path: Path, change: Callable, text: str
) -> None:
    folder = save_maps(dataset, tmp_path / "maps", "transformers")
    path = folder / f"{dataset.images[0].panoptic.stem}.pt"
    content = torch.load(path)
    change(content)
    torch.save(content, path)
    with pytest.raises(InputError, match=text) as caught:
        run(folder)
    assert str(path) in str(caught.value)


def test_a_file_with_objects_is_refused(
    run: Callable, dataset: ConvertedDataset, tmp_path: Path
) -> None:
    folder = save_maps(dataset, tmp_path / "maps", "detectron2")
    path = folder / f"{dataset.images[0].panoptic.stem}.pt"
    torch.save({"panoptic_seg": Path("x")}, path)
    with pytest.raises(InputError, match="more than tensors"):
        run(folder)


@pytest.mark.parametrize("form", ["panoptic", "labels", "maps"])
def test_a_subset_is_scored_only_if_it_is_asked_for(
    run: Callable, dataset: ConvertedDataset, written: Path, labels: Path, tmp_path: Path, form: str
) -> None:
    if form == "panoptic":
        content = json.loads(written.read_text())
        del content["annotations"][2:]
        written.write_text(json.dumps(content))
        predictions = written
    else:
        predictions = (
            labels if form == "labels" else save_maps(dataset, tmp_path / "m", "detectron2")
        )
        for record in dataset.images[2:]:
            for path in predictions.glob(f"{record.panoptic.stem}.*"):
                path.unlink()
    with pytest.raises(InputError, match="--subset"):
        run(predictions)
    result = run(predictions, subset=True)
    assert result["metrics"]["pq" if form != "labels" else "miou"] == 100.0
    assert result["counts"]["images"] == 2
    assert result["protocol"]["subset"] == "2 of 6 images"


def test_an_empty_subset_is_refused(run: Callable, written: Path) -> None:
    content = json.loads(written.read_text())
    content["annotations"].clear()
    written.write_text(json.dumps(content))
    with pytest.raises(InputError, match="no image of toy val is predicted"):
        run(written, subset=True)


@pytest.mark.parametrize("name", ["coco-panoptic", "coco-instances", "coco-polygons", "label-png"])
def test_own_exports_are_scored_by_the_names_of_the_pictures(
    run: Callable, dataset: ConvertedDataset, tmp_path: Path, name: str
) -> None:
    """Exports number pictures from 1, in the order of the folder: here backwards."""
    if name == "coco-polygons":
        pytest.importorskip("rasterio")
    classes = [PictureClass(c.names[0], c.names[1:], c.is_thing) for c in dataset.categories]
    results = []
    for position, record in reversed([*enumerate(dataset.images)]):
        crowds = name == "label-png"  # mIoU counts their pixels
        own = {s.id: s.category for s in record.segments if crowds or not s.is_crowd}
        ids = dataset.panoptic(position)
        ids = np.where(np.isin(ids, [*own]), ids, 0)
        results.append(make_result(ids, path=record.file, classes=classes, class_of=own))
    out = tmp_path / ("out.json" if name in ("coco-instances", "coco-polygons") else "out")
    export(name, results, out, root=dataset.image_root)
    predictions = out / "panoptic.json" if name == "coco-panoptic" else out
    metrics = run(predictions)["metrics"]
    first = {"coco-panoptic": "pq", "label-png": "miou"}.get(name, "map")
    assert metrics[first] == pytest.approx(100.0)
