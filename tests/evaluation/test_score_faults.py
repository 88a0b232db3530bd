"""Bad predictions: the message names file, field and remedy; exit code 2; nothing is written."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from possam import cli
from possam.datasets.format import ConvertedDataset
from possam.evaluation.options import EvaluationOptions
from possam.evaluation.score import score
from possam.runtime.errors import InputError

Change = Callable[[Any], Any]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def refused(
    dataset: ConvertedDataset,
    settings_small: EvaluationOptions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., str]:
    """``refused(predictions, *options)``: the message, the same from Python and the command line.

    Neither leaves a file or folder behind.
    """
    monkeypatch.chdir(ROOT)  # the command line reads params/

    def call(predictions: Path, *, segmentations: Path | None = None) -> str:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(InputError) as caught:
            score(
                dataset=dataset,
                predictions=predictions,
                evaluation=settings_small,
                out=tmp_path / "out",
                segmentations=segmentations,
            )
        command = [
            "score",
            str(dataset.directory),
            str(predictions),
            "--out",
            str(tmp_path / "out"),
        ]
        if segmentations is not None:
            command += ["--segmentations", str(segmentations)]
        capsys.readouterr()
        assert cli.main(command) == 2
        captured = capsys.readouterr()
        message = str(caught.value)
        assert captured.err.endswith(f"possam score: {message}\n") and captured.out == ""
        assert sorted(tmp_path.rglob("*")) == before
        return message

    return call


def first_segments(content: dict[str, Any]) -> list[dict[str, Any]]:
    segments: list[dict[str, Any]] = content["annotations"][0]["segments_info"]
    return segments


JSON_FAULTS: dict[str, tuple[Change, str, str]] = {
    "no annotations": (
        lambda c: c.pop("annotations"),
        "predictions.json: annotations: missing",
        "see COCO's panoptic format",
    ),
    "no categories": (
        lambda c: c.pop("categories"),
        "predictions.json: categories: missing",
        "see COCO's panoptic format",
    ),
    "categories that are no list": (
        lambda c: c.update(categories={"1": "cat"}),
        "predictions.json: categories: missing or not a list",
        "see COCO's panoptic format",
    ),
    "category without an id": (
        lambda c: c["categories"][2].pop("id"),
        "predictions.json: categories[2]: id: missing or not a whole number",
        "see COCO's panoptic format",
    ),
    "category of another data set": (
        lambda c: c["categories"][2].update(id=187),
        "predictions.json: categories[2]: id: 187 is no contiguous category id of toy",
        "choose category_ids='upstream'",
    ),
    "no image id": (
        lambda c: c["annotations"][1].pop("image_id"),
        "predictions.json: annotations[1]: image_id: missing",
        "see COCO's panoptic format",
    ),
    "no segments": (
        lambda c: c["annotations"][1].pop("segments_info"),
        "predictions.json: annotations[1]: segments_info: missing",
        "see COCO's panoptic format",
    ),
    "annotation that is no object": (
        lambda c: c["annotations"].insert(0, 7),
        "predictions.json: annotations[0]: an object is expected",
        "see COCO's panoptic format",
    ),
    "unknown category": (
        lambda c: first_segments(c)[0].update(category_id=77),
        "predictions.json: image_id 50: segments_info[0]: category_id: 77 is unknown",
        "add it to 'categories' or correct it",
    ),
    "category left out of the list": (
        lambda c: c["categories"].pop(1),
        "predictions.json: image_id 50: segments_info[0]: category_id: 1 is unknown",
        "add it to 'categories' or correct it",
    ),
    "category as text": (
        lambda c: first_segments(c)[0].update(category_id="1"),
        "image_id 50: segments_info[0]: category_id: missing or not a whole number",
        "see COCO's panoptic format",
    ),
    "duplicate id": (
        lambda c: first_segments(c)[1].update(id=first_segments(c)[0]["id"]),
        "image_id 50: segments_info[1]: id: 70001 occurs twice",
        "ids must be unique",
    ),
    "id missing in the JSON": (
        lambda c: first_segments(c).pop(0),
        "picture_0.png: ids in the PNG and in predictions.json differ: only in the PNG [70001]",
        "list each drawn segment once",
    ),
    "id missing in the PNG": (
        lambda c: first_segments(c).append({"id": 9, "category_id": 0}),
        "only in segments_info [9]",
        "list each drawn segment once",
    ),
    "void as a segment": (
        lambda c: first_segments(c).append({"id": 0, "category_id": 0}),
        "only in segments_info [0]",
        "0 is void",
    ),
    "image missing": (
        lambda c: c["annotations"].pop(2),
        "predictions.json: annotations: 1 of 6 images have no prediction (image_id 48",
        "predict all images of the data set",
    ),
    "image twice": (
        lambda c: c["annotations"].append(c["annotations"][0]),
        "predictions.json: annotations[6]: image_id: 50 occurs twice",
        "keep one prediction per image",
    ),
    "image of another split": (
        lambda c: c["annotations"].append({**c["annotations"][0], "image_id": 7}),
        "predictions.json: annotations: image_id 7 and 0 others are not in toy val",
        "choose predictions of this split",
    ),
    "file that is not there": (
        lambda c: c["annotations"][0].update(file_name="nothing.png"),
        "nothing.png: no such file",
        "predict every image of the data set",
    ),
    "name that can be no file": (
        lambda c: c["annotations"][0].update(file_name="a\0b.png"),
        "predictions.json: annotations[0]: file_name: missing or not a text",
        "see COCO's panoptic format",
    ),
    "truth for an id": (
        lambda c: first_segments(c)[0].update(id=True),
        "image_id 50: segments_info[0]: id: missing or not a whole number",
        "see COCO's panoptic format",
    ),
    "fraction for an image's id": (
        lambda c: c["annotations"][0].update(image_id=50.0),
        "predictions.json: annotations[0]: image_id: missing or not a whole number",
        "see COCO's panoptic format",
    ),
}


@pytest.mark.parametrize("fault", JSON_FAULTS)
def test_faults_in_the_json(refused: Callable, edit: Callable, written: Path, fault: str) -> None:
    change, place, remedy = JSON_FAULTS[fault]
    edit(change)
    message = refused(written)
    assert place in message and remedy in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "not valid JSON"),
        ("[]", "an object is expected; see COCO's panoptic format"),
        ("null", "an object is expected; see COCO's panoptic format"),
    ],
)
def test_a_json_of_another_kind(refused: Callable, written: Path, text: str, expected: str) -> None:
    written.write_text(text)
    assert f"predictions.json: {expected}" in refused(written)


def test_files_that_are_missing(refused: Callable, written: Path, tmp_path: Path) -> None:
    message = refused(written, segmentations=tmp_path / "elsewhere")
    assert "elsewhere: no such folder; name the folder of predicted PNGs" in message
    written.unlink()
    assert "predictions.json: no such file" in refused(written)


def rgb(size: tuple[int, int] = (24, 30)) -> Image.Image:
    return Image.fromarray(np.zeros((*size, 3), np.uint8))


def grey(path: Path) -> None:
    Image.fromarray(np.zeros((24, 30), np.uint8)).save(path)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def with_a_broken_chunk(path: Path) -> None:
    """The second half of the pixels under a name that is none: Pillow raises a SyntaxError."""
    content = path.read_bytes()
    start = content.index(b"IDAT")
    length = struct.unpack(">I", content[start - 4 : start])[0]
    pixels = content[start + 4 : start + 4 + length]
    halves = _chunk(b"IDAT", pixels[: length // 2]) + _chunk(b"ID\xb5T", pixels[length // 2 :])
    path.write_bytes(content[: start - 4] + halves)


def of_absurd_size(path: Path) -> None:
    """60000 x 60000 pixels by its header, a few bytes by its content."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = (_chunk(b"IHDR", header), _chunk(b"IDAT", zlib.compress(b"\0")), _chunk(b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


