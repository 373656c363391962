# `make` runs the pipeline, `make test` runs the tests; both set up the environment first. `make help` lists the targets.

SHELL := /bin/bash
.DEFAULT_GOAL := all

# DVC starts the stages as `python`, which must be that of the environment.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PYTHONUTF8 := 1

PYTHON ?= $(firstword $(foreach python,python3 python3.13 python3.12 python3.11 python,\
	$(shell $(python) -c 'import sys; print("$(python)" if sys.version_info >= (3, 11) else "")' 2>/dev/null)))
SETUP := .venv/.set-up
# An environment contains its own path in many files: after moving or copying the project it is created again.
MADE_IN := $(shell cat $(SETUP) 2>/dev/null)
MOVED := $(if $(MADE_IN),$(shell test "$$(cat $(SETUP))" = "$$(cd .venv && pwd -P)" || echo moved))

# uv installs in a fraction of pip's time; it does not read pip's configuration, so pip is tried where it fails. pip's many
# lines become one that names the current package; without a terminal only errors are printed.
PACKAGES := --constraint constraints.txt --editable '.[development,launchers,pretrained]'
SHOW_PACKAGE := awk '/^Collecting/ { printf "\r\033[K  package %d: %s", ++count, $$2; fflush() } \
	/^Installing collected/ { printf "\r\033[K  unpacking the packages (a minute or two) ..."; fflush() } \
	END { printf "\r\033[K" }'
PIP_INSTALL := set -o pipefail; python -m pip install --disable-pip-version-check $(PACKAGES) 2>.venv/pip-errors \
	| if test -t 1; then $(SHOW_PACKAGE); else cat >/dev/null; fi || { cat .venv/pip-errors; exit 1; }
INSTALL := { command -v uv >/dev/null && uv pip install --python .venv $(PACKAGES); } || { $(PIP_INSTALL); }

