"""The processes of a job meet at a port that is free, whatever else runs on the node."""

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from possam.launch import records as records_module
from possam.launch.records import RunRecords, free_port


def taken(address: str = "") -> socket.socket:
    """A port of ours, listened to as a foreign server would."""
    server = socket.socket()
    server.bind((address, 0))
    server.listen()
    return server


@pytest.mark.parametrize("address", ["", "127.0.0.1"])
def test_a_port_that_is_taken_leads_to_another(address: str) -> None:
    with taken(address) as server:
        port = server.getsockname()[1]
        found = free_port(port)
        assert found != port
        with socket.create_server(("127.0.0.1", found)):
            pass


def test_a_free_port_is_the_first() -> None:
    with taken() as server:
        port = server.getsockname()[1]
    assert free_port(port) == port


def test_all_processes_use_the_port_that_the_first_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records_module, "free_port", lambda first: first + 1)
    records, found = RunRecords(tmp_path), []

    def other() -> None:
        with records.meeting("4711", "0", rank=1) as port:
            found.append(port)

    thread = threading.Thread(target=other)
    thread.start()
    with records.meeting("4711", "0", rank=0) as port:
        thread.join()
    assert [port, *found] == [24712, 24712]
    assert not list(records.folder.iterdir()), "nothing is left for a job that gets this number"


def test_the_port_of_an_earlier_attempt_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records_module, "_MEET_S", 0.5)
    records = RunRecords(tmp_path)
    with (
        records.meeting("4711", "0", rank=0),
        pytest.raises(TimeoutError, match="4711_1_port"),
        records.meeting("4711", "1", rank=1),
    ):
        pass


MEET = """
import json, os, sys
from pathlib import Path
from possam.launch.training_job import TrainingJob

class Meeting(TrainingJob):
    def _announce(self, job, host): pass
    def _record(self, job): pass
    def _work(self, signals):
        from possam.training.distributed import join
        with join("cpu") as process:
            print(json.dumps(process.collect((process.rank, int(os.environ["MASTER_PORT"])))))

folder = Path(sys.argv[1])
Meeting(
    scale="smoke", runs=("r",), seed=0, device="cpu", world_size=2, directories=(folder,),
    source=folder,
)()
"""


def test_a_job_whose_port_is_taken_meets_at_another(tmp_path: Path) -> None:
    """Two processes, as srun would start them, beside a server at the port of the job's number."""
    port = free_port(20000)
    slurm = {
        **{"SLURM_JOB_ID": str(port), "SLURM_NTASKS": "2", "SLURM_NNODES": "1"},
        **{"SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "localhost", "SLURM_JOB_NUM_NODES": "1"},
        "GLOO_SOCKET_IFNAME": "lo",
    }
    with socket.create_server(("", port)):
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", MEET, str(tmp_path)],
                env={**os.environ, **slurm, "SLURM_PROCID": rank, "SLURM_LOCALID": rank},
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in "01"
        ]
        try:
            printed = [process.communicate()[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
    assert printed[0] == printed[1]
    (first, one), (second, other) = json.loads(printed[0])
    assert (first, second) == (0, 1) and one == other != port
