# PosSAM, from upstream files to the paper's tables. This file is the table of contents: parameters
# and identities come from params/ (possam.params), paths from possam.layout, work from `possam STAGE`.
import os
import sys
from pathlib import Path

from snakemake_interface_executor_plugins.settings import ExecMode
from snakemake.utils import min_version

min_version("9.0")

from possam import forkserver
from possam.catalogue import DATASETS
from possam.dvc_file import own_records
from possam.layout import (
    ASSET, DATASET, EVALUATION, EXTERNAL_EVALUATION, FEATURES, FIGURE_CARD, FIGURE_PDF, FIGURE_PNG,
    REPORT, RUN, TABLE_CARD, TABLE_CSV, TABLE_MD, TABLE_METRICS, TABLE_TEX, TRACKING, WORLD
)
from possam.pipeline import Pipeline
from possam.table_params import CONDITIONS

# The `possam` of this very environment, also when it is not activated.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

# DVC may have put links to its cache here.
own_records()

# Reads params/ once; asked by the rules for inputs and identities.
plan = Pipeline()


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
        forkserver.lend()


localrules:
    table1,


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
