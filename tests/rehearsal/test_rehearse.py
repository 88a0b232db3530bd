"""A rehearsal on this machine, with drawn weights and data: what it tries, finds and records."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from possam import cli
from possam.datasets.format import ConvertedDataset
from possam.params.layout import Layout
from possam.params.project import Project
from possam.pipeline.graph import Graph
from possam.pipeline.plan import make_plan
from possam.rehearsal import drawn, nodes, rehearse, trials
from possam.rehearsal.trials import Workshop, distinct_runs, try_run
from possam.runtime.errors import InputError
from possam.runtime.files import read_json, sha256_file, write_json
from possam.runtime.findings import OK, PROBLEM, WARNING, Finding
from possam.training.distributed import single_process
from possam.training.losses import Criterion

REPOSITORY = Path(__file__).resolve().parents[2]
CLIP_FILES = ("synthetic_clip_config", "synthetic_clip_bpe")
RUNS = {"fcclip_coco": ("fcclip_ade20k",), "two_way_1_b_coco": ()}


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with parameters and CLIP's configuration: no weights, no data."""
    here = tmp_path_factory.mktemp("project")
    shutil.copytree(REPOSITORY / "params", here / "params")
    (here / "data").mkdir()
    (here / "data/towers").symlink_to(REPOSITORY / "data/towers")
    before = Path.cwd()
    os.chdir(here)
    try:
        assert cli.main(["download", *CLIP_FILES, "--scale", "smoke"]) == 0
    finally:
        os.chdir(before)
    return here