# Promotion is not part of a stage, because DVC may skip stages. Nothing is done for a model that was promoted before, and
# a model that is not promoted (exit code 2) does not stop the summary.
PROMOTED := .cache/promoted
# Inputs of a promotion: the model and its metrics, the policy, the code, the database or server.
DECIDES := { echo "$$MLFLOW_TRACKING_URI"; ls -i mlflow.db; cat models/run.json reports/metrics.json params.yaml \
	conf/registry/*.yaml conf/experiment/*.yaml src/registry.py src/cifar_pipeline/tracking/*.py; } 2>/dev/null | cksum
PROMOTE := test "$$($(DECIDES))" = "$$(cat $(PROMOTED) 2>/dev/null)" \
	|| { python src/registry.py promote && mkdir -p .cache && { $(DECIDES); } > $(PROMOTED); } || test $$? -eq 2

# DVC stores pickles in /var/tmp/dvc, where any user of the machine may replace them, and `dvc checkout` and `dvc pull`
# load them. The folder is created first, because DVC would make it world-writable.
PRIVATE_SITE_CACHE := { install -d -m 700 ~/.cache/dvc-site && dvc config --local core.site_cache_dir ~/.cache/dvc-site; } \
	|| echo "~/.cache/dvc-site cannot be used: DVC keeps its notes in /var/tmp/dvc, where others may write (docs/scaling.md)."

.PHONY: all
all: $(SETUP) ## set up, run the pipeline, show the results
	@dvc repro
	@$(PROMOTE)
	@python src/report.py summary

$(SETUP): pyproject.toml constraints.txt $(MOVED)
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or later was found: install one, or write make PYTHON=/path/to/it."; exit 2; }
	@echo "Installing the pinned environment into .venv (once; two to five minutes, with uv one, and 6 GB) ..."
	@"$(PYTHON)" -m venv $(if $(MOVED),--clear) .venv
	@$(INSTALL)
	@test ! -f src/build_docs.py || python src/build_docs.py --schemas-only >/dev/null # the Dockerfile sets up without src/
	@case "$$(LC_ALL=C git rev-parse --git-dir 2>&1)" in \
		*"not a git repository (or any"* | *"not found"*) test -e .git || dvc config --local core.no_scm true ;; esac
	@$(PRIVATE_SITE_CACHE)
	@(cd .venv && pwd -P) > $(SETUP)

moved:

.PHONY: setup
setup: $(SETUP) ## set up only

# Trials in parallel: `make sweep JOBS=2`.
SWEEP ?= optimizer_loss
JOBS ?= 1
PARALLEL := $(if $(filter-out 1,$(JOBS)),launcher=joblib hydra.launcher.n_jobs=$(JOBS) \
	$(if $(filter search,$(SWEEP)),hydra.sweeper.n_jobs=$(JOBS)))

.PHONY: sweep
sweep: $(SETUP) ## run a sweep of conf/sweep/ (SWEEP=optimizer_loss, JOBS=1) and compare its trials
	@dvc repro preprocess
	@python src/train.py -m sweep=$(SWEEP) $(PARALLEL)

.PHONY: compare-sweep
compare-sweep: $(SETUP) ## compare the trials of the newest sweep, at any time
	@python src/report.py sweep

.PHONY: experiments
experiments: $(SETUP) ## compare the experiments of `dvc exp run`: what they change, and their results
	@python src/report.py experiments

.PHONY: lr
lr: $(SETUP) ## suggest a learning rate for the recipe, and plot the range test (OVERRIDES="optimizer=adam")
	@dvc repro preprocess
	@python src/find_lr.py $(OVERRIDES)

.PHONY: test
test: $(SETUP) ## set up and run the tests (eight minutes on two cores)
	@python -m pytest

# Folders whose tests run whole pipelines, sweeps, servers and notebooks.
SLOW_TESTS := pipeline sweeps crash_recovery environment_failures notebooks

.PHONY: test-quick
test-quick: $(SETUP) ## run the tests of single functions and scripts only (five minutes on two cores)
	@python -m pytest $(SLOW_TESTS:%=--ignore=tests/%)

.PHONY: test-long
test-long: $(SETUP) ## run all tests, including those that take minutes
	@python -m pytest -m ''

# Number of moments at which trainings are killed: `make torture COUNT=10`.
COUNT ?= 100

.PHONY: torture
torture: $(SETUP) ## kill trainings at COUNT=100 moments and compare the results (15 minutes at most)
	@python tests/crash_recovery/torture.py --count $(COUNT)

.PHONY: results-table
results-table: $(SETUP) ## print the table of experiments (Markdown) from MLflow's database
	@python src/report.py results-table

include $(wildcard benchmarks/targets.mk)

.PHONY: check
check: $(SETUP) ## check format, style and types
	@ruff format --check
	@ruff check
	@mypy src

.PHONY: format
format: $(SETUP) ## format the code and apply automatic fixes
	@ruff format
	@ruff check --fix

.PHONY: docs
docs: $(SETUP) ## generate docs/configuration.md and schema/ from conf/
	@python src/build_docs.py

# `make ui PORT=5002`; `OPTIONS=--no-browser` prints the address only.
.PHONY: ui
ui: $(SETUP) ## show the runs in MLflow, on http://127.0.0.1:5000 (PORT=5000)
	@python src/ui.py $(if $(PORT),--port $(PORT)) $(OPTIONS)

.PHONY: serve
serve: $(SETUP) ## serve the champion over HTTP, on http://127.0.0.1:5001 (MODEL=models:/NAME/3)
	@python src/serve.py $(if $(MODEL),--model '$(MODEL)')

.PHONY: list-models
list-models: $(SETUP) ## list the registered models, the newest first
	@python src/registry.py list

.PHONY: rollback
rollback: $(SETUP) ## make the previous champion the champion again
	@python src/registry.py rollback

.PHONY: export
export: $(SETUP) ## copy the model to exported/, where it runs without this project and in a browser (MODEL=models:/NAME@champion)
	@python src/export.py $(if $(MODEL),--model '$(MODEL)')

.PHONY: cifar10
cifar10: $(SETUP) ## download the real CIFAR-10 after a start with the fallback data, and train on it
	@dvc repro --force --single-item download
	@dvc repro
	@$(PROMOTE)
	@python src/report.py summary

# The name is taken from the command line only, because some systems set a variable NAME. With make's own --dry-run the
# script lists what would change.
DRY_RUN := $(if $(findstring n,$(firstword -$(MAKEFLAGS))),--dry-run)

.PHONY: adopt
adopt: $(SETUP) ## make this clone your own project (NAME=flowers, KEEP=notebooks,chinese; --dry-run lists the changes)
	+@python src/adopt.py $(if $(findstring command,$(origin NAME)),"$$NAME") $(if $(KEEP),--keep "$$KEEP") $(DRY_RUN)

.PHONY: update
update: $(SETUP) ## merge a newer version of the upstream into your adopted project (UPSTREAM=URL the first time)
	@python src/update.py $(if $(UPSTREAM),"$$UPSTREAM")

.PHONY: clean
clean: ## remove the outputs of the stages; the environment, DVC's cache and the runs in MLflow are kept
	rm -rf data models multirun logs exported dvc_plots reports/samples.png reports/skipped.csv reports/mistakes.png reports/report.html reports/confusion.csv reports/predictions.csv reports/lr_finder.png reports/lr_finder.csv .cache

.PHONY: help
help: ## list these targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## (.*)/make \1\t\2/' | expand -t 28
