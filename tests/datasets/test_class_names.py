"""Class-name files, and the numbers of seen classes that the published labels give."""

from pathlib import Path

import pytest

from possam.datasets.class_names import (
    check_numbering,
    name_keys,
    read_class_index,
    read_class_table,
    read_label_names,
    seen_classes,
    write_class_index,
)
from possam.runtime.errors import InputError
from tests.support.parity_report import Parity


def test_reads_names_synonyms_and_upstream_indices(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("0:invalid_class_id\n1:person, child\n2:invalid_class_id\n\n13:stop sign\n")
    assert list(read_class_index(path).values()) == [("person", "child"), ("stop sign",)]
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
        read_class_index(path)
    assert str(path) in str(error.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="fetch"):
        read_class_index(tmp_path / "none.txt")


def test_seen_compares_whole_names_without_case_and_space() -> None:
    seen = seen_classes([["Sky "], ["skyscraper"], ["rug", "carpet"]], [["sky"], ["CARPET"]])
    assert seen == [True, False, True]


def _written_out(path: Path) -> list[set[str]]:
    """Names of each class of a published file, read without the package."""
    classes = []
    for line in path.read_text().split("\n"):
        names = line.split(":")[-1].split(",")
        if line and names != ["invalid_class_id"]:
            classes.append({name.strip().lower() for name in names})
    return classes


@pytest.mark.parity("seen_classes")
@pytest.mark.parametrize(
    ("name", "classes", "seen"),
    [("ade20k_150", 150, 64), ("ade20k_847", 847, 101), ("pascal_context_459", 459, 85)],
)
def test_published_labels_give_the_known_numbers_of_seen_classes(
    shared: Path, name: str, classes: int, seen: int, parity: Parity
) -> None:
    """A class is seen if one of its synonyms is a synonym of a COCO class (FC-CLIP's rule)."""
    folder = shared / "upstream" / "openseg_labels"
    training = list(read_class_index(folder / "coco_panoptic_with_prompt_eng.txt").values())
    vocabulary = list(read_class_index(folder / f"{name}_with_prompt_eng.txt").values())
    assert len(training) == 133
    assert len(vocabulary) == classes
    flags = seen_classes(vocabulary, training)
    parity.equal(sum(flags), seen)
    known = set().union(*_written_out(folder / "coco_panoptic_with_prompt_eng.txt"))
    target = _written_out(folder / f"{name}_with_prompt_eng.txt")
    for flag, names in zip(flags, target, strict=True):
        parity.equal(flag, bool(known & names))


def test_label_maps_need_the_indices_one_to_k(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("0:invalid_class_id\n1:wall\n2:sky,heaven\n")
    assert read_label_names(path) == {1: ("wall",), 2: ("sky", "heaven")}
    for text in ("1:wall\n3:sky\n", "2:sky\n1:wall\n", "0:wall\n1:sky\n"):
        path.write_text(text)
        with pytest.raises(InputError, match=r"names\.txt: .*1\.\.K, without gaps"):
            read_label_names(path)


def test_tables_of_classes_are_read_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text('id,name\n1,"wall, partition"\n2,\n')
    rows = read_class_table(path, ("id", "name"))
    assert rows == [{"id": "1", "name": "wall, partition"}, {"id": "2", "name": ""}]
    for text, fault in (
        ("", "columns are"),
        ("name,id\nwall,1\n", "columns are"),
        ("id,name\n1,wall\n2\n", "line 3 has 1 cells, not 2"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=rf"table\.csv: .*{fault}"):
            read_class_table(path, ("id", "name"))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"table\.csv: cannot be read"):
        read_class_table(path, ("id", "name"))
    with pytest.raises(InputError, match=r"none\.csv: no such file"):
        read_class_table(tmp_path / "none.csv", ("id", "name"))


def test_names_are_compared_without_cocos_additions() -> None:
    def same(first: str, second: str) -> bool:
        return bool(name_keys(first) & name_keys(second))

    for first, second in (
        ("floor-other-merged", "floor"), ("wall-brick", "brick wall"), ("door-stuff", "Door"),
        ("bed, cot", "cot"), ("traffic_light", "traffic light"), ("straße", "STRASSE"),
    ):  # fmt: skip
        assert same(first, second)
    assert not same("wall-brick", "wall") and not same("table", "dining table")
    assert name_keys("") == set() and name_keys("other") == {("other",)}


def test_shifted_class_names_are_refused_and_renamed_ones_are_not() -> None:
    upstream, path = ["person", "bicycle", "orange", "sky-other-merged"], Path("names.txt")
    check_numbering(
        [("human", "person"), ("bike",), ("orange fruit",), ("sky",)], upstream, path, path
    )
    check_numbering([("Mensch",), ("Rad",), ("Apfelsine",), ("Himmel",)], upstream, path, path)
    check_numbering([("a",), ("b",)], ["", ""], path, path)
    with pytest.raises(InputError, match=r"3 of 4 classes have .*'bicycle' there is 'orange' here"):
        check_numbering([("person",), ("orange",), ("sky",), ("bicycle",)], upstream, path, path)


def test_commas_and_backslashes_in_names_come_back(tmp_path: Path) -> None:
    names = {0: ("made of paper, cardboard", "box"), 7: ("a\\b", "c\\", "\\,"), 9: ("路面電車",)}
    write_class_index(tmp_path / "names.txt", names)
    assert read_class_index(tmp_path / "names.txt") == names
    assert "made of paper\\, cardboard,box" in (tmp_path / "names.txt").read_text()
    (tmp_path / "names.txt").write_text("3:one, two,C:\\dir\n")
    assert read_class_index(tmp_path / "names.txt") == {3: ("one", "two", "C:\\dir")}
