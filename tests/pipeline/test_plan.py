"""Plans: the same jobs as Snakemake's, hand-computed hours, and what exists already."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from possam.params.plan import load_plan
from possam.params.project import Project
from possam.pipeline.declarations import STAGES
from possam.pipeline.graph import Graph, Job
from possam.pipeline.plan import UNPACKED, Plan, Step, make_plan, resolve_targets, wall_hours
from possam.runtime.errors import InputError
from possam.stages.plan import duration, print_plan

REPOSITORY = Path(__file__).resolve().parents[2]
H = "results/runs/possam_h_coco/seed0"


@pytest.fixture
def graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Graph:
    """Only the parameters: no data, no results."""
    shutil.copytree(REPOSITORY / "params", tmp_path / "params")
    monkeypatch.chdir(tmp_path)
    return Graph()


def plan_of(graph: Graph, *names: str, scale: str = "paper") -> Plan:
    return make_plan(graph, scale, names)


def step(name: str, hours: float, units: int = 0, needs: tuple[str, ...] = ()) -> Step:
    return Step(
        job=Job(name, ()), needs=tuple(Job(need, ()) for need in needs), state="to do", units=units,
        hours=hours, whole_hours=hours,
    )  # fmt: skip


def test_jobs_are_those_of_snakemake(graph: Graph) -> None:
    """All tables and the report of the paper's scale, on a machine without data."""
    shutil.copytree(REPOSITORY / "workflow", "workflow")
    shutil.copy(REPOSITORY / "Snakefile", "Snakefile")
    names = [*graph.project("paper").tables, "report"]
    targets = resolve_targets(graph.project("paper"), names)
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", "1", "--quiet", "rules", "-n", *targets],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = re.findall(r"^(\w+) +(\d+)$", done.stdout + done.stderr, re.MULTILINE)
    counts = {rule: int(count) for rule, count in rows if rule not in ("total", "job")}
    steps = make_plan(graph, "paper", targets).steps
    stages = [found.job.stage for found in steps]
    assert {stage: stages.count(stage) for stage in stages} == counts
    assert counts["train"] == 16 and len(steps) == sum(counts.values())


@pytest.mark.parametrize("scale", ["smoke", "mini", "paper"])
def test_every_file_comes_after_what_it_is_made_from(graph: Graph, scale: str) -> None:
    seen: set[Job] = set()
    for job, needs in graph.walk(resolve_targets(graph.project(scale), [])).items():
        assert set(needs) <= seen
        seen.add(job)


def test_the_report_s_plan_holds_every_table_and_figure(graph: Graph) -> None:
    stages = [found.job.stage for found in plan_of(graph, "report", scale="mini").steps]
    assert stages.count("table") == 8 and stages.count("figure") > 3


def test_hours_by_hand(graph: Graph) -> None:
    plan = plan_of(graph, "possam_h_coco")
    train = plan.steps[-1]
    assert train.job.path == f"{H}/run.json" and train.units == 8
    # 250,000 steps of 16 images; SAM-H, CLIP, and the decoders three times, at 125 per second.
    operations = 6.26 + 1.44 + 3 * 0.86
    assert train.unit_hours == pytest.approx(250_000 * 16 * operations / 125 / 3600)
    assert train.hours == pytest.approx(train.unit_hours / 8)
    hours = {found.job.of("asset"): found.hours for found in plan.steps if found.units == 0
             and found.job.stage == "download"}  # fmt: skip
    assert hours["coco_train_images"] == pytest.approx(19_336_861_798 / 40e6 / 3600)
    convert = next(found for found in plan.steps if found.job.stage == "convert")
    assert convert.hours == pytest.approx(118_287 / 20 / 3600)
    # The longest way: download, conversion, training.
    way = hours["coco_train_images"] + convert.hours + train.hours
    assert wall_hours(plan.steps, capacity=8) == pytest.approx(way)
    # Weights of two checkpoints with two moments each, and the final ones.
    assert plan.disk.left["train"] == (51_300_000 * 4 * 7, 16)
    assert plan.disk.left["convert"] == (118_287 * 15_000, 118_287 * 2 + 4)


