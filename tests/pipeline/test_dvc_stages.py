"""dvc.yaml says exactly what each result depends on, and is in step with params/."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from possam.params.figures import load_figures
from possam.pipeline.codehash import module_closure
from possam.pipeline.dvc_file import check_dvc_file, own_records, write_dvc_file
from possam.pipeline.dvc_stages import Job, Stage, stages
from possam.pipeline.graph import CODE, Pipeline
from possam.runtime.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
SCALE = "smoke"

CHANGES: dict[str, tuple[str, Any]] = {
    "title": ("title", "another"),
    "synthetic": ("synthetic", False),
    "seeds": ("seeds", [0, 1]),
    "threads": ("threads", 2),
    "world": ("world.seed", 12),
    "assets.coco_class_names": ("assets.coco_class_names", "synthetic_ade20k_class_names"),
    "assets.ade20k": ("assets.ade20k", "synthetic_coco_panoptic"),
    "towers": ("towers.precision", "fp32"),
    "templates": ("templates", ["one {}"]),
    "model": ("model.queries", 31),
    "loss": ("loss.dice_weight", 4.0),
    "training": ("training.iterations", 5),
    "inference": ("inference.alpha", 0.5),
    "evaluation": ("evaluation.bootstrap_samples", 101),
    "automatic_masks": ("automatic_masks.points_per_side", 3),
}
"""Another valid value for something below each key of a scale's file."""


@pytest.fixture
def params(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ROOT / "params", tmp_path / "params"))


def change(path: Path, dotted: str, value: Any) -> None:
    data = yaml.safe_load(path.read_text())
    *parents, last = dotted.split(".")
    place = data
    for key in parents:
        place = place[key]
    place[last] = value
    path.write_text(yaml.safe_dump(data))


def made_of(plan: Pipeline) -> dict[str, Any]:
    """By stage, the identity and the targets of each of its jobs."""
    return {
        name: (
            stage.targets,
            sorted(
                (job.rule, plan.identity(job.rule, SCALE, **selectors(job))) for job in stage.jobs
            ),
            [dep for dep in stage.deps if not dep.startswith("possam")],
        )
        for name, stage in stages(plan, SCALE).items()
    }


def selectors(job: Job) -> dict[str, str]:
    """What the rule gives to :meth:`Pipeline.identity`."""
    left_out = {"scale", "prefix", *(("dataset", "split") if job.rule == "features" else ())}
    return {name: value for name, value in job.wildcards if name not in left_out}


def affected(params: Path, file: str, dotted: str, value: Any) -> set[str]:
    """Stages whose results change with a parameter."""
    before = made_of(Pipeline(folder=params))
    original = (params / file).read_text()
    change(params / file, dotted, value)
    after = made_of(Pipeline(folder=params))
    (params / file).write_text(original)
    return {name for name in before if before[name] != after.get(name)}


def naming(found: dict[str, Stage], file: str, key: str) -> set[str]:
    """Stages that name a key of a parameter file."""
    return {
        name
        for name, stage in found.items()
        for path, keys in stage.params.items()
        if path.endswith(f"/{file}") and key in keys
    }


def test_the_file_fits_the_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    check_dvc_file(Pipeline())


