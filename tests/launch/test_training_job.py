"""What SLURM's signals ask of a training, and what sbatch is asked for."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import yaml

from possam.launch import training_job
from possam.launch.training_job import Signals, TrainingJob, submit
from possam.params.reading import validate
from possam.params.slurm import Allocation
from possam.runtime.errors import InputError
from possam.training.options import SAVE, SAVE_AND_END

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def by_submitit() -> Iterator[list[int]]:
    """What submitit's handler, which a job finds in place, was called with."""
    calls: list[int] = []

    def handler(number: int, _: FrameType | None) -> None:
        calls.append(number)

    before = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM)}
    signal.signal(signal.SIGUSR2, handler)
    yield calls
    for number, old in before.items():
        signal.signal(number, old)


def test_the_warning_before_the_time_limit_waits_for_a_step(by_submitit: list[int]) -> None:
    signals = Signals()
    assert signals() == 0
    os.kill(os.getpid(), signal.SIGUSR2)
    assert by_submitit == []
    assert (signals(), signals()) == (SAVE_AND_END, 0)


def test_before_the_first_step_has_ended_submitit_acts_at_once(by_submitit: list[int]) -> None:
    Signals()
    os.kill(os.getpid(), signal.SIGUSR2)
    assert by_submitit == [signal.SIGUSR2]


def test_a_job_that_is_to_be_killed_saves_and_goes_on(by_submitit: list[int]) -> None:
    signals = Signals()
    os.kill(os.getpid(), signal.SIGTERM)
    assert (signals(), signals()) == (SAVE, 0)
    # The stronger order stays.
    for number in (signal.SIGUSR2, signal.SIGTERM):
        os.kill(os.getpid(), number)
    assert signals() == SAVE_AND_END


def test_after_the_checkpoint_submitit_puts_the_job_back(
    by_submitit: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(training_job.time, "sleep", waited.append)
    Signals().requeue()
    # A process that submitit does not end is killed with the job.
    assert by_submitit == [signal.SIGUSR2] and len(waited) == 1


@pytest.fixture
def asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[str, dict[str, str]]]:
    """Submit a training with changes of smoke's allocation; the script and sbatch's variables."""
    commands = tmp_path / "bin"
    commands.mkdir()
    script = f"""#!{sys.executable}
import os, pathlib, sys
out = pathlib.Path({str(tmp_path)!r})
(out / "script").write_text(pathlib.Path(sys.argv[1]).read_text())
(out / "variables").write_text("\\n".join(k + "=" + v for k, v in os.environ.items()
                                        if k.startswith(("SLURM_", "SBATCH_", "SRUN_"))))
print("Submitted batch job 7")
"""
    for name in ("sbatch", "srun"):
        (commands / name).write_text(script)
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(commands), os.environ["PATH"]]))
    file = yaml.safe_load((ROOT / "params/slurm.yaml").read_text())

    def ask(**changes: Any) -> tuple[str, dict[str, str]]:
        values = {**file["defaults"], **file["scales"]["smoke"]["train"], **changes}
        job = TrainingJob(
            scale="smoke",
            runs=("r",),
            seed=0,
            device="cpu",
            world_size=2,
            directories=(tmp_path / "run",),
            source=tmp_path,
        )
        allocation = validate(Allocation, values, source="slurm.yaml")
        assert submit(job, allocation, name="possam-r", root=tmp_path) == "7"
        rows = (tmp_path / "variables").read_text().split("\n")
        variables = dict(row.split("=", 1) for row in rows if row)
        return (tmp_path / "script").read_text(), variables

    return ask


def test_a_training_runs_in_the_container_that_the_file_names(
    asked_for: Callable[..., tuple[str, dict[str, str]]],
) -> None:
    assert "apptainer" not in asked_for()[0]
    script, _ = asked_for(container="/shared/possam.sif")
    inside = 'apptainer exec --bind "$PWD" --pwd "$PWD" /shared/possam.sif python'
    assert f"{inside} -u -m submitit.core._submit" in script


