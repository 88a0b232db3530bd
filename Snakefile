# PosSAM, from upstream files to the paper's tables: the table of contents. What a stage makes, from what, and what
# decides its content is declared in possam/pipeline/declarations.py; the rules ask the graph, and `possam STAGE` does
# the work. Snakemake finds this file, and profiles/default beside it, by their names.
import os
import sys
from pathlib import Path

from snakemake_interface_executor_plugins.settings import ExecMode
from snakemake.utils import min_version

min_version("9.0")

from possam.launch.executor import leave_defaults_to_slurm, refuse_executor
from possam.params.slurm import Allocation, Allocations
from possam.pipeline.declarations import CONSTRAINTS, STAGES
from possam.pipeline.graph import PAPER, Graph, scale_of
from possam.pipeline.records import settle_records
from possam.pipeline.stored import bring_back
from possam.runtime import forkserver
from possam.runtime.environment import job_variables

# The `possam` of this very environment, also when it is not activated.
os.environ.update(
    PATH=os.pathsep.join([str(Path(sys.executable).parent), os.getenv("PATH", os.defpath)])
)

# Reads params/ once, each scale when a rule first asks for it.
graph = Graph()

# DVC or git may have brought results back: give Snakemake their records before it plans.
if workflow.exec_mode == ExecMode.DEFAULT:
    for name in graph.scales:
        bring_back(graph, name)
    settle_records()

# The profile says where jobs run. It is no parameter of a rule: another launcher reruns nothing.
launcher = config.get("launcher", "local")
allocations = Allocations() if launcher == "slurm" else None

# Without SLURM: cpu, or cuda (profiles/gpu), where one job at a time has the GPU.
here = config.get("device", "cpu")
if here not in ("cpu", "cuda") or (launcher == "slurm" and "device" in config):
    raise WorkflowError(
        f"--config device={here}: cpu or cuda; with --profile slurm, params/slurm.yaml decides it"
    )

# Jobs that are submitted from here must not inherit the variables of a surrounding job (workflow/driver.sh). The
# executor would remove them as well, and SLURM_CONF with them.
if launcher == "slurm" and workflow.exec_mode == ExecMode.DEFAULT:
    leave_defaults_to_slurm()
    for name in job_variables(os.environ):
        del os.environ[name]


DEFAULT = ["results/mini/table1.csv", "results/mini/table1.tracking.json"]


include: "workflow/rules/common.smk"


# One environment for all rules: every stage is the same program, and its identity covers code and parameters, so that several
# environments could only disagree. `snakemake --sdm apptainer` runs each job in this image (docs/your-cluster.md).
container: config.get("container", "possam.sif")


wildcard_constraints:
    **CONSTRAINTS,
    scale="|".join(graph.scales),
    prefix="|".join(["", *(f"{scale}/" for scale in graph.scales if scale != PAPER)]),


onstart:
    if workflow.exec_mode == ExecMode.DEFAULT:
        refuse_executor(workflow.executor_plugin, launcher=launcher)
        if workflow.local_exec:
            forkserver.lend("possam.cli:main")


onsuccess:
    settle_records()


onerror:
    settle_records()


# On a cluster's login node: downloads, and the commands that wait for trainings. Without --profile slurm no command
# waits: a training is a job like any other.
localrules:
    table1,
    download,


if launcher == "slurm":

    localrules:
        train,


rule table1:
    """The default target: Table 1 at mini scale, tracked in MLflow."""
    input:
        DEFAULT,
    default_target: True


include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/figures.smk"
include: "workflow/rules/towers.smk"
