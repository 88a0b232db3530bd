"""Train runs with several processes over gloo, let some die, and print the outcome as JSON.

Run as ``python processes_run.py <folder>``. Each process is a forked child, so that torch is loaded
once; this process itself never computes anything.
"""

import importlib
import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from possam.runtime.errors import InputError, PossamError
from possam.training.distributed import TrainingProcess, join
from possam.training.loop import train_run
from possam.training.options import SAVE_AND_END
from possam.training.run_files import RunFiles
from possam.training.sharding import BatchSharding
from possam.training.targets import Batch
from tests.support.crash_run import finish, outcome
from tests.support.training_fakes import (
    DropoutPosSAM,
    FakeSource,
    loss_params,
    text_embeddings,
    training_params,
    weights_metadata,
)

TRAINING = training_params(batch_size=6, micro_batch=1)
STEP, LAST = 3, 1
"""The step and the rank, of two, that an event comes to; the last checkpoint is of step 2."""


class EventfulSource(FakeSource):
    """Only micro-batch 4 of step 2 is not finite; ``event`` is called before each step."""

    def __init__(self, process: TrainingProcess, event: Callable[[int, int], None]) -> None:
        sharding = BatchSharding.of(TRAINING, process)
        super().__init__(poison=frozenset({2 * 6 + 4}), sharding=sharding)
        self._rank, self._event = process.rank, event

    def batches(self, start: int, stop: int) -> Iterator[list[Batch]]:
        for step, batches in enumerate(super().batches(start, stop), start=start):
            self._event(step, self._rank)
            yield batches


def nothing(step: int, rank: int) -> None:
    pass


def die(step: int, rank: int) -> None:
    if (step, rank) == (STEP, LAST):
        os.kill(os.getpid(), signal.SIGKILL)


def fail(step: int, rank: int) -> None:
    if (step, rank) == (STEP, LAST):
        raise InputError("images/7.jpg: damaged")


ORDERS: list[int] = []


def end(step: int, rank: int) -> None:
    if (step, rank) == (2, LAST):  # between two periodic checkpoints
        ORDERS.append(SAVE_AND_END)


def run(
    directory: Path, event: Callable[[int, int], None], *, altered: bool, accepts: bool
) -> None:
    identity = {"run": "processes", "code": "2" if accepts else "1"}
    files = RunFiles(directory, superseded=directory / "superseded")
    with join("cpu") as process:
        process.first(lambda: files.take_up(identity, accept_code=accepts))
        model = DropoutPosSAM()
        if altered and process.rank == LAST:
            with torch.no_grad():
                next(model.parameters()).add_(1.0)
        train_run(
            model=model,
            source=EventfulSource(process, event),
            text=text_embeddings(),
            training=TRAINING,
            loss=loss_params(),
            files=files,
            seed=1,
            metadata=weights_metadata(identity=identity),
            process=process,
            asked=lambda: ORDERS.pop() if ORDERS else 0,
        )


def start(
    directory: Path,
    count: int,
    event: Callable[[int, int], None],
    *,
    altered: bool = False,
    accepts: bool = False,
) -> list[int]:
    """Fork the processes of one training; they print to ``<directory>.<rank>.txt``."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(count):
        child = os.fork()
        if not child:
            log = open(directory.with_suffix(f".{rank}.txt"), "w")  # noqa: SIM115
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            torch.set_num_threads(1)
            values = (rank, count, rank, "127.0.0.1", port)
            names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
            os.environ.update(zip(names, map(str, values), strict=True))
            code = 0
            try:
                run(directory, event, altered=altered, accepts=accepts)
            except PossamError as error:
                print(f"{type(error).__name__}: {error}", flush=True)
                code = 2
            except BaseException as error:
                print(repr(error), flush=True)
                code = 3
            os._exit(code)
        children.append(child)
    return children


def printed(directory: Path, count: int) -> list[str]:
    return [directory.with_suffix(f".{rank}.txt").read_text() for rank in range(count)]


def main(folder: Path) -> None:
    importlib.import_module("torch._dynamo")  # see crash_run
    result: dict[str, Any] = {}

    def train(
        name: str, count: int, event: Callable[[int, int], None] = nothing, **options: bool
    ) -> dict[str, Any]:
        directory = folder / name
        codes = [finish(child) for child in start(directory, count, event, **options)]
        entry = {"codes": codes, "printed": printed(directory, count)}
        entry["files"] = sorted(path.name for path in directory.rglob("*"))
        return {**entry, **outcome(directory)} if not any(codes) else entry

    result["one"] = train("one", 1)
    result["three"] = train("three", 3)
    result["killed"] = train("killed", 2, die)
    shutil.copytree(folder / "killed", folder / "accepted")
    result["accepted"] = train("accepted", 3, accepts=True)
    result["refused"] = train("nothing", 2, accepts=True)
    result["resumed"] = train("killed", 6)

    children = start(folder / "moment", 2, nothing)
    deadline = time.monotonic() + 60
    while not (folder / "moment/checkpoints/step_000000002").exists():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    for child in children:
        os.kill(child, signal.SIGKILL)
    for child in children:
        finish(child)
    result["all_killed"] = train("moment", 2)

    result["asked"] = train("asked", 2, end)
    result["went_on"] = train("asked", 3)

    result["failed"] = train("failed", 2, fail)
    result["altered"] = train("altered", 2, altered=True)
    for path in (folder / "failed").glob("checkpoints/*/state.pt"):
        path.write_bytes(b"")
    result["damaged"] = train("failed", 2)
    print(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
