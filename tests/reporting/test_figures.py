"""Figures show the values that they are given, completely, readably and with the same bytes."""

import itertools
import json
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image

from possam.params.published import read_columns
from possam.reporting.figures.curves import TERMS, Curve, draw_curves, read_curve
from possam.reporting.figures.panels import Panel, Row, draw_panels
from possam.reporting.figures.seen_unseen import Value, draw_bars
from possam.reporting.figures.style import house_style, save_figure
from possam.runtime.errors import InputError

HEADING = {"title": "A title", "subtitle": "synthetic", "note": "A note. " * 30}


def text_boxes(figure: Figure) -> list[tuple[str, Bbox]]:
    """Every visible text with its extent in pixels."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    undrawn = {
        label
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in axis.get_major_ticks()
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
        for label in (tick.label1, tick.label2)
    }
    texts = [
        text
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text().strip() and text not in undrawn
    ]
    return [(t.get_text(), t.get_window_extent(renderer)) for t in texts]


def assert_readable(figure: Figure) -> None:
    """No text leaves the figure, and no two texts overlap."""
    boxes = text_boxes(figure)
    for text, box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0, text
        assert box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, text
    for (first, one), (second, other) in itertools.combinations(boxes, 2):
        shared = Bbox.intersection(one, other)
        assert shared is None or shared.width < 1 or shared.height < 1, (first, second)


def quarters(*ids: int) -> np.ndarray:
    """A 40 x 60 map of four quarters."""
    return np.kron(np.array(ids).reshape(2, 2), np.ones((20, 30), dtype=np.int32))


def make_row(names: dict[int, str], panels: list[Panel], unseen: frozenset[int]) -> Row:
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    return Row(
        image=image, name="image_1", source="ade, val", panels=panels, names=names, unseen=unseen
    )


NAMES = {3: "sky", 5: "a very long name of a class, too long", 7: "lake", 9: "not here"}


@pytest.fixture
def row() -> Row:
    """Three classes in the ground truth, two of them predicted, a quarter without a segment."""
    truth = Panel(ids=quarters(1, 2, 1, 4), segments={1: 3, 2: 5, 4: 7}, caption="3 segments")
    ours = Panel(ids=quarters(8, 8, 9, 0), segments={8: 7, 9: 3}, caption="2 segments")
    return make_row(NAMES, [ours, truth], frozenset({7, 9}))


def test_the_legend_has_every_class_once_and_marks_the_unseen(row: Row) -> None:
    assert row.classes() == [3, 7, 5], "by the area in all panels"
    with house_style():
        figure = draw_panels([row], ["ours", "truth"], **HEADING)
        texts = [text for text, _ in text_boxes(figure)]
    for expected in ("sky", "lake (unseen)", "no segment", "image_1", "3 segments", "2 segments"):
        assert texts.count(expected) == 1
    assert sum(text.startswith("a very long name") for text in texts) == 1
    assert not any("not here" in text for text in texts)
    # In the legend, and in each panel with the class.
    assert [texts.count(number) for number in ("1", "2", "3")] == [3, 3, 2]
    assert [text for text in texts if "(unseen)" in text] == ["lake (unseen)"]


def test_a_number_lies_in_a_segment_of_its_class(row: Row) -> None:
    with house_style():
        figure = draw_panels([row], ["ours", "truth"], **HEADING)
    order = row.classes()
    for axes, panel in zip(figure.axes[1:3], row.panels, strict=True):
        enlarged = axes.images[0].get_array()
        scale = panel.ids.shape[1] / enlarged.shape[1]
        numbers = [text for text in axes.texts if text.get_text().isdigit()]
        found = []
        for text in numbers:
            x, y = (int(value * scale) for value in text.get_position())
            found.append(panel.segments[panel.ids[y, x]])
            assert order.index(found[-1]) == int(text.get_text()) - 1
        assert sorted(found) == sorted(panel.segments.values())


def test_segments_without_a_class_have_no_legend() -> None:
    panel = Panel(ids=quarters(1, 2, 3, 4), segments=dict.fromkeys(range(1, 5)), caption="4 masks")
    with house_style():
        figure = draw_panels([make_row({}, [panel], frozenset())], ["masks"], **HEADING)
        texts = [text for text, _ in text_boxes(figure)]
    assert set(texts) >= {"image", "masks", "4 masks", "image_1"}
    assert not {"1", "2", "no segment"} & set(texts)
    picture = figure.axes[1].images[0].get_array()
    height, width = picture.shape[:2]
    corners = [picture[y * height // 4, x * width // 4].astype(int) for y in (1, 3) for x in (1, 3)]
    assert len({tuple(np.argsort(corner)) for corner in corners}) >= 3, "colours differ"


@pytest.mark.parametrize("classes", [0, 1, 9, 33])
def test_pictures_are_readable(classes: int) -> None:
    names = {k: f"class_{k:02d}" + "x" * k for k in range(classes)}
    ids = np.zeros((40, 60), dtype=np.int32)
    for k in range(classes):
        ids[k : k + 2, :30] = k + 1
    panel = Panel(ids=ids, segments={k + 1: k for k in range(classes)}, caption="some segments")
    rows = [make_row(names, [panel, panel], frozenset(range(0, classes, 3)))] * 2
    with house_style():
        figure = draw_panels(rows, ["ours", "truth"], **HEADING)
        texts = [text[:8] for text, _ in text_boxes(figure)]
        for k in range(classes):
            assert texts.count(f"class_{k:02d}") == 2, "once in each row's legend"
        for axes in figure.axes:
            if axes.images:
                for number in axes.texts[:-1]:  # last is the caption; the segments here are narrow
                    number.set_visible(False)
        assert_readable(figure)


def test_a_row_with_another_number_of_panels(row: Row) -> None:
    with pytest.raises(ValueError, match="3 panels are expected"):
        draw_panels([row], ["a", "b", "c"], **HEADING)


MEASURED = {
    "PosSAM (B)": {
        "seen": Value(value=50.0, low=48.0, high=53.0),
        "unseen": Value(value=40.0, low=36.0, high=41.0),
    },
    "PosSAM (H)": {
        "seen": Value(value=60.0, low=57.0, high=62.0),
        "unseen": Value(value=45.5, low=44.0, high=47.0),
    },
}
PUBLISHED = {"FC-CLIP": {"seen": Value(value=39.1), "unseen": Value(value=17.3)}}


def test_bars_are_the_values_and_published_ones_are_hatched() -> None:
    with house_style():
        figure = draw_bars(MEASURED, PUBLISHED, labels=("measured", "published (paper)"), **HEADING)
        texts = [text for text, _ in text_boxes(figure)]
        assert_readable(figure)
    left, right = figure.axes
    heights = [[bar.get_height() for bar in axes.patches] for axes in (left, right)]
    assert heights == [[40.0, 45.5, 50.0, 60.0], [17.3, 39.1]]
    assert not any(bar.get_hatch() for bar in left.patches)
    assert all(bar.get_hatch() for bar in right.patches)
    lines = [c for c in left.collections if isinstance(c, LineCollection)]
    whiskers = [line.get_segments()[0][:, 1].tolist() for line in lines]
    assert whiskers == [[36.0, 41.0], [44.0, 47.0], [48.0, 53.0], [57.0, 62.0]]
    assert not right.collections
    assert {"40.0", "45.5", "50.0", "60.0", "17.3", "39.1", "PQ in percent"} <= set(texts)
    assert {"seen classes", "unseen classes", "PosSAM\n(B)", "FC-CLIP"} <= set(texts)
    assert left.get_ylim() == right.get_ylim() and left.get_ylim()[0] == 0


def test_an_interval_beside_its_value_is_drawn_as_it_is() -> None:
    pair = {
        "seen": Value(value=5.0, low=6.0, high=7.0),
        "unseen": Value(value=9.0, low=6.0, high=8.0),
    }
    axes = draw_bars(
        {"A": pair}, PUBLISHED, labels=("measured", "published (paper)"), **HEADING
    ).axes[0]
    lines = [c for c in axes.collections if isinstance(c, LineCollection)]
    assert [line.get_segments()[0][:, 1].tolist() for line in lines] == [[6.0, 8.0], [6.0, 7.0]]


def write_log(path: Path, steps: int) -> Path:
    lines = [
        {"step": 10 * (k + 1), "lr": 0.1, **{t: (p + 1.0) / (k + 1) for p, t in enumerate(TERMS)}}
        for k in range(steps)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_curves_are_the_logged_values(tmp_path: Path) -> None:
    curve = read_curve(write_log(tmp_path / "m.jsonl", 4), run="full", seed=0)
    assert curve.steps == [10, 20, 30, 40]
    gap = Curve(run="other", seed=1, steps=[10, 20], values={term: [1.0, None] for term in TERMS})
    with house_style():
        figure = draw_curves([curve, gap], **HEADING)
        assert_readable(figure)
    plots, corner = figure.axes[:-1], figure.axes[-1]
    assert [axes.get_title() for axes in plots] == list(TERMS.values())
    for place, axes in enumerate(plots):
        first, second = axes.lines
        np.testing.assert_allclose(first.get_ydata(), [(place + 1) / k for k in (1, 2, 3, 4)])
        assert np.isnan(second.get_ydata()).tolist() == [False, True]
        assert first.get_color() != second.get_color()
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("iteration", "loss")
    assert [t.get_text() for t in corner.get_legend().get_texts()] == ["full", "other"]


def test_many_runs_differ_in_colour_or_style() -> None:
    curves = [
        Curve(run=f"run_{k}", seed=0, steps=[1, 2], values={term: [2.0, 1.0] for term in TERMS})
        for k in range(30)
    ]
    lines = draw_curves(curves, **HEADING).axes[0].lines
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 30


@pytest.mark.parametrize("text", ["", '{"step": 1}\n', '{"step": 1\n', "[1]\n"])
def test_a_damaged_log_is_reported(tmp_path: Path, text: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=r"metrics\.jsonl"):
        read_curve(path, run="r", seed=0)
    with pytest.raises(InputError, match=r"absent\.jsonl: no such file"):
        read_curve(tmp_path / "absent.jsonl", run="r", seed=0)


def test_published_columns(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("method,a,b\nX,1.5,2\nY,,3\n")
    assert read_columns(path, ("a", "b")) == {"X": {"a": 1.5, "b": 2.0}}
    with pytest.raises(InputError, match="column 'c' is missing"):
        read_columns(path, ("c",))
    path.write_text("method,a\nX,high\n")
    with pytest.raises(InputError, match="X: a: 'high' is no number"):
        read_columns(path, ("a",))


def test_the_same_figure_gives_the_same_bytes(tmp_path: Path, row: Row) -> None:
    def save(folder: Path) -> dict[str, str]:
        with house_style():
            figure = draw_panels([row], ["ours", "truth"], **HEADING)
            return save_figure(figure, png=folder / "f.png", pdf=folder / "f.pdf")

    first = save(tmp_path / "a")
    with matplotlib.rc_context({"font.size": 20, "text.color": "red", "savefig.dpi": 30}):
        assert save(tmp_path / "b") == first
    for name in ("f.png", "f.pdf"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    content = (tmp_path / "a/f.pdf").read_bytes()
    assert content.startswith(b"%PDF") and b"CreationDate" not in content
    with Image.open(tmp_path / "a/f.png") as image:
        assert "Software" not in image.info and min(image.size) > 300
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"f.png", "f.pdf"}
