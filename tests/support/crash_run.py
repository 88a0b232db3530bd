"""Kill runs with SIGKILL, start them again, and print what they left behind as JSON.

Run as ``python crash_run.py <folder>``. Each run is a forked child, so that torch is loaded once;
this process itself never computes anything.
"""

import hashlib
import importlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from possam.runtime.files import sha256_file
from possam.training.distributed import single_process
from possam.training.loop import train_run
from possam.training.metrics import TIME_FIELDS
from possam.training.run_files import RunFiles
from tests.support.training_fakes import (
    DropoutPosSAM,
    FakeSource,
    loss_params,
    text_embeddings,
    training_params,
    weights_metadata,
)


def run(directory: Path) -> None:
    """The run of every child: step 2 is not finite, dropout draws from the global state."""
    train_run(
        model=DropoutPosSAM(),
        source=FakeSource(poison=frozenset({2})),
        text=text_embeddings(),
        training=training_params(),
        loss=loss_params(),
        files=RunFiles(directory, superseded=directory / "superseded"),
        seed=1,
        metadata=weights_metadata(identity={"run": "crash"}),
        process=single_process("cpu"),
    )


def start(directory: Path, *, fatal_rename: int | None = None) -> int:
    """Fork a child that trains; it kills itself before its ``fatal_rename``-th rename."""
    child = os.fork()
    if child:
        return child
    torch.set_num_threads(1)
    with open(directory.parent / "log.txt", "a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    count, replace = 0, os.replace

    def killing(*arguments: Any, **options: Any) -> None:
        nonlocal count
        count += 1
        if count == fatal_rename:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*arguments, **options)

    os.replace = killing  # type: ignore[assignment]
    try:
        run(directory)
    except BaseException as error:
        print(repr(error), flush=True)
        os._exit(3)
    os._exit(0)


def finish(child: int) -> int:
    """Exit code, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def fingerprint(tensors: dict[str, torch.Tensor]) -> str:
    values = ((name, tensors[name].numpy().tobytes()) for name in sorted(tensors))
    return hashlib.sha256(b"".join(name.encode() + value for name, value in values)).hexdigest()


def outcome(directory: Path) -> dict[str, Any]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return {
        "weights": sha256_file(directory / "weights.safetensors"),
        "tensors": fingerprint(load_file(directory / "weights.safetensors")),
        "metrics": [{k: v for k, v in line.items() if k not in TIME_FIELDS} for line in lines],
        "files": sorted(str(path.relative_to(directory)) for path in directory.rglob("*")),
    }


def main(folder: Path) -> None:
    # imported at the first step of an optimiser: once here instead of once per child
    importlib.import_module("torch._dynamo")
    began = time.monotonic()
    code = finish(start(folder / "reference"))
    usual = time.monotonic() - began
    result: dict[str, Any] = {"reference": outcome(folder / "reference"), "code": code, "runs": []}
    for rename in range(1, 100):
        directory = folder / f"rename_{rename}"
        codes = [finish(start(directory, fatal_rename=rename))]
        if codes[0] == 0:
            break  # the run has fewer renames
        codes.append(finish(start(directory)))
        result["runs"].append({"codes": codes, **outcome(directory)})
    moments = random.Random(0)
    for number in range(2):
        directory, codes = folder / f"moment_{number}", []
        while not codes or codes[-1] != 0:
            child = start(directory)
            if len(codes) < 3:
                time.sleep(moments.uniform(0.1, 0.9) * usual)
                os.kill(child, signal.SIGKILL)
            codes.append(finish(child))
            if codes[-1] not in (0, -signal.SIGKILL):
                break
        result["runs"].append({"codes": codes, **outcome(directory)})
    print(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
