"""Several processes train as one does, also when some of them die."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from possam.runtime.errors import InputError
from possam.training.distributed import LostProcessError, join, single_process

LAUNCHED = {
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [
            sys.executable,
            root / "tests/support/processes_run.py",
            tmp_path_factory.mktemp("p"),
        ],
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize("name", ["three", "resumed", "all_killed", "went_on"])
def test_any_number_of_processes_trains_the_same_to_the_last_bit(
    trained: dict[str, Any], name: str
) -> None:
    one, several = trained["one"], trained[name]
    assert not any(several["codes"])
    assert several["weights"] == one["weights"]
    assert several["metrics"] == one["metrics"]
    assert several["files"] == one["files"]


def test_a_micro_batch_that_is_not_finite_skips_the_step_in_all_processes(
    trained: dict[str, Any],
) -> None:
    for name in ("one", "three"):
        assert [line["skipped"] for line in trained[name]["metrics"]] == [1, 1]
        first, *others = trained[name]["printed"]
        assert first.count("skipped") == 1 and not any(text.strip() for text in others)


def test_the_others_stop_when_a_process_is_killed(trained: dict[str, Any]) -> None:
    killed = trained["killed"]
    assert killed["codes"] == [2, -signal.SIGKILL]
    assert "process 0 of 2 lost another one (" in killed["printed"][0]
    assert "step_000000002" in killed["files"]
    assert trained["resumed"]["printed"][0].count("going on after step 2") == 1
    assert trained["all_killed"]["printed"][0].count("going on after step") == 1


def test_all_processes_go_on_from_a_run_of_accepted_code(trained: dict[str, Any]) -> None:
    one, accepted = trained["one"], trained["accepted"]
    assert not any(accepted["codes"])
    assert accepted["tensors"] == one["tensors"] and accepted["metrics"] == one["metrics"]
    assert accepted["weights"] != one["weights"], "they say that the code has changed"
    first, *others = accepted["printed"]
    assert first.count("going on after step 2") == 1 and "with other code" in first
    assert not any(text.strip() for text in others)
    assert trained["refused"]["codes"] == [2, 2] and trained["refused"]["files"] == []
    assert all("--accept-code: no checkpoint" in text for text in trained["refused"]["printed"])


def test_all_end_after_the_step_in_which_one_is_asked_to(trained: dict[str, Any]) -> None:
    asked = trained["asked"]
    assert asked["codes"] == [2, 2]
    for text in asked["printed"]:
        assert "EndedEarlyError: ended after step 3 of 6" in text
    assert "step_000000003" in asked["files"]
    assert trained["went_on"]["printed"][0].count("going on after step 3") == 1


def test_the_others_say_why_a_process_failed(trained: dict[str, Any]) -> None:
    assert trained["failed"]["codes"] == [2, 2]
    assert "because process 1 of 2 failed: images/7.jpg: damaged" in trained["failed"]["printed"][0]
    assert "InputError: images/7.jpg: damaged" in trained["failed"]["printed"][1]


def test_an_error_of_process_0_is_raised_by_all(trained: dict[str, Any]) -> None:
    assert trained["damaged"]["codes"] == [2, 2]
    for text in trained["damaged"]["printed"]:
        assert "InputError" in text and "no checkpoint can be read" in text


def test_processes_that_start_from_different_weights_are_refused(trained: dict[str, Any]) -> None:
    assert trained["altered"]["codes"] == [2, 2]
    assert trained["altered"]["files"] == []
    for text in trained["altered"]["printed"]:
        assert "weights at the start: process 1 has" in text


@pytest.mark.parametrize("variables", [{}, {**LAUNCHED, "RANK": "0", "WORLD_SIZE": "1"}])
def test_one_process_needs_no_others(variables: dict[str, str]) -> None:
    with join("cpu", {**variables, "LOCAL_RANK": "0"}) as process:
        assert process == single_process("cpu") and process.is_first
        assert not torch.distributed.is_initialized()
        assert process.gather([3, 1]) == [3, 1] and process.first(lambda: "done") == "done"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"MASTER_PORT": ""}, r"RANK, WORLD_SIZE are set, but MASTER_PORT are not"),
        ({"RANK": "2"}, r"RANK='2': expected a number from 0 to 1"),
        ({"RANK": "-1"}, r"RANK='-1'"),
        ({"LOCAL_RANK": "2"}, r"LOCAL_RANK='2'"),
        ({"WORLD_SIZE": "two"}, r"WORLD_SIZE='two': expected a number"),
        ({"MASTER_PORT": "70000"}, r"MASTER_PORT='70000': expected a number from 1 to 65535"),
    ],
)
def test_impossible_variables_are_refused(changes: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message), join("cpu", {**LAUNCHED, **changes}):
        pass


def test_a_port_that_was_taken_meanwhile_is_no_fault_of_the_parameters() -> None:
    """A SLURM job is submitted again after it, but not after an InputError."""
    with socket.create_server(("", 0)) as server:
        port = str(server.getsockname()[1])
        launched = {**LAUNCHED, "RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": port}
        with pytest.raises(LostProcessError, match=f"MASTER_PORT {port}"), join("cpu", launched):
            pass


def test_each_process_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    three = {**LAUNCHED, "RANK": "2", "WORLD_SIZE": "3", "LOCAL_RANK": "2"}
    with pytest.raises(InputError, match="LOCAL_RANK is 2, but only 2 GPUs"), join("cuda", three):
        pass
    with pytest.raises(InputError, match="names one GPU"), join("cuda:0", LAUNCHED):
        pass
