"""Submits a training to SLURM, through submitit."""

import contextlib
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from possam.launch.records import FOLDER
from possam.launch.training_job import TrainingJob
from possam.params.slurm import Allocation
from possam.runtime.environment import FORKSERVER_VARIABLE, SOURCE_VARIABLE
from possam.runtime.errors import InputError
from possam.runtime.files import write_json
from possam.runtime.provenance import git_state


def submit(job: TrainingJob, allocation: Allocation, *, name: str, root: Path) -> str:
    """Submit ``job`` with the working directory ``root``; returns its number.

    Raises:
        InputError: SLURM refuses what ``params/slurm.yaml`` asks for.
    """
    import submitit
    from submitit.core.utils import FailedJobError

    folder = job.directory / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    git = folder / f"git_{job.source.name}.json"
    if not git.exists():
        write_json(git, git_state(root))
    executor = submitit.SlurmExecutor(folder=folder, max_num_timeout=allocation.max_requeues)
    executor.update_parameters(**_parameters(job, allocation, name=name, root=root, git=git))
    with _outside_any_job():
        try:
            return str(executor.submit(job).job_id)
        except FailedJobError as error:
            raise InputError(
                f"sbatch refuses the job: {' '.join(str(error).split())}; see scales.{job.scale}."
                "train and defaults in params/slurm.yaml"
            ) from error


def _parameters(
    job: TrainingJob, allocation: Allocation, *, name: str, root: Path, git: Path
) -> dict[str, Any]:
    optional = {
        "account": allocation.account,
        "partition": allocation.partition,
        "constraint": allocation.constraint,
        "gres": allocation.gres,
        "exclusive": True if allocation.exclusive else None,
    }
    return {
        "job_name": name,
        "comment": f"possam train {job.run} --seed {job.seed} --scale {job.scale}",
        "nodes": allocation.nodes,
        "ntasks_per_node": allocation.tasks,
        "cpus_per_task": allocation.cpus,
        "mem": f"{allocation.memory_gib}G",
        "time": allocation.minutes,
        "signal_delay_s": allocation.signal_s,
        # Requeued by SLURM after the loss of a node, by submitit before a time-out.
        "additional_parameters": {"requeue": True, "chdir": str(root)},
        "srun_args": [
            # A process that gives up ends all; otherwise the others would wait for it.
            "--kill-on-bad-exit=1",
            # Since SLURM 22.05 srun does not inherit it from sbatch.
            f"--cpus-per-task={allocation.cpus}",
        ],
        "setup": [
            # `python -m` would look in the working directory first.
            "export PYTHONSAFEPATH=1",
            f"export PYTHONPATH={shlex.quote(str(job.source))}${{PYTHONPATH:+:$PYTHONPATH}}",
            f"export {SOURCE_VARIABLE}={shlex.quote(str(git))}",
            f"unset {FORKSERVER_VARIABLE}",
        ],
        **{key: value for key, value in optional.items() if value is not None},
    }


@contextlib.contextmanager
def _outside_any_job() -> Iterator[None]:
    """Hide the variables of a job that the driver may run in, which sbatch would inherit."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(("SLURM_", "SRUN_", "SBATCH_")) and name != "SLURM_CONF"
    }
    for name in inherited:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(inherited)
