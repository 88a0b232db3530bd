"""Parameter files are YAML 1.2; a bad value is refused with file and field before any job."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from possam.params.data import load_data
from possam.params.project import Project
from possam.params.yaml import read_yaml
from possam.pipeline.graph import Graph
from possam.runtime.errors import InputError

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(REPOSITORY / "params", tmp_path / "params"))


def read(tmp_path: Path, content: str | bytes) -> dict[str, Any]:
    path = tmp_path / "file.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_yaml(path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("5e-05", 5e-05), ("1e-3", 1e-3), ("1E5", 1e5), (".5", 0.5), ("1.", 1.0), ("+1e3", 1e3)],
        *[("-.5E+2", -50.0), ("1.5e3", 1500.0), ("-0.0", -0.0), (".inf", math.inf)],
        *[("7", 7), ("-7", -7), ("+7", 7), ("010", 10), ("0o17", 15), ("0x1F", 31)],
        *[("true", True), ("FALSE", False), ("~", None), ("null", None), ("", None)],
        *[(text, text) for text in ("no", "on", "off", "y", "Yes", "1:30", "190:20:30")],
        *[(text, text) for text in ("2001-01-01", "1_000", "0b11", "<<", "=", "1e", ".", "+.nan")],
        *[("'5e-05'", "5e-05"), ('"true"', "true"), ("!!str 5", "5"), ("!!float 5", 5.0)],
    ],
)
def test_scalars_are_those_of_yaml_1_2(tmp_path: Path, text: str, value: object) -> None:
    found = read(tmp_path, f"key: {text}\n")["key"]
    assert found == value and type(found) is type(value)


def test_a_key_is_the_text_that_is_written(tmp_path: Path) -> None:
    text = "no: 1\n010: 2\n1e3: 3\nnull: 4\n1:30: 5\n2001-01-01: 6\ntrue: 7\n'on': 8\n"
    keys = ["no", "010", "1e3", "null", "1:30", "2001-01-01", "true", "on"]
    assert list(read(tmp_path, text)) == keys


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_line_ends_and_marks_of_other_systems_change_nothing(
    tmp_path: Path, end: str, encoding: str
) -> None:
    lines = ("a: 5e-05", "b: {c: [x, 'é']}", "d: |", "  two", "  lines", "")
    found = read(tmp_path, end.join(lines).encode(encoding))
    assert found == {"a": 5e-05, "b": {"c": ["x", "é"]}, "d": "two\nlines\n"}


@pytest.mark.parametrize(
    "content",
    [
        *["? [a]\n: 1\n", "a: 1\na: 2\n", "b: {a: 1, a: 2}\n", "010: 1\n'010': 2\n"],
        *["a: \t- 1\n", "a:\n\tb: 1\n", "a: &x [*x]\n", "a: &x {b: *x}\n", "a: *x\n"],
        *[
            "a: !!int abc\n",
            "a: !!bool yes\n",
            "a: !!float {b: 1}\n",
            "a: !!map [1]\n",
            "a: !!binary aGk=\n",
            "a: !!timestamp 2001-01-01\n",
        ],
        *["a: !!python/object/apply:os.getcwd []\n", "a: 1\n--- \nb: 1\n", "a: " + 5000 * "9"],
        *[5000 * "[", 3000 * "{a: ", "a: \x00\n", b"a: \xff\n", "- 1\n", "text\n", "{}: 1\n"],
    ],
)
def test_what_is_no_such_mapping_is_refused_with_the_files_name(
    tmp_path: Path, content: str | bytes
) -> None:
    with pytest.raises(InputError, match=r"file\.yaml: "):
        read(tmp_path, content)


def test_a_file_that_cannot_be_read_is_no_missing_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_yaml(tmp_path / "file.yaml")
    with pytest.raises(InputError, match="a folder, where a file is expected"):
        read_yaml(tmp_path)


def test_the_shipped_files_mean_the_same_in_both_versions_of_yaml() -> None:
    for path in sorted((REPOSITORY / "params").rglob("*.yaml")):
        expected = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        assert read_yaml(path, may_be_empty=True) == expected


@pytest.mark.parametrize(
    ("override", "value"),
    [
        *[("0.00005", 5e-05), ("0.0000001", 1e-07), ("1e-3", 1e-3), ("5e-05", 5e-05)],
        *[("1E5", 1e5), ("3", 3.0), ("1e16", 1e16)],
    ],
)
def test_what_dvc_writes_is_read_as_it_was_meant(
    folder: Path, override: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``dvc exp run -S``; DVC writes 0.00005 as 5e-05, which YAML 1.1 takes for text."""
    from dvc.utils.hydra import apply_overrides

    monkeypatch.chdir(folder.parent)
    option = f"+possam_b_ade20k.training.learning_rate={override}"
    apply_overrides("params/runs.yaml", [option])
    run = Project("smoke").run("possam_b_ade20k")
    assert run.training.learning_rate == value and type(run.training.learning_rate) is float


