# What several rules ask the graph, the profile and the allocations.


def files(stage):
    """Patterns of the files that the jobs of `stage` make."""
    return list(STAGES[stage].outputs)


def allocation(kind, wildcards):
    """What a job of `kind` (possam.params.slurm) asks SLURM for."""
    kind = kind(wildcards) if callable(kind) else kind
    return allocations.of(scale_of(wildcards), kind)


def local_gpus(kind, wildcards):
    """GPUs that a job of `kind` takes on this machine."""
    kind = kind(wildcards) if callable(kind) else kind
    return int(here == "cuda" and kind in ("train", "evaluate", "timing", "figure"))


def asked(kind):
    """What a rule with jobs of `kind` (or kind(wildcards)) asks SLURM for; here, only the device.

    Commands take the number of their processes from cpus_per_task: on a login node, Snakemake
    limits the threads of submitted jobs to its own cores.
    """
    if launcher == "local":
        return {
            "device": here,
            "setup": "",
            "cpus_per_task": lambda w, threads: threads,
            "local_gpus": lambda w: local_gpus(kind, w),
        }
    return {
        name: lambda w, name=name: allocation(kind, w).resources[name]
        for name in Allocation.RESOURCES
    }


def device(kind, wildcards):
    """The kind of device that a job of `kind` computes on."""
    return here if launcher == "local" else allocation(kind, wildcards).device


def beside(wildcards):
    """On SLURM: the option that names the runs which may share a training's job."""
    if launcher == "local" or not allocation("train", wildcards).share_towers:
        return ""
    targets = set(workflow.dag_settings.targets)
    runs = graph.beside(wildcards, DEFAULT if targets <= {"table1"} else targets)
    return f"--beside '{' '.join(runs)}'" if runs else ""


def processors(kind, local):
    """Threads of a job of `kind`: on SLURM as many as it asks for, on this machine `local`."""
    return local if launcher == "local" else lambda w: allocation(kind, w).cpus


def evaluation_kind(w):
    """A benchmark that measures speed takes the whole machine; others share it."""
    return "timing" if graph.is_timed(w) else "evaluate"