def test_towers_that_run_once_for_several_trainings(graph: Graph) -> None:
    """Table 5 by hand: four runs of SAM-H, 41.1 or 18.0 x 10^12 operations per image."""
    each, shared = (
        make_plan(graph, "paper", ["table5"], share_towers=share) for share in (False, True)
    )
    steps = 250_000 * 16 / 125 / 3600
    assert each.unit_hours("train") == pytest.approx(4 * (6.26 + 1.44 + 3 * 0.86) * steps)
    assert shared.unit_hours("train") == pytest.approx((6.26 + 1.44 + 4 * 3 * 0.86) * steps)
    assert each.unit_hours("evaluate") == shared.unit_hours("evaluate") > 0
    assert plan_of(graph, "table5").shares_towers is False
    # Runs of one SAM on one data set; here there are six of B and four of H on COCO.
    whole = [make_plan(graph, "paper", [], share_towers=s).unit_hours() for s in (False, True)]
    assert whole[0] > 1.4 * whole[1]
    # With cached features the towers do not run in trainings at all.
    minis = [make_plan(graph, "mini", [], share_towers=s).unit_hours() for s in (False, True)]
    assert minis[0] == minis[1]


def test_slurm_yaml_says_whether_towers_are_shared(graph: Graph) -> None:
    path = Path("params/slurm.yaml")
    path.write_text(path.read_text().replace("share_towers: false", "share_towers: true", 1))
    with pytest.raises(InputError, match=r"paper\.world: share_towers: only trainings do"):
        plan_of(graph, "table5")
    text = path.read_text().replace("share_towers: true", "share_towers: false", 1)
    path.write_text(text.replace("train: {gpus: 8, ", "train: {share_towers: true, gpus: 8, ", 1))
    plan = plan_of(graph, "table5")
    assert plan.shares_towers
    assert (
        plan.unit_hours() == make_plan(graph, "paper", ["table5"], share_towers=True).unit_hours()
    )


def test_rates_of_runs_that_were_trained_together_are_not_those_of_one(graph: Graph) -> None:
    folder = Path(H)
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    summary = {"images": 4_000_000, "seconds": 100_000.0, "processes": 8, "together": 4}
    (folder / "training.json").write_text(json.dumps(summary))
    assert plan_of(graph, "table1").measured["training"] == {}


def test_trainings_that_go_together_are_those_that_targets_need(graph: Graph) -> None:
    def beside(run: str, *targets: str) -> list[str]:
        wildcards = {"prefix": "", "run": run, "seed": "0"}
        return graph.beside(wildcards, resolve_targets(graph.project("paper"), targets))

    assert beside("possam_h_coco", "table1") == []
    others = ["sam_pooling_h_coco", "clip_pooling_h_coco", "cross_attention_h_coco"]
    assert beside("possam_h_coco", "table5") == others
    assert beside(others[0], "table1", "table5") == ["possam_h_coco", *others[1:]]
    assert beside("possam_b_ade20k", "table1", "table4", "table5", "table6") == []


def test_speed_is_timed_on_its_own_images(graph: Graph) -> None:
    steps = plan_of(graph, "table8").steps
    timed = [s for s in steps if s.job.stage == "evaluate" and s.job.of("benchmark") == "speed"]
    rates = {"b": 1.72, "l": 1.48, "h": 1.30}
    assert {s.job.of("run"): s.hours for s in timed} == {
        f"possam_{size}_coco": pytest.approx(50 / rate / 3600) for size, rate in rates.items()
    }