def test_the_way_a_number_is_written_is_no_part_of_an_identity(folder: Path) -> None:
    path = folder / "scales/smoke.yaml"
    text = path.read_text()
    found = set()
    for written in ("1.0e-3", "1e-3", "0.001", "+1E-03", ".001", "10e-4"):
        path.write_text(text.replace("learning_rate: 1.0e-3", f"learning_rate: {written}"))
        job = {"prefix": "smoke/", "run": "possam_b_coco", "seed": "0"}
        found.add(Graph(folder=folder).identity("train", job))
    assert len(found) == 1


@pytest.mark.parametrize(
    ("value", "message"),
    [
        *[(".nan", "finite number"), (".inf", "finite number"), ("1e400", "finite number")],
        *[("-1e-3", "greater than 0"), ("0", "greater than 0"), ("null", "valid number")],
        *[("'1e-3'", "valid number"), ("1e", "valid number"), ("true", "valid number")],
        *[("1_000", "valid number"), ("[1e-3]", "valid number"), ("2001-01-01", "valid number")],
    ],
)
def test_a_bad_number_is_refused_with_file_and_field(
    folder: Path, value: str, message: str
) -> None:
    path = folder / "scales/smoke.yaml"
    path.write_text(path.read_text().replace("learning_rate: 1.0e-3", f"learning_rate: {value}"))
    with pytest.raises(InputError, match=rf"smoke\.yaml: training\.learning_rate: .*{message}"):
        Project("smoke", folder=folder)


def test_a_number_in_place_of_text_is_told_to_be_quoted(folder: Path) -> None:
    path = folder / "scales/smoke.yaml"
    path.write_text(path.read_text().replace("title: ", "title: 2024 # "))
    with pytest.raises(InputError, match=r"title: .*got 2024\); write it in quotes"):
        Project("smoke", folder=folder)


def test_a_bad_file_of_own_data_is_refused_before_a_download_starts(folder: Path) -> None:
    path = folder / "data.yaml"
    path.write_text(path.read_text().replace("\nroots:", "\nrots:"))
    with pytest.raises(InputError, match=r"data\.yaml: rots"):
        load_data(Project("smoke", folder=folder))
    with pytest.raises(InputError, match=r"data\.yaml: rots"):
        Graph(folder=folder).inputs("download", {"scale": "smoke", "asset": "synthetic_sam_b"})


@pytest.mark.parametrize("cell", ["nan", "inf", "-inf", "n/a", "1,5"])
def test_a_published_cell_that_is_no_number_is_refused(folder: Path, cell: str) -> None:
    path = folder / "published/table8_efficiency.csv"
    head, line, *rest = path.read_text().splitlines()
    cells = line.split(",")
    cells[-1] = f'"{cell}"'
    path.write_text("\n".join([head, ",".join(cells), *rest]))
    with pytest.raises(InputError, match=r"table8_efficiency\.csv: .* is no number"):
        Graph(folder=folder).inputs("table", {"prefix": "smoke/", "table": "table8"})