PNG_FAULTS: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "another size": (
        lambda path: rgb((5, 6)).save(path),
        "size: 6 x 5, but image 50 is 30 x 24",
        "resize it (nearest)",
    ),
    "one channel": (grey, "an 8-bit RGB PNG is expected", "id = R + 256 G + 65536 B"),
    "no image": (
        lambda path: path.write_bytes(b"\x89PNG, but no more"),
        "not a readable image",
        "write it again",
    ),
    "empty": (lambda path: path.write_bytes(b""), "not a readable image", "write it again"),
    "truncated": (truncated, "not a readable image", "write it again"),
    "broken chunk": (with_a_broken_chunk, "not a readable image", "write it again"),
    "absurd size": (of_absurd_size, "60000 x 60000 are too many pixels", "250 megapixels"),
    "missing": (Path.unlink, "no such file", "predict every image of the data set"),
}


@pytest.mark.parametrize("fault", PNG_FAULTS)
def test_faults_in_a_panoptic_png(refused: Callable, written: Path, fault: str) -> None:
    change, place, remedy = PNG_FAULTS[fault]
    change(written.with_suffix("") / "picture_0.png")
    message = refused(written)
    assert f"picture_0.png: {place}" in message and remedy in message


LABEL_FAULTS: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "another size": (
        lambda path: Image.fromarray(np.zeros((24, 31), np.uint8)).save(path),
        "size: 31 x 24, but image 49 is 30 x 24",
        "resize it (nearest)",
    ),
    "unknown class": (
        lambda path: Image.fromarray(np.full((24, 30), 5, np.uint8)).save(path),
        "labels [5]",
        "valid are the contiguous ids 0..4 of the data set's 5 classes, and 255 for none",
    ),
    "three channels": (lambda path: rgb().save(path), "a single-channel PNG", "class indices"),
    "no or yes": (
        lambda path: Image.new("1", (30, 24)).save(path),
        "a single-channel PNG of 8 or 16 bits",
        "not bool",
    ),
    **{name: PNG_FAULTS[name] for name in ("no image", "empty", "absurd size", "missing")},
    "truncated": (
        lambda path: path.write_bytes(path.read_bytes()[:-20]),
        "not a readable image",
        "write it again",
    ),
}