def test_what_exists_is_not_counted_and_gives_the_rate(graph: Graph) -> None:
    before = plan_of(graph, "table1")
    folder = Path(H)
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    summary = {"images": 4_000_000, "seconds": 100_000.0, "processes": 8}
    (folder / "training.json").write_text(json.dumps(summary))
    begun = Path("results/runs/possam_h_ade20k/seed0/checkpoints")
    for number in (1000, 62_500):
        (begun / f"step_{number:09d}").mkdir(parents=True)
    plan = plan_of(graph, "table1")
    states = {s.job.path: s for s in plan.steps if s.job.stage == "train"}
    assert plan.measured == {"training": {"vit_h": 5.0}}
    assert states[f"{H}/run.json"].state == "done" and states[f"{H}/run.json"].hours == 0
    other = states["results/runs/possam_h_ade20k/seed0/run.json"]
    assert other.state == "begun"
    assert other.whole_hours == pytest.approx(4_000_000 / 5.0 / 8 / 3600)
    assert other.hours == pytest.approx(other.whole_hours * 0.75)
    assert plan.disk.to_write.bytes == before.disk.to_write.bytes - 51_300_000 * 4 * 7
    assert plan.disk.to_write.files == before.disk.to_write.files - 16
    assert plan.disk.total == before.disk.total


def test_files_that_archives_unpack_to_are_those_that_conversions_read(graph: Graph) -> None:
    """By hand: COCO's photographs, PNGs and JSONs of both splits, ADE20K's three kinds of files."""
    unpacked = plan_of(graph, "table1").disk.left[UNPACKED]
    coco = (118_287 + 5_000) * 2 + 2 + 2
    assert unpacked.files == coco + (20_210 + 2_000) * 3
    # of the full release photographs and label maps of the validation images; 5,105 of PASCAL
    whole = plan_of(graph).disk.left[UNPACKED]
    assert whole.files - unpacked.files == 2_000 * 2 + (1 + 5_105) + 5_105
    small = plan_of(graph, "results/mini/table1.csv", scale="mini").disk.left[UNPACKED]
    assert small.files == 3400 * 2 + 4 + 3400 * 3
    whole = plan_of(graph, scale="smoke").disk
    assert whole.to_write.files == whole.total.files, "nothing is there"


def test_every_stage_leaves_files(graph: Graph) -> None:
    path = Path("params/plan.yaml")
    assert load_plan(graph.project("mini"))[0].files_per_job.keys() == STAGES.keys()
    path.write_text(path.read_text().replace(", convert: 4,", ","))
    with pytest.raises(InputError, match=r"plan.yaml: files_per_job.convert: missing"):
        plan_of(graph, "table1")


def test_what_is_unpacked_already_gives_its_own_number(graph: Graph) -> None:
    before = plan_of(graph, "table1").disk
    folder, records = Path("data/paper/raw/coco_panoptic"), Path("data/paper/assets")
    folder.mkdir(parents=True)
    records.mkdir()
    (folder / "unpacked.json").write_text('{"files": 7}')
    (records / "coco_panoptic.record.json").write_text("{}")
    after = plan_of(graph, "table1").disk
    assert after.left[UNPACKED].files == before.left[UNPACKED].files - (118_287 + 5_000 + 2) + 7
    assert after.to_write.files == before.to_write.files - (118_287 + 5_000 + 2) - 6


def test_converted_data_sets_give_their_own_number(graph: Graph) -> None:
    folder = Path("data/paper/datasets/coco_val")
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text('{"counts": {"images": 13}}')
    steps = plan_of(graph, "table1").steps
    own = [s for s in steps if s.job.stage == "evaluate" and s.job.of("benchmark") == "coco"]
    assert own and {s.job.of("run"): s.hours for s in own}["possam_h_ade20k"] == pytest.approx(
        13 / 1.30 / 3600
    )


def test_targets(graph: Graph) -> None:
    assert resolve_targets(graph.project("paper"), []) == [
        f"results/table{n}.csv" for n in range(1, 9)
    ]
    names = ["table1", "results/mini/table1.csv", "possam_b_coco", "report", "training_curves"]
    assert resolve_targets(graph.project("mini"), names) == [
        "results/mini/table1.csv",
        "results/mini/runs/possam_b_coco/seed0/run.json",
        "reports/mini/report.html",
        "results/mini/figures/training_curves.json",
    ]
    for name in ("table9", "results/smoke/table1.csv", "README.md"):
        with pytest.raises(InputError, match=rf"{name}: no target of scale mini; .*table1"):
            resolve_targets(graph.project("mini"), [name])


