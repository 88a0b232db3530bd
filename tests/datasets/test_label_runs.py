"""Tables and codes from runs, compared with one boolean mask per segment and pycocotools."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as run_length

from possam.datasets.label_runs import encode_masks, segment_table

VALUES = st.sampled_from([0, 1, 5, 300, 70000])
SHAPES = arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9)
MAPS = arrays.arrays(np.int32, SHAPES, elements=VALUES, fill=VALUES)


@given(MAPS)
def test_segment_table_counts_like_masks_do(ids: np.ndarray) -> None:
    expected = []
    for key in sorted(set(ids.ravel().tolist()) - {0}):
        rows, columns = np.nonzero(ids == key)
        box = (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1)
        expected.append((key, len(rows), box))
    found = segment_table(ids)
    assert found == expected
    json.dumps(found)


@given(MAPS, st.sets(VALUES))
def test_run_length_masks_are_those_of_pycocotools(ids: np.ndarray, wanted: set[int]) -> None:
    found = encode_masks(ids, wanted)
    json.dumps(found)
    assert found == {
        key: {
            "size": list(ids.shape),
            "counts": run_length.encode(np.asfortranarray(ids == key, np.uint8))["counts"].decode(),
        }
        for key in wanted & set(ids.ravel().tolist())
    }


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1 << 20))
def test_long_runs_take_several_characters(seed: int) -> None:
    random = np.random.default_rng(seed)
    ids = np.zeros((1500, 900), np.uint16)
    for value in (1, 2, 300):
        y, x = random.integers(0, 1500), random.integers(0, 900)
        ids[y : y + random.integers(1, 1500), x : x + random.integers(1, 900)] = value
    for key, code in encode_masks(ids, {1, 2, 300}).items():
        other = run_length.encode(np.asfortranarray(ids == key, np.uint8))
        assert code["counts"] == other["counts"].decode()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64])
def test_every_type_of_map_and_no_pixel_at_all(dtype: type) -> None:
    ids = np.array([[0, 7, 7], [7, 7, 0]], dtype)
    assert segment_table(ids) == [(7, 4, (0, 0, 3, 2))]
    assert run_length.decode(encode_masks(ids, {7})[7]).tolist() == [[0, 1, 1], [1, 1, 0]]
    assert segment_table(ids[:0]) == [] and encode_masks(ids[:0], {7}) == {}