@pytest.mark.parametrize("fault", LABEL_FAULTS)
def test_faults_in_a_label_png(refused: Callable, labels: Path, fault: str) -> None:
    change, place, remedy = LABEL_FAULTS[fault]
    change(labels / "picture_1.png")
    message = refused(labels)
    assert f"picture_1.png: {place}" in message and remedy in message


def test_a_folder_without_labels(refused: Callable, labels: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    expected = "no PNG in this folder; for panoptic predictions name the JSON file"
    assert f"empty: {expected}" in refused(tmp_path / "empty")
    assert "name the JSON file" in refused(labels, segmentations=labels)


def test_a_cut_file_never_gives_a_number(refused: Callable, labels: Path) -> None:
    """Every length up to the end of the pixels; whole pixels without an end mark are readable."""
    path = labels / "picture_1.png"
    whole = path.read_bytes()
    for length in range(whole.index(b"IDAT") + 8):
        path.write_bytes(whole[:length])
        assert "picture_1.png: not a readable image" in refused(labels)


def test_a_data_set_that_is_none(
    written: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT)
    assert cli.main(["score", str(written.parent), str(written), "--out", str(tmp_path / "x")]) == 2
    assert "not a converted data set" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_an_earlier_result_stays_when_new_predictions_are_refused(
    dataset: ConvertedDataset,
    settings_small: EvaluationOptions,
    written: Path,
    edit: Callable,
    tmp_path: Path,
) -> None:
    options = {"dataset": dataset, "predictions": written, "evaluation": settings_small}
    score(**options, out=tmp_path / "out")
    kept = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    edit(lambda content: content["annotations"].pop())
    with pytest.raises(InputError):
        score(**options, out=tmp_path / "out")
    assert kept == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}


def test_a_file_is_no_folder_for_results(
    dataset: ConvertedDataset, settings_small: EvaluationOptions, written: Path, tmp_path: Path
) -> None:
    out = tmp_path / "notes.txt"
    out.write_text("mine")
    with pytest.raises(InputError, match=r"notes\.txt: is a file; --out must name a folder"):
        score(dataset=dataset, predictions=written, evaluation=settings_small, out=out)
    assert out.read_text() == "mine"
