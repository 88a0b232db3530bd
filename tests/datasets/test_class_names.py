"""Class-name files, and the numbers of seen classes that the published labels give."""

from pathlib import Path

import pytest

from possam.datasets.class_names import read_class_index, read_class_names, seen_classes
from possam.errors import InputError


def test_reads_names_synonyms_and_upstream_indices(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("0:invalid_class_id\n1:person, child\n2:invalid_class_id\n\n13:stop sign\n")
    assert read_class_names(path) == [("person", "child"), ("stop sign",)]
    assert read_class_index(path) == {1: ("person", "child"), 13: ("stop sign",)}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("1 person\n", "line 1"),
        ("x:person\n", "line 1"),
        ("1:person\n1:dog\n", "twice"),
        ("1:person,,child\n", "empty"),
        ("0:invalid_class_id\n", "no class"),
    ],
)
def test_malformed_files_are_refused(tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / "names.txt"
    path.write_text(text)
    with pytest.raises(InputError, match=fault) as error:
        read_class_names(path)
    assert str(path) in str(error.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="fetch"):
        read_class_names(tmp_path / "none.txt")


def test_seen_compares_whole_names_without_case_and_space() -> None:
    seen = seen_classes([["Sky "], ["skyscraper"], ["rug", "carpet"]], [["sky"], ["CARPET"]])
    assert seen == [True, False, True]


@pytest.mark.parametrize(
    ("name", "classes", "seen"),
    [("ade20k_150", 150, 64), ("ade20k_847", 847, 101), ("pascal_context_459", 459, 85)],
)
def test_published_labels_give_the_known_numbers_of_seen_classes(
    shared: Path, name: str, classes: int, seen: int
) -> None:
    folder = shared / "upstream" / "openseg_labels"
    training = read_class_names(folder / "coco_panoptic_with_prompt_eng.txt")
    vocabulary = read_class_names(folder / f"{name}_with_prompt_eng.txt")
    assert len(training) == 133
    assert len(vocabulary) == classes
    assert sum(seen_classes(vocabulary, training)) == seen
