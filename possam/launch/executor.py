"""Snakemake's executors: what they may not decide, and which of them can run this pipeline."""

from typing import Any

from possam.runtime.errors import InputError


def leave_defaults_to_slurm() -> None:
    """Let SLURM choose what a job does not ask for; call it before Snakemake starts its executor.

    Snakemake's SLURM executor (2.8, ``get_account_arg``) would take the account of the user's last
    job, and name the default partition, which wins over SBATCH_PARTITION.
    """
    from snakemake_executor_plugin_slurm import Executor

    account, partition = Executor.get_account_arg, Executor.get_partition_arg

    def asked_account(self: Any, job: Any) -> Any:
        return account(self, job) if job.resources.get("slurm_account") else iter([""])

    def asked_partition(self: Any, job: Any) -> Any:
        chosen_by_file = self._partitions  # SNAKEMAKE_SLURM_PARTITIONS
        asked = job.resources.get("slurm_partition") or chosen_by_file
        return partition(self, job) if asked else ""

    Executor.get_account_arg, Executor.get_partition_arg = asked_account, asked_partition


def refuse_executor(plugin: Any, *, launcher: str) -> None:
    """Raise an InputError where a user's own profile sends jobs to an executor that cannot work.

    Args:
        plugin: Snakemake's executor plugin.
        launcher: ``slurm`` with this project's profile for SLURM, else ``local``.
    """
    if launcher == "slurm" or plugin.common_settings.local_exec:
        return
    if plugin.name == "slurm":
        raise InputError(
            "a profile of yours (SNAKEMAKE_PROFILE, --profile or --executor) sends jobs to SLURM "
            "without asking for what they need; type --profile slurm, which does, and write what "
            "your profile says (account, partition, ...) into params/slurm.yaml"
        )
    if plugin.common_settings.implies_no_shared_fs:
        raise InputError(
            f"executor {plugin.name}: its jobs do not see this folder, where trainings keep "
            "weights and checkpoints; use an executor with a shared file system, --profile slurm, "
            "or --executor local"
        )
