"""One training through every fault; and what a user sees of it meanwhile.

It ends with the weights and the loss curve of an
undisturbed training in one process, bit for bit.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from possam.training.metrics import TIME_FIELDS
from tests.slurm.conftest import ClusterWorkspace, edit
from tests.support.cluster import Cluster
from tests.support.sessions import signal_session

pytestmark = pytest.mark.slurm

RUN = "possam_b_coco"
FOLDER = Path("results/smoke/runs") / RUN / "seed0"
EVERY = 20
STEPS = 600
_PATIENCE_S = 180.0

Tell = Callable[[str, str, str], None]


@pytest.fixture(scope="module")
def project(copied: ClusterWorkspace) -> ClusterWorkspace:
    """More steps, a checkpoint every few; jobs that are warned early."""

    def longer(scale: dict[str, Any]) -> None:
        scale["training"] |= {"iterations": STEPS, "checkpoint_every": EVERY, "log_every": 1}

    def warned(file: dict[str, Any]) -> None:
        # submitit takes any signal of a job of at most ten minutes for a time-out.
        file["scales"]["smoke"]["train"] |= {"minutes": 10, "signal_s": 30, "max_requeues": 3}

    edit(copied.folder / "params/scales/smoke.yaml", longer)
    edit(copied.folder / "params/slurm.yaml", warned)
    return copied


def curve(folder: Path) -> list[dict[str, Any]]:
    """The metrics but for times."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [
        {key: value for key, value in json.loads(line).items() if key not in TIME_FIELDS}
        for line in lines
    ]


@pytest.fixture(scope="module")
def undisturbed(project: ClusterWorkspace) -> tuple[str, list[dict[str, Any]]]:
    """Weights and curve of the training in one process of this machine."""
    project.possam("train", RUN)
    folder = project.folder / FOLDER
    run = json.loads((folder / "run.json").read_text())
    expected = (run["weights_sha256"], curve(folder))
    (project.folder / FOLDER).rename(project.folder / "undisturbed")
    return expected


class Training:
    """The training under test, as its folder and SLURM tell."""

    def __init__(self, project: ClusterWorkspace) -> None:
        self.project, self.cluster = project, project.cluster
        self.folder = project.folder / FOLDER

    @property
    def record(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "slurm/job.json").read_text()))

    @property
    def job(self) -> str:
        return str(self.record["job"])

    def step(self) -> int:
        """Finished steps, as the metrics say."""
        try:
            lines = (self.folder / "metrics.jsonl").read_text().split("\n")[:-1]
        except FileNotFoundError:
            return 0
        return int(json.loads(lines[-1])["step"]) if lines else 0

    def log(self) -> str:
        path = self.folder / f"slurm/{self.job}_0_log.err"
        return path.read_text() if path.is_file() else ""

    def attempts(self) -> int:
        """How often the present job has started."""
        return self.log().count(f"job {self.job}, attempt ")

    def state(self, job: str | None = None) -> str:
        jobs = f"--jobs={job or self.job}"
        return self.cluster.command("squeue", "--noheader", jobs, "--format=%T", check=False)

    def resumes(self) -> list[int]:
        """The steps that jobs have gone on after, in their order."""
        logs = sorted(
            (self.folder / "slurm").glob("*_0_log.out"),
            key=lambda path: int(path.name.split("_")[0]),
        )
        text = "".join(path.read_text() for path in logs)
        return [int(rest.split()[0]) for rest in text.split("going on after step ")[1:]]

    def goes_on(self, *, resumes: int, after: int) -> int:
        """Wait until the training has gone on so often, and is past step ``after``; the number of
        steps that it had to do again.
        """
        until(lambda: len(self.resumes()) == resumes, "it goes on")
        until(lambda: self.step() > after, "it gets further")
        again = max(0, after - self.resumes()[-1])
        assert again <= EVERY, "it goes on at its last checkpoint"
        return again


