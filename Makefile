# Every target sets up .venv by itself (from requirements.lock) before it runs.
SHELL := /bin/bash
UV_VERSION := $(shell sed -n 's/^uv==\([0-9.]*\).*/\1/p' requirements.lock)
BIN := .venv/bin
UV := workflow/uv.sh $(BIN)
READY := .venv/.ready
# An environment knows its own path: after a move of the checkout it is made anew.
MOVED := $(shell test ! -L .venv && grep -s "^command = " .venv/pyvenv.cfg | grep -vqF "$(CURDIR)/.venv" && echo moved)
CORES ?= 2
SCALE ?= mini
MINUTES ?= 10
SEED ?= 0
# The study is every table of params/tables.yaml and the report of them all.
TABLES := $(shell sed -n 's/^\(table[0-9]*\):.*/\1/p' params/tables.yaml)
STUDY = $(foreach table,$(TABLES),results/$(SCALE)/$(table).csv results/$(SCALE)/$(table).tracking.json) \
  reports/$(SCALE)/report.html
# One thread per process: two processes on two cores beat one process on two threads.
export OMP_NUM_THREADS ?= 1
export UV_LINK_MODE ?= copy
# Where Python may not write bytecode, every process would compile 3,000 files: six seconds, a hundred times per study.
ifneq ($(PYTHONDONTWRITEBYTECODE),)
export UV_COMPILE_BYTECODE ?= 1
endif
# Of the pages' theme: news about its successor.
export NO_MKDOCS_2_WARNING := 1
# Where pip is set up for a site, uv is too: certificates and indexes here, pip.conf in workflow/uv.sh (docs/set-up.md).
export UV_SYSTEM_CERTS ?= true
export UV_DEFAULT_INDEX ?= $(value PIP_INDEX_URL)
export UV_INDEX ?= $(value PIP_EXTRA_INDEX_URL)
# Modules of a site set these for another Python, whose packages would come before those of .venv.
export PYTHONPATH := $(CURDIR)
unexport PYTHONHOME
# Snakemake and DVC do not start without a folder for caches, and without a user's name.
ifneq ($(shell test -w "$$HOME" && echo yes),yes)
ifneq ($(shell test -d "$$HOME" && echo yes),yes)
export HOME := $(CURDIR)/.possam/home
endif
export XDG_CACHE_HOME ?= $(CURDIR)/.possam/home/.cache
$(warning HOME cannot be written: caches lie in $(XDG_CACHE_HOME))
endif
ifeq ($(USER)$(LOGNAME),)
export LOGNAME := $(shell { id -un || id -u; } 2>/dev/null)
endif
# An older pip trusts only its own certificates unless it is told.
ifneq ($(SSL_CERT_FILE),)
export PIP_CERT ?= $(SSL_CERT_FILE)
endif

.DEFAULT_GOAL := help
.PHONY: help setup study table1 smoke test test-fast parity together bench paper-step paper-memory fuzz test-slurm lint docs schemas crate dist format lock ui models towers calibrate clean

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 18

setup: $(READY) ## create .venv with every pinned package

ifneq ($(MOVED),)
.PHONY: $(READY)
endif

# An environment that works keeps its Python, also where a newer one has been installed since (PYTHON=... replaces it).
# TORCH=cpu: PyTorch's builds without CUDA, from its own index, and none of NVIDIA's packages (docs/set-up.md).
ONLY_CUDA := ^(nvidia-|cuda-|triton=)
PACKAGES := $(if $(filter cpu,$(TORCH)),--torch-backend cpu -r <(grep -Ev '$(ONLY_CUDA)' requirements.lock),-r requirements.lock)

$(READY): requirements.lock pyproject.toml
	@case "$(TORCH)" in ''|cpu) ;; *) echo "make: TORCH=$(TORCH): only TORCH=cpu (default: as locked)" >&2; exit 2;; esac
	@command -v which >/dev/null || { echo "make: Snakemake needs the command 'which'; install the package of that name (Debian: debianutils)" >&2; exit 2; }
	$(if $(MOVED)$(PYTHON),,$(BIN)/python -c 'import pip' 2>/dev/null ||) { \
	  python=$$(PYTHON="$(PYTHON)" workflow/python.sh "$(CURDIR)/.possam/python" $(UV_VERSION)) \
	  && "$$python" -m venv $(if $(MOVED),--clear) "$(CURDIR)/.venv"; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION) \
	  && $(UV) pip install --python $(BIN)/python --no-deps $(PACKAGES) \
	  && $(UV) pip install --python $(BIN)/python --no-deps -e . \
	  || { echo "make: the packages are not installed, for the reason above; docs/set-up.md: mirrors, proxies," \
	    "certificates, and where caches lie" >&2; exit 2; }
	@touch $(READY)

study: $(READY) ## all tables and figures (SCALE=mini), in MLflow and on one page: reports/mini/report.html
	$(BIN)/snakemake --cores $(CORES) $(STUDY)

table1: $(READY) ## only Table 1 (SCALE=mini): data, its trainings and evaluations, MLflow; printed at the end
	$(BIN)/snakemake --cores $(CORES) results/$(SCALE)/table1.csv results/$(SCALE)/table1.tracking.json
	$(BIN)/possam show table1 --scale $(SCALE)