def test_wall_time_by_hand() -> None:
    chain = [step("a", 2), step("b", 3, needs=("a",))]
    assert wall_hours(chain, capacity=1) == 5
    trainings = [step(f"train{n}", 10, units=8) for n in range(3)]
    assert [wall_hours(trainings, capacity=c) for c in (8, 16, 24)] == [30, 20, 10]
    tests = [step(f"test{n}", 2, units=1, needs=(f"train{n}",)) for n in range(3)]
    # The trainings have the longer way: all tests wait, and run beside each other at the end.
    assert wall_hours([*trainings, *tests], capacity=8) == 32
    # On nine units each test runs beside the next training.
    assert wall_hours([*trainings, *tests], capacity=9) == 32
    assert wall_hours([*trainings, step("long", 12, units=1)], capacity=9) == 30
    assert wall_hours([step("large", 10, units=8)], capacity=4) == 20
    after = [step(name, 5, units=4, needs=("large",)) for name in "ab"]
    assert wall_hours([step("large", 10, units=8), *after], capacity=4) == 30
    assert wall_hours([], capacity=8) == 0


@st.composite
def plans(draw: st.DrawFn) -> list[Step]:
    steps: list[Step] = []
    for number in range(draw(st.integers(1, 12))):
        names = [other.job.stage for other in steps]
        needs = draw(st.sets(st.sampled_from(names), max_size=3)) if names else set()
        hours, units = draw(st.integers(0, 9)), draw(st.integers(0, 4))
        steps.append(step(f"s{number}", float(hours), units, tuple(sorted(needs))))
    return steps


@hypothesis.given(plans(), st.integers(4, 9))
def test_wall_time_has_its_bounds(steps: list[Step], capacity: int) -> None:
    found = wall_hours(steps, capacity=capacity)
    way: dict[Job, float] = {}
    for one in steps:
        way[one.job] = one.hours + max((way[need] for need in one.needs), default=0.0)
    work = sum(one.unit_hours for one in steps) / capacity
    assert max(*way.values(), work) - 1e-9 <= found <= sum(one.hours for one in steps) + 1e-9


def test_the_printed_plan(graph: Graph, capsys: pytest.CaptureFixture[str]) -> None:
    print_plan(Project("paper"), ["table1"], nodes=3)
    shown = capsys.readouterr().out
    for pattern in (
        r"train +8 +0 +8 +482\.3",
        r"possam_h_coco seed 0 +91\.4 +11\.4 h  to do",
        r"on 3 nodes",
        r"downloaded files +\d+\.\d GB +\d+ files",
        r"unpacked of them +\d+\.\d GB +313,208 files",
        r"checkpoints and weights +11\.5 GB +128 files",
        r"counted operations .*\(params/plan\.yaml\)",
    ):
        assert re.search(pattern, shown), (pattern, shown)
    assert "measured at this scale" not in shown
    with pytest.raises(InputError, match="--nodes: 0"):
        print_plan(Project("paper"), [], nodes=0)


def test_other_scales_count_cores(graph: Graph, capsys: pytest.CaptureFixture[str]) -> None:
    print_plan(Project("mini"), [], nodes=1)
    shown = capsys.readouterr().out
    assert "core-hours left" in shown and "cached features" in shown


def test_hardware_must_know_all_towers(graph: Graph) -> None:
    path = Path("params/plan.yaml")
    path.write_text(path.read_text().replace("vit_h: 6.26, ", ""))
    with pytest.raises(InputError, match=r"plan.yaml: hardware: no block .* vit_b, vit_h, vit_l"):
        plan_of(graph, "table1")
    text = path.read_text()
    path.write_text(text.replace(", decoders: 0.86", ""))
    with pytest.raises(InputError, match="operations: decoders is missing"):
        plan_of(graph, "table1")
    path.write_text(text.replace("operations_per_second: 125.0", "training: {vit_b: 5.0}"))
    with pytest.raises(InputError, match="either training, or operations"):
        plan_of(graph, "table1")
    path.write_text(text.replace("per_node: 8", "per_nod: 8"))
    with pytest.raises(InputError, match="per_nod"):
        plan_of(graph, "table1")


def test_durations() -> None:
    assert [duration(h) for h in (0.5, 30.2, 75)] == ["30 min", "30.2 h", "3.1 days"]
