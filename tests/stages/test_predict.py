"""``possam predict`` on folders: what is done stays, what cannot be read is counted."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from possam.pictures.gather import gather
from possam.pictures.model import Model, Size
from possam.runtime.errors import InputError
from possam.stages.predict import Source, Words, predict
from tests.support.colours import colour_model, scene


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "photos"
    (folder / "trip").mkdir(parents=True)
    for name in ("a.png", "trip/a.png", "b.JPG", "._b.jpg", "notes.txt"):
        Image.fromarray(scene()).save(folder / name, format="PNG")

    def load(self: Source, device: str) -> Model:
        return colour_model()

    monkeypatch.setattr(Source, "load", load)
    return folder


def run(*pictures: Path, out: Path, words: str = "red; blue; green", export: str = "") -> int:
    return predict(
        [str(path) for path in pictures],
        words=Words(text=words, stuff="red"),
        source=Source(),
        out=out,
        device="cpu",
        size=Size(),
        batch_size=2,
        export=[export] if export else [],
    )


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_folder_is_predicted_once_and_goes_on_where_it_was(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(photos, out=out, export="label-png") == 0
    files = {"panoptic.png", "panoptic.json", "overlay.png", "embeddings.npz"}
    for name in ("a.png", "trip/a.png", "b.JPG"):
        assert {path.name for path in (out / name).iterdir()} == files
    before = content(out)
    stamps = {
        name: (out / name / "panoptic.json").stat().st_mtime_ns for name in ("a.png", "b.JPG")
    }
    (out / "trip/a.png/panoptic.json").unlink()  # as if killed before its last file
    capsys.readouterr()
    assert run(photos, out=out, export="label-png") == 0
    assert "2 of 3 pictures are done already" in capsys.readouterr().out
    assert content(out) == before
    for name, stamp in stamps.items():
        assert (out / name / "panoptic.json").stat().st_mtime_ns == stamp
    assert run(photos, out=out, words="red; horse") == 0
    assert "horse" in (out / "a.png/panoptic.json").read_text(), "other words: made anew"


def test_pictures_keep_their_company_when_a_run_goes_on(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two together: with one of a pair missing, both go through the model, and one is written."""
    out = tmp_path / "out"
    assert run(photos, out=out) == 0
    (out / "b.JPG/panoptic.json").unlink()
    seen: list[list[Path]] = []
    whole = Model.segment_all

    def segment_all(self: Model, pictures: Iterable[Path], *rest: Any, **options: Any) -> Any:
        seen.append([*pictures])
        return whole(self, seen[-1], *rest, **options)

    monkeypatch.setattr(Model, "segment_all", segment_all)
    assert run(photos, out=out) == 0
    assert seen == [[photos / "a.png", photos / "b.JPG"]]


def test_a_format_that_cannot_be_written_is_reported_first(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "shapely", None)
    with pytest.raises(InputError, match=r"possam\[exports\]"):
        run(photos, out=tmp_path / "out", export="yolo")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_read_is_counted_and_the_rest_goes_on(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "c.jpg").write_text("no picture")
    assert run(photos, out=tmp_path / "out") == 1
    message = capsys.readouterr().err
    assert "1 of 4 pictures could not be read" in message and "c.jpg" in message
    assert not (tmp_path / "out/c.jpg").exists()
    with pytest.raises(InputError, match=r"c\.jpg"):
        run(photos / "c.jpg", out=tmp_path / "one")
    assert not (tmp_path / "one").exists()


def test_one_picture_writes_into_the_folder_itself(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(photos / "a.png", out=tmp_path / "out") == 0
    described = json.loads((tmp_path / "out/panoptic.json").read_text())
    assert described["images"] == [{"id": 1, "file_name": "a.png", "width": 60, "height": 40}]
    assert [each["isthing"] for each in described["categories"]] == [0, 1, 1]
    assert run(photos / "a.png", out=tmp_path / "none", words="red, horse") == 0
    capsys.readouterr()
    assert run(photos / "a.png", out=tmp_path / "nothing", words="zebra; red") == 0


def test_pictures_that_are_named(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert list(gather([str(photos)], out=out)) == [
        *map(Path, ("a.png", "b.JPG", "trip/a.png")),
    ]
    assert list(gather([str(photos / "*.png")], out=out)) == [Path("a.png")]
    twice = [str(photos), str(photos / "trip/a.png")]
    assert len(gather(twice, out=out)) == 3, "one file, named twice"
    assert gather([str(photos / "a.png")], out=out) == {Path("."): photos / "a.png"}
    assert list(gather([str(photos)], out=photos / "trip")) == [Path("a.png"), Path("b.JPG")]
    (tmp_path / "empty").mkdir()
    for wrong, message in (
        ([str(tmp_path / "empty")], "no picture in this folder"),
        ([str(photos / "*.gif")], "no file fits"),
        ([str(photos / "missing.png")], "no such file"),
        ([str(photos / "a.png"), str(photos / "trip/a.png")], "has the same name"),
    ):
        with pytest.raises(InputError, match=message):
            gather(wrong, out=out)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (Words(), "give one of"),
        (Words(text="a", vocabulary="coco"), "give one of"),
        (Words(vocabulary="lvis"), "valid choices: coco, ade20k"),
    ],
)
def test_words_come_from_one_place(words: Words, message: str) -> None:
    with pytest.raises(InputError, match=message):
        words.classes()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Source(random_init=True), "needs --sam"),
        (Source(training_free=True, random_init=True), "give one of"),
        (Source(sam="b"), "only with"),
        (Source(checkpoint="nothing/of/this/name"), "no such folder, weights or model"),
    ],
)
def test_a_model_comes_from_one_place(source: Source, message: str) -> None:
    with pytest.raises(InputError, match=message):
        source.load("cpu")