def until(true: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        with contextlib.suppress(FileNotFoundError):
            if true():
                return
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


@pytest.fixture
def start(project: ClusterWorkspace) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a command in the project, in a session of its own, its output in a file."""
    started: list[subprocess.Popen[str]] = []

    def begin(*command: str) -> subprocess.Popen[str]:
        path = project.folder / f"driver{len(started)}.log"
        with open(path, "w") as log:
            process = subprocess.Popen(
                command,
                cwd=project.folder,
                env=project.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                text=True,
                start_new_session=True,
                # As in a terminal; a shell's background job would ignore Ctrl-C.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        process.log = path  # type: ignore[attr-defined]
        started.append(process)
        return process

    yield begin
    for process in started:
        kill_session(process)


def kill_session(process: subprocess.Popen[str]) -> None:
    signal_session(process.pid, signal.SIGKILL)
    process.wait(30)


POSSAM = (sys.executable, "-m", "possam.cli")
DRIVER = (*POSSAM, "train", RUN, "--launcher", "slurm")
PIPELINE = ("snakemake", str(FOLDER / "run.json"), "--profile", "slurm")
DRIVER_JOB = (
    *("sbatch", "--parsable", "--cpus-per-task=1", "--mem=1G", "--time=60"),
    *("workflow/driver.sh", str(FOLDER / "run.json")),
)


def test_every_fault(
    project: ClusterWorkspace,
    cluster: Cluster,
    undisturbed: tuple[str, list[dict[str, Any]]],
    start: Callable[..., subprocess.Popen[str]],
    tell: Tell,
) -> None:
    training = Training(project)

    # Two drivers at once: one submits.
    drivers = [start(*PIPELINE), start(*DRIVER)]
    until(lambda: training.step() >= EVERY, "the training begins")
    first = training.job
    name = f"--name={training.record['name']}"
    assert cluster.command("squeue", "--noheader", name).count("\n") == 0
    assert len(training.record["submissions"]) == 1
    until(lambda: "is there already" in "".join(d.log.read_text() for d in drivers), "both wait")
    tell("two drivers at once", f"one job ({first}), both wait for it", "nothing")

    # The time limit comes: a checkpoint at once, and put back by submitit, on SLURM's signal.
    cluster.command("scontrol", "update", f"JobId={first}", "TimeLimit=1")
    until(lambda: "this job is timed-out" in training.log(), "the signal comes")
    until(lambda: training.state() == "PENDING", "it is put back")
    at = training.step()
    cluster.command("scontrol", "update", f"JobId={first}", "TimeLimit=10")
    assert training.goes_on(resumes=1, after=at) == 0
    assert f"ended after step {at} of {STEPS}; its checkpoint is written" in training.log()
    assert training.job == first and training.attempts() == 2
    tell("time limit hit", f"checkpoint of step {at}, job {first} put back", "nothing (0 again)")

    # Put back by hand, after an edit of the working tree that no job may see.
    scale, loop = project.folder / "params/scales/smoke.yaml", project.folder / "possam"
    loop = loop / "training/loop.py"
    before, code = edit(scale, lambda v: v["training"].update(learning_rate=1.0)), loop.read_text()
    loop.write_text("raise RuntimeError('edited')\n")
    refused = project.run(*DRIVER, check=False)
    assert refused.returncode == 2
    assert f"possam jobs cancel {first}" in refused.stderr and "other parameters" in refused.stderr
    at = training.step()
    cluster.command("scontrol", "requeue", first)
    again = training.goes_on(resumes=2, after=at)
    scale.write_text(before)
    loop.write_text(code)
    assert training.job == first and training.attempts() == 3
    tell("working tree edited", f"job {first} runs the frozen sources", "nothing")
    tell("scontrol requeue", f"job {first} attempt 3", f"nothing ({again} steps again)")

    # Its processes are killed: a driver submits again.
    at = training.step()
    kill_step(cluster, first)
    until(lambda: training.job != first, "it is submitted again")
    second = training.job
    again = training.goes_on(resumes=3, after=at)
    submissions = training.record["submissions"]
    assert [each["job"] for each in submissions] == [first, second]
    tell("SIGKILL of the job step", f"job {second} submitted", f"nothing ({again} steps again)")

    # The pipeline is killed, the other driver interrupted; the job stays.
    kill_session(drivers[0])
    drivers[1].send_signal(signal.SIGINT)
    assert drivers[1].wait(60) == 130
    assert f"possam jobs cancel {second}" in drivers[1].log.read_text()  # type: ignore[attr-defined]
    at = training.step()
    until(lambda: training.step() > at, "the job does not need a driver")
    listed = project.possam("jobs").stdout
    assert [line.split()[:5] for line in listed.splitlines()[1:]] == [
        ["smoke", RUN, "0", second, "RUNNING"]
    ]
    project.run("snakemake", "--unlock", "--profile", "slurm", str(FOLDER / "run.json"))
    driver = project.run(*DRIVER_JOB).stdout.strip()
    driver_log = project.folder / f"driver-{driver}.log"
    found = f"job {second} is there already"
    until(lambda: found in driver_log.read_text(), "it is found")
    tell("SIGKILL of the driver", f"job {second} went on and was found again", "nothing")
    tell("Ctrl-C of a driver", f"exit 130, job {second} went on", "nothing")

    # The driver, now a job itself, comes to its own time limit.
    at = training.step()
    cluster.command("scontrol", "update", f"JobId={driver}", "TimeLimit=1")
    until(lambda: training.state(driver) == "PENDING", "the driver is put back")
    cluster.command("scontrol", "update", f"JobId={driver}", "TimeLimit=60")
    assert "Snakemake has ended, trainings go on" in driver_log.read_text()
    until(lambda: driver_log.read_text().count(found) == 2, "it is found again")
    assert training.job == second and training.step() > at
    tell("time limit of the driver's job", f"put back, job {second} went on", "nothing")

    # Its node is drained and its job put back: it waits for the node.
    at = training.step()
    node = f"NodeName={cluster.node}"
    cluster.command("scontrol", "update", node, "State=DRAIN", "Reason=test")
    cluster.command("scontrol", "requeue", second)
    until(lambda: training.state() == "PENDING", "it waits")
    until(lambda: f"job {second}: PENDING" in driver_log.read_text(), "the driver says so")
    cluster.command("scontrol", "update", node, "State=RESUME")
    again = training.goes_on(resumes=4, after=at)
    assert training.job == second and training.attempts() == 2
    assert len(training.resumes()) == 4
    tell("node drained, resumed", f"job {second} attempt 2", f"nothing ({again} steps again)")

    until(lambda: not training.state(driver), "the driver ends")
    ended = ("sacct", "--allocations", "--noheader", "--parsable2", "--format=State,ExitCode")
    until(lambda: cluster.command(*ended, f"--jobs={driver}") == "COMPLETED|0:0", "with success")
    weights, metrics = undisturbed
    run = json.loads((training.folder / "run.json").read_text())
    assert run["weights_sha256"] == weights
    assert curve(training.folder) == metrics
    assert training.record["submissions"] == submissions
    kept = json.loads((training.folder / "slurm/finished.json").read_text())
    assert kept["job"] == second and kept["run"] == run
    tell("all of them, one after the other", "the weights of an undisturbed training", "nothing")

    # Nothing is submitted for what is there, also where Snakemake has removed what it declares.
    (training.folder / "run.json").unlink()
    project.run(*DRIVER)
    assert json.loads((training.folder / "run.json").read_text()) == run
    assert training.record["submissions"] == submissions

    # After a fix of the code the finished training is accepted, without a job.
    loop.write_text(code + "\n_FIXED = 1\n")
    project.run(*DRIVER, "--accept-code")
    accepted = json.loads((training.folder / "run.json").read_text())
    (change,) = accepted["accepted_code"]
    assert (change["steps"], change["before"]["identity"]) == (STEPS, run["identity"])
    (training.folder / "run.json").unlink()
    project.run(*DRIVER)
    assert json.loads((training.folder / "run.json").read_text()) == accepted
    assert training.record["submissions"] == submissions
    loop.write_text(code)
    tell("code fixed, --accept-code", "accepted without a job", "nothing")


def kill_step(cluster: Cluster, job: str) -> None:
    """SIGKILL to every process of the job's step 0."""
    rows = [line.split() for line in cluster.command("scontrol", "listpids", job).splitlines()[1:]]
    processes = [int(row[0]) for row in rows if row[2] == "0"]
    assert processes
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def test_a_cancelled_job_is_not_submitted_again(
    project: ClusterWorkspace, start: Callable[..., subprocess.Popen[str]], tell: Tell
) -> None:
    driver = start(*POSSAM, "train", "possam_b_ade20k", "--launcher", "slurm")
    record = project.folder / "results/smoke/runs/possam_b_ade20k/seed0/slurm/job.json"
    until(record.is_file, "it is submitted")
    until(lambda: "RUNNING" in driver.log.read_text(), "it runs")
    assert "is cancelled" in project.possam("jobs", "cancel", "possam_b_ade20k").stderr
    assert driver.wait(120) == 1
    assert "it was cancelled" in driver.log.read_text()  # type: ignore[attr-defined]
    assert len(json.loads(record.read_text())["submissions"]) == 1
    tell("possam jobs cancel", "exit 1, nothing submitted again", "nothing")


def test_another_number_of_processes_is_refused(
    project: ClusterWorkspace, start: Callable[..., subprocess.Popen[str]]
) -> None:
    """As where a site's job_submit plugin changes what was asked for."""
    sbatch = project.cluster.commands / "sbatch"
    sbatch.write_text(
        '#!/bin/sh\nsed -i s/ntasks-per-node=2/ntasks-per-node=1/ "$1"\nexec /usr/bin/sbatch "$@"\n'
    )
    sbatch.chmod(0o755)
    try:
        done = project.run(*POSSAM, "train", "no_iou_b_coco", "--launcher", "slurm", check=False)
    finally:
        sbatch.unlink()
    assert done.returncode == 2
    assert "SLURM runs 1 processes, but 2 were asked for" in done.stderr
