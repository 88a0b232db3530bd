# PosSAM, from upstream files to the paper's tables. This file is the table of contents: parameters
# and identities come from params/ (possam.params.project), paths from possam.params.layout, work from `possam STAGE`.
import os
import sys
from pathlib import Path

from snakemake_interface_executor_plugins.settings import ExecMode
from snakemake.utils import min_version

min_version("9.0")

from possam.runtime import forkserver
from possam.datasets.catalogue import DATASETS
from possam.pipeline.dvc_file import own_records
from possam.params.slurm import Allocation, Allocations
from possam.params.layout import (
    ASSET, DATASET, EVALUATION, EXTERNAL_EVALUATION, FEATURES, FIGURE_CARD, FIGURE_PDF, FIGURE_PNG,
    REPORT, RUN, TABLE_CARD, TABLE_CSV, TABLE_MD, TABLE_METRICS, TABLE_TEX, TRACKING, WORLD
)
from possam.pipeline.graph import Pipeline
from possam.params.tables import CONDITIONS

# The `possam` of this very environment, also when it is not activated.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

# DVC may have put links to its cache here.
own_records()

# Reads params/ once; asked by the rules for inputs and identities.
plan = Pipeline()

# The profile says where jobs run. It is no parameter of a rule: another launcher reruns nothing.
launcher = config.get("launcher", "local")
allocations = Allocations() if launcher == "slurm" else None


def allocation(kind, wildcards):
    """What a job of `kind` (possam.params.slurm) asks SLURM for."""
    scale = wildcards.get("scale") or plan.scale_of(wildcards.prefix)
    return allocations.of(scale, kind(wildcards) if callable(kind) else kind)


def asked(kind):
    """Resources of a rule whose jobs are of `kind`, or of kind(wildcards); here, the CPU."""
    if launcher == "local":
        return {"device": "cpu"}
    return {
        name: lambda w, name=name: allocation(kind, w).resources[name]
        for name in Allocation.RESOURCES
    }


def processors(kind, here):
    """Threads of a job of `kind`: as many as it asks SLURM for, or `here` on this machine."""
    return here if launcher == "local" else lambda w: allocation(kind, w).cpus


wildcard_constraints:
    scale="|".join(plan.scales),
    prefix="|".join(["", *(f"{scale}/" for scale in plan.scales if scale != "paper")]),
    table=r"table\d+",
    figure=r"\w+",
    run=r"\w+",
    seed=r"\d+",
    asset=r"\w+",
    tower=r"\w+",
    dataset="|".join(DATASETS),
    split="train|val",
    benchmark=r"\w+",
    condition="|".join(CONDITIONS),
    external=r"\w+",


onstart:
    if workflow.local_exec and workflow.exec_mode == ExecMode.DEFAULT:
        forkserver.lend("possam.cli:main")


# On a cluster's login node: downloads, and the commands that wait for trainings.
localrules:
    table1,
    download,
    train,


rule table1:
    """The default target: Table 1 at mini scale, tracked in MLflow."""
    input:
        TABLE_CSV.format(prefix="mini/", table="table1"),
        TRACKING.format(prefix="mini/", table="table1"),
    default_target: True


include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/figures.smk"
include: "workflow/rules/towers.smk"
