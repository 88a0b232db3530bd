"""The page of ``possam demo``, by itself and in a browser."""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from possam.pictures.demo import Page, annotations, rows, serve, summary
from possam.pictures.load import load_weights
from possam.pictures.look import decide, look_at
from possam.pictures.model import Model
from possam.runtime.errors import InputError
from possam.synthetic.scenes import render_scenes
from tests.support.browser import find_chromium
from tests.support.drawn_model import drawn_weights

WORDS = "red circle, red disc; blue star; gravel; brick; white star; 草地; water"
STUFF = "water; gravel; brick"


SHIPPED = "possam_b_coco"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawn_weights(tmp_path_factory.mktemp("drawn") / "weights.safetensors")


@pytest.fixture(scope="module")
def model(weights: Path) -> Model:
    return load_weights(weights)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "scene.png"
    (scene,) = render_scenes(1, domain="a", split="val", seed=5)
    Image.fromarray(scene.image).save(path)
    return path


def test_a_look_gives_what_segment_gives(model: Model, picture: Path) -> None:
    vocabulary = model.vocabulary([["red circle", "red disc"], "water"], stuff=["water"])
    expected, found = model.segment(picture, vocabulary), None
    found = decide(model, look_at(model, picture), vocabulary)
    np.testing.assert_array_equal(found.id_map, expected.id_map)
    assert [s.score for s in found.segments] == [s.score for s in expected.segments]


def test_words_and_thresholds_do_not_run_the_networks(
    model: Model, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, calls = Page(model, tmp_path), []
    forward = model.segmenter.forward
    monkeypatch.setattr(
        model.segmenter, "forward", lambda images: calls.append(1) or forward(images)
    )
    seen = page.look(str(picture), None)
    assert page.look(str(picture), seen) is seen
    few, _ = page.decide(seen, WORDS, "water", 1.0, 0.5)
    many, notes = page.decide(seen, WORDS, "water", 0.0, 0.0)
    assert len(calls) == 1
    assert len(few.segments) == 0 < len(many.segments)
    assert [c.name for c in many.classes if not c.is_thing] == ["water"]
    (image, labels), colours = annotations(many)
    assert image.shape == many.image.shape and len(rows(many)) == len(labels) == len(colours)
    for (mask, label), segment in zip(labels, many.segments, strict=True):
        assert label.startswith(segment.name)
        np.testing.assert_array_equal(mask, segment.mask)
    assert summary(few, notes).startswith("0 segments.") and "Not kept" in summary(few, notes)


@pytest.mark.parametrize(
    ("picture", "words", "message"), [(None, "cat", "No picture"), ("scene", " ", "No words")]
)
def test_what_is_missing_is_said(
    picture: str | None, words: str, message: str, model: Model, tmp_path: Path
) -> None:
    page = Page(model, tmp_path)
    with pytest.raises(InputError, match=message):
        seen = page.look(picture, None) if picture is None else None
        page.decide(seen, words, "", 0.5, 0.5)  # type: ignore[arg-type] # refused before it is read


def test_a_port_in_use_is_said(weights: Path) -> None:
    pytest.importorskip("gradio", reason="gradio is not installed (extra demo)")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port}: in use.*--port"):
            serve(str(weights), port=port)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The page of a shipped model, served as a user does."""
    pytest.importorskip("gradio", reason="gradio is not installed (extra demo)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "possam", "demo", "--model", SHIPPED, "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    address, limit = f"http://127.0.0.1:{port}", time.monotonic() + 600
    try:
        while True:
            assert process.poll() is None, process.stdout and process.stdout.read().decode()
            assert time.monotonic() < limit, "the page does not answer"
            try:
                with urllib.request.urlopen(address, timeout=30):
                    break
            except OSError:
                time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        try:
            process.wait(60)
        finally:
            process.kill()


@pytest.mark.slow
def test_the_page_in_a_browser(address: str, picture: Path, tmp_path: Path) -> None:
    """Words are typed, segments seen, a file downloaded; nothing but the page itself is asked."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed (group dev)"
    )
    chromium = find_chromium()
    shots = Path(os.environ.get("POSSAM_SCREENSHOTS", tmp_path))
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 1500})
        page.set_default_timeout(240_000)
        said, asked = [], []
        page.on("console", lambda line: said.append(line.text) if line.type == "error" else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        page.get_by_label("Words", exact=True).wait_for()
        page.screenshot(path=shots / "before.png")
        page.locator("input[type=file]").first.set_input_files(picture)
        page.get_by_label("Words", exact=True).fill(WORDS)
        page.get_by_label("Stuff").fill(STUFF)
        page.get_by_role("button", name="Segment", exact=True).click()
        page.get_by_text(re.compile(r"^[1-9]\d* segments?\.$")).first.wait_for()
        names = set(page.locator(".legend-item").all_inner_texts())
        page.get_by_role("button", name="Prepare downloads").click()
        link = page.get_by_role("link").filter(has_text="coco-panoptic").first
        link = link.or_(page.locator("a[download*='coco-panoptic']")).first
        link.wait_for()
        page.screenshot(path=shots / "after.png", full_page=True)
        with page.expect_download() as download:
            link.click()
        target = tmp_path / "panoptic.zip"
        download.value.save_as(target)
        browser.close()
    assert any(name.endswith(".json") for name in zipfile.ZipFile(target).namelist())
    assert {"gravel", "brick"} <= names, "the legend"
    assert said == []
    outside = [url for url in asked if not url.startswith((address, "data:", "blob:"))]
    assert outside == []
