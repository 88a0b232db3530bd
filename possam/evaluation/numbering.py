"""Which numbering of the classes predictions have: told by their names, or by where they agree.

A numbering maps the numbers in the files (labels, or COCO's ``category_id``) to class indices.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from possam.datasets.class_names import name_keys
from possam.datasets.format import ConvertedDataset
from possam.datasets.records import Category
from possam.evaluation.run_lengths import RunLengths, count_shared_pixels, encode_array
from possam.runtime.errors import InputError

LOW = 50.0
"""Scores below, in percent, are looked at: a wrong numbering gives about 0, or a part."""
_GAIN, _FREE_GAIN = 0.05, 0.2
"""How much better another numbering must be: one of the known ones, or any renumbering."""
_NEAR = 0.1
"""A known numbering is preferred to any renumbering that is better by this."""
_GOOD = 0.1
_IMAGES = 100

Numbers = Mapping[int, int]


class NumberingError(InputError):
    """Predictions have a number that is none of the data set's, in the numbering that was named."""


class Mapped(NamedTuple):
    """Predicted map of one image, as runs, and the number of the class of each of its values."""

    runs: RunLengths
    numbers: Mapping[int, int]


def numberings(categories: Sequence[Category]) -> dict[str, dict[int, int]]:
    """Every numbering that people use, by what it is and how to choose or make it; no two equal."""
    own = {category.index: category.index for category in categories}
    upstream = {category.upstream_id: category.index for category in categories}
    things = sorted(categories, key=lambda category: (not category.is_thing, category.index))
    names = sorted(categories, key=lambda category: category.names[0])
    choices: list[tuple[str, dict[int, int]]] = [
        (f"{kind} ids (choose category_ids={kind!r}, --category-ids {kind})", known)
        for kind, known in (("contiguous", own), ("upstream", upstream))
    ]
    for kind, known in (("contiguous", own), ("upstream", upstream)):
        for shift, remedy in ((1, "subtract 1 from each"), (-1, "add 1 to each")):
            shifted = {number + shift: index for number, index in known.items()}
            choices.append((f"{kind} ids shifted by {shift:+d} ({remedy})", shifted))
    choices += [
        (f"numbers from 0 in {order}", {number: one.index for number, one in enumerate(classes)})
        for order, classes in (
            ("the order of things before stuff", things),
            ("the alphabetical order of names", names),
        )
    ]
    found: dict[str, dict[int, int]] = {}
    for text, numbers in choices:
        if numbers not in found.values():
            found[text] = numbers
    return found


def check_listed(
    listed: Sequence[tuple[int, str]],
    numbers: Numbers,
    dataset: ConvertedDataset,
    *,
    kind: str,
    where: str,
) -> str | None:
    """Check the ids and names that predictions list against a numbering of the data set.

    A name may be any of the class's, or its publisher's. A few unknown names pass.

    Args:
        listed: id and name (empty: not given) of each entry of ``categories``.
        kind, where: name of the numbering, and begin of the messages.

    Returns:
        A note on names that are unknown, or None.

    Raises:
        NumberingError: an id that is none of ``numbers``, or names of other classes.
    """
    categories = dataset.categories
    keys = [_keys_of(category) for category in categories]
    found = [name_keys(name) if name else None for _, name in listed]

    def agreeing(numbers: Numbers) -> list[bool | None]:
        return [
            None if own is None else key in numbers and bool(own & keys[numbers[key]])
            for (key, _), own in zip(listed, found, strict=True)
        ]

    def other() -> str:
        return _fitting(listed, agreeing, numbers, dataset, kind)

    for position, (key, _) in enumerate(listed):
        if key not in numbers:
            raise NumberingError(
                f"{where}[{position}]: id: {key} is no {kind} category id of {dataset.name}"
                f"{other()}"
            )
    agree = agreeing(numbers)
    settled = {
        numbers[key] for (key, _), same in zip(listed, agree, strict=True) if same is not False
    }
    unknown = []
    for position, ((key, name), own, same) in enumerate(zip(listed, found, agree, strict=True)):
        if same is not False or own is None:
            continue
        unknown.append(name)
        strangers = {index for index, one in enumerate(keys) if one & own} - settled
        if strangers or 2 * len(unknown) > len(listed):
            raise NumberingError(
                f"{where}[{position}]: name: {name!r}, but class {numbers[key]} of {dataset.name} "
                f"is {categories[numbers[key]].names[0]!r}{other()}"
            )
    if not unknown:
        return None
    return f"{where}: {len(unknown)} names are none of the data set's: {', '.join(unknown[:5])}"


def _keys_of(category: Category) -> set[tuple[str, ...]]:
    names = (*category.names, category.upstream_name)
    return set().union(*(name_keys(name) for name in names if name))