@pytest.fixture
def project(ready: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """Of two distinct runs, so that a test takes seconds."""
    monkeypatch.chdir(ready)
    for module in (trials, rehearse):
        monkeypatch.setattr(module, "distinct_runs", lambda project: RUNS)
    yield Project("smoke")
    shutil.rmtree(ready / "results", ignore_errors=True)


@pytest.fixture
def shop(project: Project, tmp_path: Path) -> Workshop:
    return Workshop(project, single_process("cpu"), tmp_path)


def test_runs_that_differ_only_in_the_training_set_are_rehearsed_once(ready: Path) -> None:
    for scale in ("paper", "smoke"):
        project = Project(scale, folder=ready / "params")
        groups = distinct_runs(project)
        everything = [name for first, also in groups.items() for name in (first, *also)]
        assert sorted(everything) == sorted(project.runs)
        assert len(groups) == 12
        assert groups["possam_h_coco"] == ("possam_h_ade20k",)
        assert groups["clip_pooling_h_coco"] == ()


def test_a_rehearsal_without_weights_and_data(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["rehearse", "--scale", "smoke"]) == 0
    shown = capsys.readouterr().out
    assert "scale smoke: 0 problems" in shown
    assert "fcclip_ade20k as fcclip_coco" in " ".join(shown.split())
    record = read_json(Layout(project).rehearsal)
    assert record["passed"] and record["device"] == "cpu" and record["processes"] == 1
    first, second = record["trials"]
    assert first["drawn"] == ["synthetic_clip_config", "data"]
    assert second["drawn"] == ["synthetic_clip_config", "synthetic_b", "data"]
    for trial in (first, second):
        assert len(trial["losses"]) == 3 and all(loss > 0 for loss in trial["losses"])
        assert trial["images_per_s"] == pytest.approx(4 * trial["steps_per_s"])
    resumed = next(one for one in record["findings"] if one["matter"] == "resume")
    assert "went on from step_000000001 to step 4" in resumed["text"]
    # Only the record is kept, and nothing of the study is touched.
    assert [path.name for path in Layout(project).rehearsal.parent.iterdir()] == ["rehearsal.json"]
    assert not (Layout(project).results / "runs").exists()


def test_the_plan_takes_its_rates_but_not_those_of_other_hardware(project: Project) -> None:
    path, graph = Layout(project).rehearsal, Graph()
    before = make_plan(graph, "smoke", ["table1"])
    assert before.measured == {"training": {}}
    rates = {"training": {"synthetic_b": 7.0}, "evaluation": {"synthetic_b": 3.0}}
    write_json(path, {"unit": "core", "device": "cpu", "rates": rates})
    plan = make_plan(graph, "smoke", ["table1"])
    assert plan.measured == rates
    hours = {step.job.of("run"): step.hours for step in plan.steps if step.job.stage == "train"}
    assert hours["possam_b_coco"] == pytest.approx(16 / 7.0 / 3600)
    for other in ({"unit": "GPU", "device": "cuda"}, {"unit": "core", "device": "cuda"}):
        write_json(path, {**other, "rates": rates})
        assert make_plan(graph, "smoke", ["table1"]) == before


def test_a_run_that_fails_is_named_and_the_others_go_on(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = Criterion.__call__

    def fails_without_segments(self: Any, **arguments: Any) -> Any:
        if sum(arguments["counts"]) == 0 and arguments["iou_logits"] is not None:
            raise RuntimeError("avg_pool2d: a slice of\n no mask")
        return whole(self, **arguments)

    monkeypatch.setattr(Criterion, "__call__", fails_without_segments)
    assert cli.main(["rehearse", "--scale", "smoke"]) == 1
    shown = capsys.readouterr().out
    assert (
        "two_way_1_b_coco            failed: RuntimeError: avg_pool2d: a slice of no mask" in shown
    )
    assert "1 of 2 distinct runs took all steps" in shown
    record = read_json(Layout(project).rehearsal)
    assert not record["passed"]
    assert list(record["rates"]["training"]) == ["synthetic_clip_config"]


def test_a_loss_that_is_not_finite_is_a_fault(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        trials.Trainer, "step", lambda self, step, batches: (step < 2, [float("nan"), 1.0])
    )
    trial = try_run(shop, "fcclip_coco", ())
    assert trial.fault.startswith("RuntimeError: step 2: loss nan")


def test_the_slowest_and_fullest_process_counts(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = [(2.0, 10, 5), (0.5, 30, 1), (1.0, 20, None)]

    def collect(self: Any, trial: trials.Trial) -> list[trials.Trial]:
        values = {"steps_per_s": 0.0, "images_per_s": 0.0}
        return [
            replace(trial, **{**values, "steps_per_s": s, "images_per_s": s}, peak=p, left=left)
            for s, p, left in others
        ]

    monkeypatch.setattr(trials, "_train_steps", lambda shop, trial, run: trial)
    monkeypatch.setattr(trials.TrainingProcess, "collect", collect)
    found = try_run(shop, "fcclip_coco", ())
    assert (found.steps_per_s, found.images_per_s, found.peak, found.left) == (0.5, 0.5, 30, 1)


def test_drawn_data_are_a_converted_data_set(project: Project, tmp_path: Path) -> None:
    run = project.run("fcclip_coco")
    data = drawn.dataset(tmp_path / "a", run)
    assert (len(data), len(data.categories)) == (drawn.IMAGES, drawn.CLASSES) == (16, 150)
    for position, record in enumerate(data.images):
        assert data.image(position).shape == (128, 128, 3)
        assert len(record.segments) == 12
        assert sum(segment.area for segment in record.segments) == 128 * 128
    again = ConvertedDataset.open(drawn.dataset(tmp_path / "b", run).directory)
    files = [[one.file, one.panoptic, one.semantic] for one in (data.images[3], again.images[3])]
    assert [sha256_file(f) for f in files[0]] == [sha256_file(f) for f in files[1]]
    paper = Project("paper").run("possam_h_coco")
    assert drawn.dataset(tmp_path / "a", paper).images[0].height == 480


def test_towers_that_were_fetched_are_loaded(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ready)
    layout = Layout(Project("smoke"))
    sam, clip, names = drawn.towers(layout, "b")
    again, _, _ = drawn.towers(layout, "b")
    assert names == ["synthetic_clip_config", "synthetic_b"]
    assert sam is not None and again is not None
    weights, others = (dict(tower.named_parameters()) for tower in (sam, again))
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert cli.main(["download", "synthetic_clip", "--scale", "smoke"]) == 0
    loaded, names = drawn.towers(layout, "b")[1:]
    assert names == ["synthetic_b"]
    assert loaded.logit_scale != pytest.approx(clip.logit_scale)
    layout.asset_record("synthetic_clip").unlink()


def test_shared_memory_is_compared_with_what_the_workers_hold() -> None:
    machine = nodes.Machine(
        host="n1", rank=0, cores=8, memory=2**40, shared_memory=2**26, gpu=None, gpu_memory=None,
        gpu_fault=None,
    )  # fmt: skip
    project = Project("paper", folder=REPOSITORY / "params")
    # 8 processes x 8 workers x 2 batches x 2 images of 1024 x 1024 x (3 + 12) bytes
    found = nodes._shared_memory(project, "n1", [machine] * 8)
    assert found.state == PROBLEM and "4.0 GB" in found.text and "67.1 MB free" in found.text
    enough = replace(machine, shared_memory=2**33)
    assert nodes._shared_memory(project, "n1", [enough] * 8).state == OK
    missing = replace(machine, shared_memory=None)
    found = nodes._shared_memory(project, "n1", [missing])
    assert found.state == PROBLEM and "--ipc=host" in found.remedy


def test_the_memory_of_a_job_is_the_least_of_its_cgroups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "_CGROUPS", tmp_path)
    monkeypatch.setattr(nodes, "_OWN_CGROUP", tmp_path / "own")
    assert nodes._memory_limit() == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    (tmp_path / "own").write_text("1:cpu:/elsewhere\n0::/slurm/job_7/step_0\n")
    (tmp_path / "slurm/job_7/step_0").mkdir(parents=True)
    (tmp_path / "slurm/job_7/step_0/memory.max").write_text("max\n")
    (tmp_path / "slurm/job_7/memory.max").write_text("4096\n")
    assert nodes._memory_limit() == 4096


def test_a_file_system_with_too_few_files_left(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "free_bytes", lambda path: 10**9)
    plan = make_plan(Graph(folder=project.folder, project=project), "smoke", [])
    needed = plan.disk.to_write.files
    # of 96 images at least a photograph and two label maps of the converted data set
    assert needed > 3 * 96
    for left, state in ((needed, OK), (needed - 1, PROBLEM)):
        status = SimpleNamespace(f_files=1000, f_favail=left)
        monkeypatch.setattr(nodes.os, "statvfs", lambda path, status=status: status)
        assert nodes._room(project, tmp_path).state == state
    monkeypatch.setattr(nodes.os, "statvfs", lambda path: SimpleNamespace(f_files=0))
    assert nodes._room(project, tmp_path).state == OK


def test_a_file_system_that_keeps_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = single_process("cpu")
    monkeypatch.setattr(nodes, "LATE_S", 0.0)
    assert nodes._locks(process, tmp_path).state == OK
    assert nodes._renames(process, tmp_path).state == OK
    monkeypatch.setattr(nodes, "is_held", lambda path: False)
    assert nodes._locks(process, tmp_path).state == PROBLEM
    monkeypatch.setattr(nodes, "_soon", lambda condition: None)
    assert nodes._renames(process, tmp_path).state == PROBLEM
    monkeypatch.setattr(nodes, "_soon", lambda condition: 30.0)
    assert nodes._renames(process, tmp_path).state == WARNING


def test_the_samplings_difference_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert nodes._sampling(single_process("cpu")).state == OK
    right = nodes.sample_sum
    monkeypatch.setattr(
        nodes, "sample_sum", lambda *tensors, **options: right(*tensors, **options) * 1.01
    )
    assert nodes._sampling(single_process("cpu")).state == PROBLEM


def test_an_exception_of_a_check_is_its_finding() -> None:
    def refuses() -> Finding:
        raise OSError(28, "No space left on device")

    found = nodes._together(single_process("cpu"), "renames", refuses)
    assert (found.matter, found.state) == ("renames", PROBLEM)
    assert found.text.startswith("the disk is full (No space left on device); make room")


def test_without_clips_configuration_the_message_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(REPOSITORY / "params", tmp_path / "params")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["rehearse", "--scale", "smoke"]) == 2
    assert "possam download synthetic_clip_config --scale smoke" in capsys.readouterr().err
    with pytest.raises(InputError, match="there is no rehearsal of scale smoke"):
        rehearse.report(Project("smoke"))


@pytest.mark.parametrize("option", [["--device", "cuda"], ["--processes", "2"]])
def test_slurm_decides_device_and_processes(
    option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["rehearse", "--launcher", "slurm", *option]) == 2
    assert f"{option[0]}: with --launcher slurm" in capsys.readouterr().err
