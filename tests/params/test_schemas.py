"""The JSON Schemas of the parameter files: fresh, named in the files, and as strict as needed."""

import shutil
from pathlib import Path

import jsonschema
import pytest
import yaml

from possam.params.schemas import main, schemas, stale

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted([*(ROOT / "params").glob("*.yaml"), *(ROOT / "params/scales").glob("*.yaml")])
SCHEMAS = schemas()
COMMENT = "# yaml-language-server: $schema="


def named_schema(file: Path) -> Path:
    first = file.read_text().splitlines()[0]
    assert first.startswith(COMMENT), f"{file}: {first}"
    return (file.parent / first.removeprefix(COMMENT)).resolve()


def test_they_are_as_the_models_say() -> None:
    assert stale(ROOT / "params/schemas") == []


def test_a_stale_missing_or_strange_schema_is_named(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(ROOT / "params/schemas", tmp_path / "schemas"))
    (folder / "runs.json").write_text("{}")
    (folder / "plan.json").unlink()
    (folder / "old.json").write_text("{}")
    assert [path.name for path in stale(folder)] == ["old.json", "plan.json", "runs.json"]


def test_check_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--check"]) == 2 and not (tmp_path / "params").exists()
    assert "params/schemas/tables.json: not as the models" in capsys.readouterr().err
    (tmp_path / "params").mkdir()
    assert main([]) == 0 and main(["--check"]) == 0


@pytest.mark.parametrize("file", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_parameter_file_names_its_schema_and_fits_it(file: Path) -> None:
    schema = named_schema(file)
    assert schema.parent == ROOT / "params/schemas"
    validator = jsonschema.Draft202012Validator(SCHEMAS[schema.stem])
    validator.check_schema(SCHEMAS[schema.stem])
    validator.validate(yaml.safe_load(file.read_text()))


def test_every_schema_is_named_by_a_file() -> None:
    assert {named_schema(file).stem for file in FILES} == SCHEMAS.keys()


@pytest.mark.parametrize(
    ("schema", "wrong"),
    [
        ("runs", {"no_ldp": {"model": {"poolling": "clip"}}}),
        ("runs", {"no_ldp": {"model": {"pooling": 3}}}),
        ("tables", {"table1": {"title": "One"}}),
        ("benchmarks", {"coco": {"dataset": "coco", "split": "val", "metrics": ["fid"]}}),
        ("figures", {"one": {"kind": "pie", "title": "One"}}),
        ("slurm", {"defaults": {"cpus": 0}, "scales": {}}),
        ("slurm", {"defaults": {}, "scales": {"paper": {"tain": {}}}}),
        ("scale", {"seeds": [-1]}),
        ("variants", {"one": {"ensemble": 3}}),
    ],
)
def test_faults_are_underlined(schema: str, wrong: object) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(SCHEMAS[schema]).validate(wrong)


def test_a_difference_needs_no_key() -> None:
    for schema, right in (
        ("runs", {"no_ldp": {"sam": "b", "train": "coco", "model": {"pooling": "clip"}}}),
        ("scale", {"based_on": "paper", "training": {"iterations": 10}}),
        ("variants", {"default": {}}),
    ):
        jsonschema.Draft202012Validator(SCHEMAS[schema]).validate(right)
