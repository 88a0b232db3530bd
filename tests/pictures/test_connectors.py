"""Results in supervision, the real package."""

from pathlib import Path

import numpy as np
import pytest

from possam.runtime.errors import InputError
from tests.support.results import hard_ids, make_result

pytestmark = pytest.mark.filterwarnings("ignore:OpenCV")


def test_supervision_draws_filters_and_writes_the_segments(tmp_path: Path) -> None:
    supervision = pytest.importorskip("supervision")
    result = make_result(hard_ids())
    found = result.to_supervision()
    assert len(found) == 5
    for place, segment in enumerate(result.segments):
        assert np.array_equal(found.mask[place], segment.mask)
        x, y, width, height = segment.box
        assert found.xyxy[place].tolist() == [x, y, x + width, y + height]
    corners = found.xyxy - np.array([0, 0, 1, 1])
    assert np.array_equal(supervision.mask_to_xyxy(found.mask), corners)
    assert found.area.tolist() == [segment.area for segment in result.segments]
    assert found["class_name"].tolist() == [segment.name for segment in result.segments]
    things = found[found.data["is_thing"]]
    assert things.class_id.tolist() == [s.class_index for s in result.segments if s.is_thing]
    assert things.data["clip_embedding"].shape == (4, 8)
    drawn = supervision.MaskAnnotator(opacity=1.0).annotate(result.image.copy(), found)
    changed = (drawn != result.image).any(axis=-1)
    assert changed[result.id_map > 0].mean() > 0.9 and not changed[result.id_map == 0].any()


def test_a_picture_without_segments_is_empty_in_supervision() -> None:
    pytest.importorskip("supervision")
    found = make_result(np.zeros((4, 5))).to_supervision()
    assert len(found) == 0 and found.mask.shape == (0, 4, 5)
    assert len(found[found.confidence > 0.5]) == 0


def test_without_supervision_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "supervision", None)
    with pytest.raises(InputError, match="pip install supervision"):
        make_result([[1]]).to_supervision()