smoke: ## the whole study on a handful of images (does every rule run?)
	$(MAKE) study SCALE=smoke

test: $(READY) ## the test suite
	$(BIN)/python -m pytest -n $(CORES) --dist loadscope --no-loadscope-reorder

# Tests of the subpackages without networks, trainings and scoring: no compiled loops, no pipeline.
FAST := assets datasets launch params pictures pipeline reporting runtime stages synthetic

test-fast: $(READY) ## the tests of everything around networks, trainings and scoring (less than two minutes)
	$(BIN)/python -m pytest -n $(CORES) --dist loadscope -m "not (pipeline or slow or full_size or paper_step or slurm)" \
	  $(FAST:%=tests/%) tests/test_*.py

# By default the C library keeps freed tensors of up to 32 MB; two networks would then not fit into 12 GiB.
parity: $(READY) ## every borrowed part against its reference, full size; writes reports/parity.md
	MALLOC_MMAP_THRESHOLD_=1048576 $(BIN)/python -m pytest -m parity -n $(CORES) --dist loadscope --no-loadscope-reorder \
	  --parity-report=reports/parity.md

# Features of SAM B and H and of CLIP, as the mini scale's trainings read them.
TOGETHER = $(foreach tower,b h clip,data/mini/features/$(tower)/coco_train/manifest.json)

together: $(READY) ## runs trained together against each by itself, mini scale, killed once (about 20 minutes)
	$(BIN)/snakemake --cores $(CORES) $(TOGETHER)
	$(BIN)/python -m pytest -m together tests/whole/test_shared_towers.py

bench: $(READY) ## speed and memory beside other libraries; writes reports/bench.md (NAMES="training inference"; hours)
	env -u OMP_NUM_THREADS $(BIN)/python -m benchmarks --threads $(CORES) $(NAMES)

paper-step: $(READY) ## two training steps of models of the paper's size on a CPU (10 GiB of memory, 6 GB of disk)
	$(BIN)/python -m pytest -m paper_step tests/training/test_paper_step.py

paper-memory: $(READY) ## GPU memory of the paper's sixteen trainings, computed without a GPU (about five minutes)
	$(BIN)/python -m tests.support.paper_memory

fuzz: $(READY) ## hostile variants of every file that others write, MINUTES=10 for each reader (READERS="coco png"; SEED=0)
	$(BIN)/python -m tests.fuzz $(READERS) --minutes $(MINUTES) --seed $(SEED)

# It needs Debian's packages slurm-wlm, slurmdbd, munge and mariadb-server, and installs none of them.
test-slurm: $(READY) ## a SLURM cluster on this machine (root): smoke pipeline through it, then every fault
	$(BIN)/python -m pytest -m slurm tests/slurm

lint: $(READY) ## sources, types, layers, workflow, schemas, pages, containers, CI (less than three minutes)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint
	$(BIN)/python -m possam.params.schemas --check
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff
	$(BIN)/actionlint
	$(BIN)/hadolint containers/Dockerfile
	$(BIN)/mkdocs build --quiet --strict --site-dir .possam/site

docs: $(READY) ## the pages of docs/ as a site: .possam/site/index.html
	$(BIN)/mkdocs build --strict --site-dir .possam/site

schemas: $(READY) ## JSON Schemas of the parameter files anew, from the models that check them
	$(BIN)/python -m possam.params.schemas

crate: $(READY) ## the finished tables of SCALE as a Workflow Run RO-Crate in crates/SCALE, validated
	@mkdir -p crates
	$(BIN)/python -m possam.stages.crate --scale $(SCALE)
	$(UV) run --quiet --no-project --isolated --python $(BIN)/python --with roc-validator==0.13.0 --with rocrate==0.13.0 \
	  python workflow/check_crate.py crates/$(SCALE)

dist: $(READY) ## wheel and sdist in dist/, checked
	rm -rf dist && $(BIN)/python -m build
	$(UV) tool run twine==6.2.0 check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl

format: $(READY) ## let ruff format the sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile workflow

lock: $(READY) ## resolve requirements.lock anew from pyproject.toml
	$(UV) pip compile --universal --all-extras --no-header --no-annotate --python-version 3.11 \
	  pyproject.toml -o requirements.lock

ui: $(READY) ## MLflow's pages on http://127.0.0.1:5000
	$(BIN)/possam ui

models: $(READY) ## export the mini study's PosSAM (B) and (H) into data/models, which the package ships
	for run in possam_b_coco possam_h_coco; do \
	  $(BIN)/possam export $$run data/models/$$run --scale mini --without-towers || exit 2; done

towers: $(READY) ## train the small synthetic SAMs and CLIP anew (about two hours)
	$(BIN)/snakemake --cores $(CORES) --forcerun towers -- towers

calibrate: $(READY) ## the synthetic world's figures beside the real world's that it aims at
	$(BIN)/snakemake --cores $(CORES) -- results/calibration/runs/fcclip_coco/seed0/run.json \
	  $(foreach set,coco ade20k,data/calibration/datasets/$(set)_val/manifest.json)
	$(BIN)/possam calibrate --scale calibration

clean: ## remove data, trainings and evaluations of mini, everything of smoke, and Snakemake's records
	rm -rf data/mini data/smoke results/smoke reports/smoke results/mini/runs results/mini/evaluations stored .snakemake
