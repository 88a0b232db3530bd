"""A numbering of the classes that is wrong by chance is noticed, and the right one is named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from possam.datasets.format import ConvertedDataset
from possam.evaluation.numbering import numberings
from possam.evaluation.options import EvaluationOptions
from possam.evaluation.score import NOTES, score
from possam.runtime.errors import InputError
from tests.evaluation.conftest import UPSTREAM

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(dataset: ConvertedDataset, settings_small: EvaluationOptions) -> Run:
    def call(predictions: Path, **options: Any) -> dict[str, Any]:
        return score(dataset=dataset, predictions=predictions, evaluation=settings_small, **options)

    return call


def renumber(labels: Path, numbers: dict[int, int], *, void: int = 255) -> None:
    """Rewrite label PNGs: class index -> number."""
    table = np.full(256, void, np.uint8)
    for index, number in numbers.items():
        table[index] = number
    for path in labels.iterdir():
        Image.fromarray(table[np.asarray(Image.open(path))]).save(path)


def notes(result: dict[str, Any]) -> str:
    return " ".join(result["protocol"].get(NOTES, []))


RING = {0: 1, 1: 2, 2: 3, 3: 4, 4: 0}
ALPHABET = {4: 0, 0: 1, 2: 2, 3: 3, 1: 4}


def test_the_right_numbering_has_no_notes(run: Run, labels: Path, written: Path) -> None:
    assert NOTES not in run(labels)["protocol"] and NOTES not in run(written)["protocol"]


def test_a_weak_prediction_is_not_a_wrong_numbering(run: Run, labels: Path) -> None:
    renumber(labels, dict.fromkeys(range(5), 4))
    result = run(labels)
    assert result["metrics"]["miou"] < 20 and NOTES not in result["protocol"]


@pytest.mark.parametrize(
    ("numbers", "void", "stated", "hint"),
    [
        ({k: k + 1 for k in range(5)}, 0, "contiguous", r"contiguous ids shifted by \+1"),
        (dict(enumerate(UPSTREAM)), 0, "contiguous", "--category-ids upstream"),
        ({k: k for k in range(5)}, 255, "upstream", "--category-ids contiguous"),
        ({k: u + 1 for k, u in enumerate(UPSTREAM)}, 0, "upstream", r"upstream ids shifted by \+1"),
    ],
)
def test_labels_that_do_not_fit_are_refused_with_the_numbering_that_does(
    run: Run, labels: Path, numbers: dict[int, int], void: int, stated: str, hint: str
) -> None:
    renumber(labels, numbers, void=void)
    with pytest.raises(InputError, match=rf"labels \[.*0\.00 as stated, and 100\.00 with .*{hint}"):
        run(labels, category_ids=stated)


def test_labels_that_fit_by_chance_are_noticed(run: Run, labels: Path) -> None:
    renumber(labels, ALPHABET)
    found = run(labels)
    assert found["metrics"]["miou"] == 40.0, "two names are where they were"
    assert "100.00 with numbers from 0 in the alphabetical order" in notes(found)


def test_any_other_order_is_named_by_its_largest_classes(run: Run, labels: Path) -> None:
    renumber(labels, RING)
    found = run(labels)
    assert found["metrics"]["miou"] == 0.0
    assert "100.00 with another numbering: " in notes(found)
    assert "2 for 'sky'" in notes(found) and "4 for 'grass'" in notes(found)


def renumber_json(content: dict[str, Any], numbers: dict[int, int], *, names: bool) -> None:
    for category in content["categories"]:
        category["id"] = numbers[category["id"]]
        if not names:
            del category["name"]
    for annotation in content["annotations"]:
        for segment in annotation["segments_info"]:
            segment["category_id"] = numbers[segment["category_id"]]


def test_panoptic_predictions_without_names_are_told_by_agreement(
    run: Run, written: Path, edit: Callable
) -> None:
    edit(lambda content: renumber_json(content, RING, names=False))
    assert "with another numbering: " in notes(run(written))


@pytest.mark.parametrize(
    ("numbers", "hint"),
    [
        (ALPHABET, "fit numbers from 0 in the alphabetical order of names: 5 of 5"),
        ({k: k + 1 for k in range(5)}, r"fit contiguous ids shifted by \+1 .*: 5 of 5 names"),
    ],
)
def test_names_say_which_numbering_panoptic_predictions_have(
    run: Run, written: Path, edit: Callable, numbers: dict[int, int], hint: str
) -> None:
    edit(lambda content: renumber_json(content, numbers, names=True))
    with pytest.raises(InputError, match=hint):
        run(written)


def test_names_are_compared_under_upstreams_ids_too(
    run: Run, written: Path, edit: Callable
) -> None:
    edit(lambda content: renumber_json(content, dict(enumerate(UPSTREAM)), names=True))
    edit(
        lambda content: [
            content["categories"][k].update(name=name) for k, name in ((0, "dog"), (2, "cat"))
        ]
    )
    with pytest.raises(InputError, match=r"name: 'dog', but class 0 of toy is 'cat'"):
        run(written, category_ids="upstream")


def test_other_spellings_and_a_few_unknown_names_pass(
    run: Run, written: Path, edit: Callable
) -> None:
    def rename(content: dict[str, Any]) -> None:
        for category, name in zip(
            content["categories"], ("Cat", "sky-other-merged", "hound", "grass-merged", "bus"),
            strict=True,
        ):  # fmt: skip
            category["name"] = name

    edit(rename)
    found = run(written)
    assert found["metrics"]["pq"] == 100.0
    assert "1 names are none of the data set's: hound" in notes(found)
    edit(
        lambda content: [
            entry.update(name=f"class {entry['id']}") for entry in content["categories"]
        ]
    )
    with pytest.raises(InputError, match=r"name: 'class 2', but class 2 of toy is 'dog'"):
        run(written)


def test_no_two_numberings_are_equal(dataset: ConvertedDataset) -> None:
    found = list(numberings(dataset.categories).values())
    assert all(one != other for k, one in enumerate(found) for other in found[:k])
    assert found[0] == {k: k for k in range(5)} and found[1][187] == 1