@pytest.mark.parametrize("scale", ["smoke", "mini", "paper"])
def test_no_table_or_figure_lacks_a_stage(scale: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    plan = Pipeline()
    tables = {f"{scale}-{name}" for name in plan.project(scale).tables}
    figures = {f"{scale}-figure-{name}" for name in load_figures(plan.project(scale))}
    assert tables and figures and tables | figures <= set(stages(plan, scale))


@pytest.mark.parametrize("key", sorted(CHANGES))
def test_a_key_of_the_scale_is_named_by_the_stages_that_it_changes(key: str, params: Path) -> None:
    file = f"scales/{SCALE}.yaml"
    found = stages(Pipeline(folder=params), SCALE)
    assert naming(found, file, key) == affected(params, file, *CHANGES[key])


def test_every_key_of_the_scale_was_changed() -> None:
    data = yaml.safe_load((ROOT / "params/scales" / f"{SCALE}.yaml").read_text())
    assert {key.split(".")[0] for key in CHANGES} == set(data)


@pytest.mark.parametrize(
    ("file", "key", "below", "value"),
    [
        ("runs.yaml", "possam_b_coco", "loss", {"dice_weight": 4.0}),
        ("runs.yaml", "possam_l_ade20k", "loss", {"dice_weight": 4.0}),
        ("benchmarks.yaml", "coco", "metrics", ["semantic", "panoptic", "instance"]),
        ("assets.yaml", "synthetic_coco_panoptic", "licence", "another"),
        ("assets.yaml", "synthetic_sam_l", "licence", "another"),
        ("assets.yaml", "sam_vit_l", "licence", "another"),
        ("tables.yaml", "table1", "title", "another"),
        ("figures.yaml", "seen_unseen", "title", "another"),
    ],
)
def test_an_entry_is_named_by_the_stages_that_it_changes(
    file: str, key: str, below: str, value: Any, params: Path
) -> None:
    found = stages(Pipeline(folder=params), SCALE)
    assert naming(found, file, key) == affected(params, file, f"{key}.{below}", value)


def test_a_variant_is_named_where_a_table_shows_it(params: Path) -> None:
    tables = (params / "tables.yaml").read_text()
    cell = "ade_coco: {run: possam_l_ade20k, benchmark: coco}"
    assert tables.count(cell) == 1
    (params / "tables.yaml").write_text(
        tables.replace(cell, cell.replace("coco}", "coco, variant: own}"))
    )
    variants = params / "variants.yaml"
    variants.write_text(variants.read_text() + "own: {alpha: 0.3}\n")
    found = stages(Pipeline(folder=params), SCALE)
    where = {"smoke-evaluate-possam_l_ade20k-coco"}
    assert naming(found, "variants.yaml", "own") == where
    assert affected(params, "variants.yaml", "own.alpha", 0.1) == where


@pytest.mark.parametrize("scale", ["smoke", "paper"])
def test_stages_fit_together(scale: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = stages(Pipeline(), scale)
    outs = [
        (out, name)
        for name, stage in found.items()
        for out in (*stage.stored, *stage.hashed, *stage.metrics, *(stage.plot or {}))
    ]
    assert len(dict(outs)) == len(outs), "an out of two stages"
    for one, _ in outs:
        assert not any(other.startswith(f"{one}/") for other, _ in outs), "an out within another"
    for name, stage in found.items():
        for dep in stage.deps:
            owners = {owner for out, owner in outs if f"{dep}/".startswith(f"{out}/")}
            assert len(owners) == 1 or (ROOT / dep).exists(), (name, dep)
            assert name not in owners
        for rule in {job.rule for job in stage.jobs}:
            for module in module_closure(*CODE[rule]):
                path = "/".join(module.split("."))
                covered = [f"{path}.py", *(str(p) for p in Path(path, "x").parents)]
                assert (
                    module.count(".") == 0
                    or set(covered) & set(stage.deps)
                    or (module == "possam.stages")
                ), (name, module)


def test_what_others_published_is_not_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for name, stage in stages(Pipeline(), "paper").items():
        given = name.split("-")[1] in ("data", "tower")
        assert given == any(out.startswith("data/") for out in stage.hashed)
        assert not any(out.startswith("data/") for out in stage.stored)


def test_writing_keeps_the_scales_and_checking_tells_what_to_do(
    params: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(params.parent)
    plan = Pipeline()
    with pytest.raises(InputError, match=r"dvc\.yaml: no such file; .*possam dvc --scale"):
        write_dvc_file(plan, None)
    write_dvc_file(plan, ["smoke", "paper"])
    check_dvc_file(plan)
    change(params / "tables.yaml", "table1.title", "another")
    plan = Pipeline()
    with pytest.raises(InputError, match=r"dvc\.yaml: does not fit params/ .*: possam dvc"):
        check_dvc_file(plan)
    write_dvc_file(plan, None)
    check_dvc_file(plan)
    names = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]
    assert {name.split("-")[0] for name in names} == {"smoke", "paper"}
    Path("dvc.yaml").write_text("stages: {}\n")
    with pytest.raises(InputError, match=r"dvc\.yaml: vars: .*possam dvc --scale"):
        check_dvc_file(plan)


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_records_that_are_links_become_copies(link: Any, tmp_path: Path) -> None:
    cache, folder = tmp_path / "cache", tmp_path / "metadata"
    (folder / "@long").mkdir(parents=True)
    cache.write_text("stored")
    for name in ("a", "@long/b"):
        link(cache, folder / name)
    (folder / "own").write_text("own")
    own_records(folder)
    for name in ("a", "@long/b"):
        assert (folder / name).read_text() == "stored"
        (folder / name).write_text("written in place")
    assert cache.read_text() == "stored" and (folder / "own").read_text() == "own"


def test_without_records_there_is_nothing_to_do(tmp_path: Path) -> None:
    own_records(tmp_path / "none")
    assert not list(tmp_path.iterdir())
