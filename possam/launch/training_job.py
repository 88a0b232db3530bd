"""What every process of a training job does: train, with the frozen sources."""

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from possam.launch.records import RunRecords
from possam.launch.source import check
from possam.runtime.errors import InputError, PossamError
from possam.runtime.locks import is_held

_LOCK_S = 180.0
"""A network file system takes a minute or two to free the lock of a node that died."""


def ranks(
    variables: Mapping[str, str], *, hosts: tuple[str, ...], world_size: int
) -> dict[str, str]:
    """torch's variables for this process, from SLURM's.

    Args:
        variables: the environment that srun made.
        hosts: the job's nodes; the processes meet on the first.
        world_size: the number of processes that was asked for.

    Raises:
        InputError: another number of processes runs, so the batch would be divided differently.
    """
    running = int(variables.get("SLURM_NTASKS", "1"))
    if running != world_size:
        raise InputError(
            f"SLURM runs {running} processes, but {world_size} were asked for (nodes x tasks in "
            "params/slurm.yaml); look for SLURM_ or SBATCH_ variables that change it"
        )
    job = int(variables["SLURM_JOB_ID"])
    return {
        "RANK": variables["SLURM_PROCID"],
        "LOCAL_RANK": variables["SLURM_LOCALID"],
        "WORLD_SIZE": str(world_size),
        # On one node no host name has to be resolved.
        "MASTER_ADDR": hosts[0] if len(hosts) > 1 else "127.0.0.1",
        # Below the ports that systems hand out themselves; differs between jobs on one node.
        "MASTER_PORT": str(20000 + job % 10000),
    }


@dataclass(frozen=True)
class TrainingJob:
    """One training, picklable; submitit calls it in every process of the job.

    Attributes:
        scale, run, seed: which training.
        device: ``cpu`` or ``cuda``.
        world_size: the number of processes that was asked for.
        directory: the run's folder.
        source: the snapshot whose code and parameters are used.
    """

    scale: str
    run: str
    seed: int
    device: str
    world_size: int
    directory: Path
    source: Path

    def checkpoint(self) -> Any:
        """Called before a time-out or preemption: the same job again resumes at its checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def __call__(self) -> None:
        """Train and record how it ended; every exception ends the whole job.

        Raises:
            InputError: wrong sources or number of processes, or a training that is refused.
        """
        from submitit.core.utils import UncompletedJobError
        from submitit.slurm.slurm import SlurmJobEnvironment

        environment = SlurmJobEnvironment()
        job, rank = environment.job_id, environment.global_rank
        records = RunRecords(self.directory)
        records.forget_failure(job, rank)
        try:
            hosts = tuple(environment.hostnames)
            os.environ.update(ranks(os.environ, hosts=hosts, world_size=self.world_size))
            if rank == 0:
                self._announce(job, environment.hostname)
            self._train()
            if rank == 0:
                records.write_finished(job)
        except PossamError as error:
            from possam.training.distributed import LostProcessError

            # The parameters are not at fault if another process was lost.
            lost = isinstance(error, LostProcessError)
            code = 1 if lost else 2
            records.write_failure(job, rank, message=str(error), final=not lost, code=code)
            raise
        except UncompletedJobError:
            message = "max_requeues (params/slurm.yaml) is used up; submit it again to go on"
            records.write_failure(job, rank, message=message, final=True, code=1)
            raise
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            records.write_failure(job, rank, message=message, final=False, code=1)
            raise

    def _announce(self, job: str, host: str) -> None:
        import possam

        used = Path(possam.__file__).resolve().parents[1]
        if used != self.source:
            raise InputError(
                f"the job runs the code in {used}, not the frozen {self.source}; something sets "
                "PYTHONPATH or sys.path after the job has started"
            )
        check(self.source)
        attempt = int(os.environ.get("SLURM_RESTART_COUNT", "0")) + 1
        print(
            f"job {job}, attempt {attempt}, {host}, {self.world_size} processes, sources {used}",
            file=sys.stderr,
            flush=True,
        )

    def _train(self) -> None:
        from possam.params.layout import RUN_LOCK
        from possam.params.project import Project
        from possam.stages.train import train

        deadline = time.monotonic() + _LOCK_S
        while os.environ["RANK"] == "0" and is_held(self.directory / RUN_LOCK):
            if time.monotonic() > deadline:
                break  # train() refuses, with the reason
            time.sleep(1)
        project = Project(self.scale, folder=self.source / "params")
        train(project, self.run, seed=self.seed, device=self.device)
