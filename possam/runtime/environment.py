"""Every environment variable that this package reads or sets, typed, in one place."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

DEFAULT_TRACKING_URI = "sqlite:///mlflow.db"
DEFAULT_SCALE = "mini"
FORKSERVER_VARIABLE = "POSSAM_FORKSERVER"
PROCESS_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What a launcher of several training processes sets, for example torchrun."""
DATA_ROOTS_PREFIX = "POSSAM_DATA_ROOTS_"
SOURCE_VARIABLE = "POSSAM_SOURCE"

MLFLOW_DEFAULTS: dict[str, str] = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
"""Set before MLflow is imported, unless the user has set them: no usage telemetry, and a dead
tracking server is reported after seconds (MLflow's own settings retry for minutes)."""


@dataclass(frozen=True, kw_only=True)
class Environment:
    """The environment variables that are read. An empty variable counts as not set.

    Attributes:
        tracking_uri: ``POSSAM_TRACKING_URI``, else ``MLFLOW_TRACKING_URI``, else a SQLite file
            ``mlflow.db`` in the working directory.
        scale: ``POSSAM_SCALE``, the default of ``--scale``.
        forkserver: ``POSSAM_FORKSERVER``, which a pipeline sets for its jobs: the socket of
            :mod:`possam.runtime.forkserver`.
        source: ``POSSAM_SOURCE``, set for jobs that run frozen sources: a JSON file with the git
            state that they were copied from.
        slurm_job: ``SLURM_JOB_ID`` of the surrounding job, recorded with results.
        processes: name -> value of those of :data:`PROCESS_VARIABLES` that are set.
        cache: ``POSSAM_CACHE``, else ``XDG_CACHE_HOME/possam``, else ``~/.cache/possam``: weights
            and class names that the library fetches.
        data_roots: ``POSSAM_DATA_ROOTS_<NAME>``: folders that override ``roots`` of
            ``params/data.yaml``, by their name in lower case.
    """

    tracking_uri: str = DEFAULT_TRACKING_URI
    scale: str = DEFAULT_SCALE
    forkserver: str | None = None
    source: str | None = None
    slurm_job: str | None = None
    processes: Mapping[str, str] = field(default_factory=dict)
    data_roots: Mapping[str, str] = field(default_factory=dict)
    cache: Path = field(default_factory=lambda: Path("~/.cache/possam").expanduser())

    @classmethod
    def load(cls, variables: Mapping[str, str] | None = None) -> "Environment":
        """Read ``variables`` (``os.environ`` if None)."""
        values = os.environ if variables is None else variables

        def read(name: str) -> str | None:
            return values.get(name, "").strip() or None

        uri = read("POSSAM_TRACKING_URI") or read("MLFLOW_TRACKING_URI") or DEFAULT_TRACKING_URI
        return cls(
            tracking_uri=uri,
            scale=read("POSSAM_SCALE") or DEFAULT_SCALE,
            forkserver=read(FORKSERVER_VARIABLE),
            source=read(SOURCE_VARIABLE),
            slurm_job=read("SLURM_JOB_ID"),
            cache=Path(
                read("POSSAM_CACHE") or f"{read('XDG_CACHE_HOME') or '~/.cache'}/possam"
            ).expanduser(),
            processes={name: value for name in PROCESS_VARIABLES if (value := read(name))},
            data_roots={
                name.removeprefix(DATA_ROOTS_PREFIX).lower(): folder
                for name in sorted(values)
                if name.startswith(DATA_ROOTS_PREFIX) and (folder := read(name)) is not None
            },
        )


_CLUSTER = frozenset({"SLURM_CONF", "SLURM_CLUSTERS"})
"""Variables of SLURM that say where the cluster is."""

_DECIDED = frozenset(
    f"SBATCH_{name}"
    for name in (
        *("ARRAY_INX", "BATCH", "CPUS_PER_GPU", "ERROR", "EXCLUSIVE", "EXPORT", "GPUS"),
        *("GPUS_PER_NODE", "GPUS_PER_TASK", "GRES", "INPUT", "JOB_NAME", "MEM_PER_CPU"),
        *("MEM_PER_GPU", "MEM_PER_NODE", "NO_REQUEUE", "OPEN_MODE", "OUTPUT", "OVERCOMMIT"),
        *("REQUEUE", "SIGNAL", "TIMELIMIT", "TRES_PER_TASK", "WAIT", "WAIT_ALL_NODES"),
    )
)
"""sbatch's variables for what every job's request or submission says."""


def job_variables(variables: Mapping[str, str]) -> set[str]:
    """Names of the variables that jobs submitted from here must not inherit.

    Those are a surrounding job's own, and sbatch's for what ``params/slurm.yaml`` decides for every
    job. Other variables of sbatch stay: sites tell their users to set them.
    """
    own = {n for n in variables if n.startswith(("SLURM_", "SRUN_")) and n not in _CLUSTER}
    return own | (_DECIDED & variables.keys())


def apply_mlflow_defaults() -> None:
    """Set :data:`MLFLOW_DEFAULTS` in the process environment, where the user has not."""
    for name, value in MLFLOW_DEFAULTS.items():
        os.environ.setdefault(name, value)