def _fitting(
    listed: Sequence[tuple[int, str]],
    agreeing: Any,
    numbers: Numbers,
    dataset: ConvertedDataset,
    kind: str,
) -> str:
    """The numbering in which all listed ids are valid and most names agree, as a remedy."""
    least = agreeing(numbers).count(True) if all(key in numbers for key, _ in listed) else -1
    best, text = least, ""
    for what, other in numberings(dataset.categories).items():
        same = agreeing(other).count(True)
        if same > best and other != numbers and all(key in other for key, _ in listed):
            best, text = same, what
    if not text:
        opposite = "contiguous" if kind == "upstream" else "upstream"
        return (
            f"; if the ids are {opposite} ids, choose category_ids={opposite!r}; else correct them"
        )
    return f"; they fit {text}: {best} of {len(listed)} names agree"


def suggest(
    dataset: ConvertedDataset, read: Any, *, stated: Numbers, listed: Sequence[tuple[int, str]] = ()
) -> str | None:
    """What numbering the predictions agree with, if it is clearly not the stated one.

    At most 100 images are read, from the whole data set.

    Args:
        read: takes an image's record; returns a :class:`Mapped`.
        stated: the numbering that was named.
        listed: as of :func:`check_listed`.

    Raises:
        InputError: a file is malformed.
    """
    step = -(-len(dataset) // _IMAGES)
    pixels = Counter[tuple[int, int]]()
    positions = range(0, len(dataset), step)
    for position in positions:
        pixels.update(dict(_count(dataset, position, read(dataset.images[position]))))
    used = sorted({number for _, number in pixels})
    if not used:
        return None
    place = {number: column for column, number in enumerate(used)}
    table = np.zeros((len(dataset.categories), len(used)), np.int64)
    for (label, number), count in pixels.items():
        table[label, place[number]] += count
    known = numberings(dataset.categories)
    if by_name := _by_name(listed, dataset.categories):
        known["the names in 'categories'"] = by_name
    now = float(_ious(table, used, stated).mean())
    scores = {text: float(_ious(table, used, other).mean()) for text, other in known.items()}
    best = max(scores, key=lambda text: scores[text])
    numbers = known[best]
    rows, columns = linear_sum_assignment(table, maximize=True)
    free = {used[column]: int(row) for row, column in zip(rows, columns, strict=True)}
    score, gain = scores[best], _GAIN
    if (any_order := float(_ious(table, used, free).mean())) > score + _NEAR:
        score, gain, numbers = any_order, _FREE_GAIN, free
        best = _describe(free, stated, table, used, dataset)
    good = int((_ious(table, used, numbers) > _GOOD).sum())
    if score < max(2 * now, now + gain) or good < 2:  # one good class: the largest one, everywhere
        return None
    return (
        f"the classes may have another numbering than stated: over {len(positions)} images, the "
        f"mIoU is {100 * now:.2f} as stated, and {100 * score:.2f} with {best}"
    )


def _describe(
    free: Numbers,
    stated: Numbers,
    table: NDArray[np.int64],
    used: Sequence[int],
    dataset: ConvertedDataset,
) -> str:
    """A numbering in no known order, by what differs most from the stated one."""
    pixels = dict(zip(used, table.max(axis=0).tolist(), strict=True))
    moved = [number for number in free if stated.get(number) != free[number]]
    moved.sort(key=lambda number: -pixels[number])
    named = [f"{number} for {dataset.categories[free[number]].names[0]!r}" for number in moved[:5]]
    return f"another numbering: {', '.join(named)}{', ...' if len(moved) > 5 else ''}"


def _count(
    dataset: ConvertedDataset, position: int, predicted: Mapped
) -> Iterator[tuple[tuple[int, int], int]]:
    """Pixels by class in the ground truth and number in the prediction, without void."""
    truth, classes = dataset.semantic(position), len(dataset.categories)
    shared = count_shared_pixels(encode_array(np.where(truth < 0, classes, truth)), predicted.runs)
    found = Counter[tuple[int, int]]()
    for label, value, count in zip(*(part.tolist() for part in shared), strict=True):
        if label < classes and value in predicted.numbers:
            found[label, predicted.numbers[value]] += count
    yield from found.items()


def _by_name(listed: Sequence[tuple[int, str]], categories: Sequence[Category]) -> dict[int, int]:
    """The numbering that names say, where each belongs to one class only."""
    keys, numbers = [_keys_of(category) for category in categories], {}
    for key, name in listed:
        own = name_keys(name) if name else set()
        classes = [index for index, one in enumerate(keys) if one & own]
        if len(classes) == 1:
            numbers[key] = classes[0]
    return numbers


def _ious(table: NDArray[np.int64], used: Sequence[int], numbers: Numbers) -> NDArray[np.float64]:
    """IoU of each class in the ground truth, if the columns of ``table`` mean ``numbers``."""
    confusion = np.zeros((len(table), len(table)), np.int64)
    for column, number in enumerate(used):
        if (index := numbers.get(number)) is not None:
            confusion[:, index] += table[:, column]
    target, both = table.sum(axis=1), np.diag(confusion)
    union = target + confusion.sum(axis=0) - both
    return np.asarray(both[target > 0] / union[target > 0], np.float64)
