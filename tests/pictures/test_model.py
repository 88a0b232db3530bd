"""The library: pictures and words in, results out, however the pictures come."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from possam.pictures.model import Model, Size
from possam.pictures.tiles import Found, Part, join, tiles
from possam.runtime.errors import InputError
from tests.support.colours import colour_model, scene

WORDS = ["horse", ["blue", "azure"], ["crimson", "red"], "green"]


@pytest.fixture(scope="module")
def model() -> Model:
    return colour_model()


def test_segments_are_where_and_what_they_are(model: Model) -> None:
    vocabulary = model.vocabulary(WORDS, stuff=["azure", "red"])
    result = model.segment(scene(), vocabulary)
    found = {segment.name: segment for segment in result.segments}
    assert set(found) == {"blue", "crimson", "green"} and len(result.segments) == 3
    assert found["green"].box == (45, 5, 10, 10) and found["green"].area == 100
    assert found["crimson"].box == (0, 0, 20, 40) and found["crimson"].area == 800
    assert found["blue"].area == 40 * 40 - 100
    assert [found[name].class_index for name in ("blue", "crimson", "green")] == [1, 2, 3]
    assert [found[name].is_thing for name in ("blue", "crimson", "green")] == [False, False, True]
    assert [found[name].seen for name in ("blue", "crimson", "green")] == [False, True, False]
    for segment in result.segments:
        assert segment.mask.sum() == segment.area and 0.5 < segment.score <= 1
        assert segment.embedding is not None and np.linalg.norm(segment.embedding) == 1
        names = [name for name, _ in segment.alternatives]
        scores = [score for _, score in segment.alternatives]
        assert segment.name not in names and scores == sorted(scores, reverse=True)
    assert [name for name, _ in result.rejected] == ["horse"]
    assert result.path is None and result.id_map.dtype == np.int32


def test_things_stay_apart_and_stuff_becomes_one(model: Model) -> None:
    for stuff, expected in (((), 2), (("red",), 1)):
        result = model.segment(scene(), model.vocabulary(["red", "blue"], stuff=stuff))
        assert [segment.name for segment in result.segments].count("red") == expected


def test_a_picture_without_a_segment_says_what_came_nearest(model: Model) -> None:
    grey = np.full((30, 30, 3), 128, np.uint8)
    grey[..., 0] = 129  # all red
    result = model.segment(grey, model.vocabulary(["horse", "green"]))
    assert not result.segments and not result.id_map.any()
    assert {name for name, _ in result.rejected} == {"horse", "green"}


def test_files_arrays_and_images_are_one_and_a_batch_is_its_pictures(
    model: Model, tmp_path: Path
) -> None:
    vocabulary = model.vocabulary(WORDS)
    sizes = [(40, 60), (60, 40), (40, 60), (50, 60), (40, 60)]
    pictures = [np.roll(scene(*size), 3 * k, axis=1) for k, size in enumerate(sizes)]
    Image.fromarray(pictures[1]).save(tmp_path / "turned.png")
    given = [pictures[0], tmp_path / "turned.png", Image.fromarray(pictures[2]), *pictures[3:]]
    singles = [model.segment(picture, vocabulary) for picture in pictures]
    for batch_size in (1, 2, 8):
        results = list(model.segment_all(given, vocabulary, batch_size=batch_size))
        assert [each.path for each in results] == [None, tmp_path / "turned.png", None, None, None]
        for one, other in zip(results, singles, strict=True):
            np.testing.assert_array_equal(one.id_map, other.id_map)
            np.testing.assert_array_equal(one.image, other.image)
            assert [s.name for s in one.segments] == [s.name for s in other.segments]


def test_pictures_that_cannot_be_read_are_left_out_or_end_it(model: Model, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_text("no picture")
    pictures = [scene(), tmp_path / "bad.jpg", scene()]
    vocabulary, faults = model.vocabulary(WORDS), []
    results = list(
        model.segment_all(pictures, vocabulary, on_error=lambda path, _: faults.append(path))
    )
    assert len(results) == 2 and faults == [tmp_path / "bad.jpg"]
    with pytest.raises(InputError, match=r"bad\.jpg"):
        list(model.segment_all(pictures, vocabulary))
    for wrong in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(InputError, match="uint8 is expected"):
            model.segment(wrong, vocabulary)


def test_masks_of_large_pictures_are_made_small_and_enlarged(model: Model) -> None:
    large = scene().repeat(8, axis=0).repeat(8, axis=1)
    result = model.segment(large, model.vocabulary(WORDS), max_size=60)
    found = {segment.name: segment for segment in result.segments}
    assert result.id_map.shape == (320, 480) and result.image is large
    assert found["green"].area == 6400 and found["green"].box == (360, 40, 80, 80)


def test_tiles_give_the_segments_of_the_whole(model: Model) -> None:
    large = scene().repeat(4, axis=0).repeat(4, axis=1)
    vocabulary = model.vocabulary(WORDS, stuff=["red", "blue", "green"])
    whole, tiled = (model.segment(large, vocabulary, tile=side) for side in (0, 100))
    assert sorted((s.name, s.box, s.area) for s in whole.segments) == sorted(
        (s.name, s.box, s.area) for s in tiled.segments
    )


@pytest.mark.parametrize(("size", "side"), [((100, 100), 100), ((101, 64), 64), ((500, 301), 96)])
def test_tiles_cover_the_picture_and_overlap(size: tuple[int, int], side: int) -> None:
    places = tiles(size, side)
    covered = np.zeros(size, int)
    for rows, columns in places:
        covered[rows, columns] += 1
        assert rows.stop <= size[0] and columns.stop <= size[1]
    assert covered.min() == 1 and (len(places) == 1) == (max(size) <= side)
    starts = sorted({columns.start for _, columns in places})
    assert all(b - a <= side - side // 4 for a, b in pairwise(starts))


def found(category: int, score: float, *, thing: bool = True) -> Found:
    vector = np.array([score, 0], np.float32)
    return Found(category, score, thing, None, vector, ())


def test_things_of_two_tiles_are_one_only_where_they_are_the_same_in_the_overlap() -> None:
    """Tiles of 8 x 12 with 4 columns in common; a thing of class 0 crosses, one of 1 does not."""
    places = [(slice(0, 8), slice(0, 12)), (slice(0, 8), slice(8, 20))]
    left, right = np.zeros((2, 8, 12), np.int32)
    left[0:3, 6:12], right[0:3, 0:6] = 1, 1
    left[5:7, 8:10], right[5:7, 2:4] = 2, 2  # beside each other, both of class 1
    best = np.array([0.9, 0.5], np.float32)
    parts = [
        Part(left, [found(0, 0.6), found(1, 0.5)], best),
        Part(right, [found(0, 0.9), found(1, 0.4)], best[::-1].copy()),
    ]
    whole = join((8, 20), places, parts)
    assert [(each.category, each.score) for each in whole.found] == [(0, 0.9), (1, 0.5), (1, 0.4)]
    assert (whole.ids == 1).sum() == 3 * 8 and np.unique(whole.ids[0:3, 6:14]).tolist() == [1]
    assert whole.best.tolist() == pytest.approx([0.9, 0.9])


def test_a_vocabulary_says_what_it_loses(model: Model) -> None:
    with pytest.warns(UserWarning, match="bat: in several classes"):
        model.vocabulary(["bat", ["club", "Bat"]])
    with pytest.warns(UserWarning, match="loses 'xyz'"):
        model.vocabulary(["w" * (38 - len("a photo of a ")) + "xyz"])
    with pytest.raises(InputError, match="sky: not among the words"):
        model.vocabulary(["cat"], stuff=["sky"])
    for empty in ([], [""], [[]]):
        with pytest.raises(InputError, match="no name"):
            model.vocabulary(empty)


def test_without_trained_classes_every_mask_is_one_of_the_words() -> None:
    model = colour_model(())
    result = model.segment(scene(), model.vocabulary(["red", "blue"], stuff=["red", "blue"]))
    assert {segment.seen for segment in result.segments} == {None}
    assert {segment.name for segment in result.segments} == {"red", "blue"}


@pytest.mark.parametrize("wrong", [{"max_size": 0}, {"tile": 10}, {"tile": -1}])
def test_sizes_that_make_no_sense_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(InputError, match="max_size"):
        Size(**wrong)


def test_only_large_pictures_are_worth_an_estimate(model: Model) -> None:
    vocabulary, large = model.vocabulary(WORDS), scene(2000, 2000)
    assert model.expected_seconds(scene(), vocabulary, size=Size()) is None
    for size in (Size(max_size=500), Size(max_size=500, tile=1200)):
        expected = model.expected_seconds(large, vocabulary, size=size)
        assert expected is not None and expected[:2] == (2000, 2000) and expected.seconds > 0