def test_a_training_asks_for_what_the_file_says(
    asked_for: Callable[..., tuple[str, dict[str, str]]],
) -> None:
    script, _ = asked_for(
        qos="long",
        reservation="course",
        partition="gpu",
        extra=("--mail-type=FAIL", "--licenses=x:2", "--spread-job"),
        setup=("module load gcc", "export A='b c'"),
    )
    lines = script.splitlines()
    for option in (
        *("qos=long", "reservation=course", "partition=gpu", "mail-type=FAIL", "licenses=x:2"),
        *("spread-job", "gres=gpu:a100:8", "requeue", "signal=USR2@120"),
    ):
        assert f"#SBATCH --{option}" in lines, option
    # Before the program, in its order; a failure ends the job.
    first, second = lines.index("module load gcc"), lines.index("export A='b c'")
    program = next(number for number, line in enumerate(lines) if line.startswith("srun "))
    assert first < second < program and "exit 1" in lines[first + 1]


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"gpu_type": None}, "gres=gpu:8"),
        ({"gpu_option": "gpus-per-node"}, "gpus-per-node=a100:8"),
        ({"gpu_type": None, "gpu_option": "gpus-per-node"}, "gpus-per-node=8"),
    ],
)
def test_gpus_without_a_type_and_by_another_option(
    asked_for: Callable[..., tuple[str, dict[str, str]]], changes: dict[str, Any], option: str
) -> None:
    lines = asked_for(**changes)[0].splitlines()
    assert [line for line in lines if line.startswith("#SBATCH --g")] == [f"#SBATCH --{option}"]


def test_a_driver_in_a_job_hands_none_of_its_variables_on(
    asked_for: Callable[..., tuple[str, dict[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {
        **{"SLURM_JOB_ID": "3", "SLURM_NTASKS": "4", "SLURM_CPUS_PER_TASK": "3"},
        **{"SLURM_TRES_PER_TASK": "cpu:3", "SRUN_DEBUG": "1", "SLURM_CONF": "/c"},
    }
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    assert asked_for()[1] == {"SLURM_CONF": "/c"}
    assert os.environ["SLURM_NTASKS"] == "4"


def test_what_the_file_leaves_open_is_heard_from_the_users_variables(
    asked_for: Callable[..., tuple[str, dict[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = ("account", "partition", "qos", "reservation", "constraint")
    users = {f"SBATCH_{field.upper()}": f"my-{field}" for field in fields}
    others = {"SBATCH_WCKEY": "key", "SBATCH_NETWORK": "ib", "SLURM_CLUSTERS": "c1"}
    for name, value in {**users, **others}.items():
        monkeypatch.setenv(name, value)
    assert asked_for()[1] == users | others
    # What the file says would lose against a variable: sbatch reads them after the script.
    for field in fields:
        variables = asked_for(**{field: "files"})[1]
        assert variables == {k: v for k, v in (users | others).items() if v != f"my-{field}"}
    assert "SBATCH_WCKEY" not in asked_for(extra=("--wckey=files",))[1]
    # Every job says these; SBATCH_WAIT would keep sbatch until the job has ended.
    for name in (
        "GRES",
        "TIMELIMIT",
        "MEM_PER_NODE",
        "MEM_PER_CPU",
        "EXCLUSIVE",
        "WAIT",
        "ARRAY_INX",
    ):
        monkeypatch.setenv(f"SBATCH_{name}", "1")
    assert asked_for()[1] == users | others


def test_a_refusal_says_where_to_look(
    asked_for: Callable[..., tuple[str, dict[str, str]]], tmp_path: Path
) -> None:
    refusal = "#!/bin/sh\necho 'Invalid qos specification' >&2; exit 1\n"
    (tmp_path / "bin/sbatch").write_text(refusal)
    with pytest.raises(InputError, match=r"Invalid qos specification.*scales\.smoke\.train"):
        asked_for()
