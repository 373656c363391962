# `make` runs the whole pipeline, `make test` passes the tests; both set up first what they need. `make help` lists the rest.

SHELL := /bin/bash
.DEFAULT_GOAL := all

# DVC starts the stages as `python`, whichever that would be outside.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PYTHONUTF8 := 1

PYTHON ?= $(firstword $(foreach python,python3 python3.13 python3.12 python3.11 python,\
	$(shell $(python) -c 'import sys; print("$(python)" if sys.version_info >= (3, 11) else "")' 2>/dev/null)))
SETUP := .venv/.set-up
# An environment holds its own path in many files: in a project that was moved or copied it is made again.
MADE_IN := $(shell cat $(SETUP) 2>/dev/null)
MOVED := $(if $(MADE_IN),$(shell test "$$(cat $(SETUP))" = "$$(cd .venv && pwd -P)" || echo moved))

# No stage touches MLflow's registry: a stage may be skipped. A model that was seen to takes no time again, and one that
# is refused (exit code 2, with a sentence) keeps nobody from seeing what came out.
PROMOTED := .cache/promoted
# What decides about a promotion: the model and its numbers, the rule, the code, the database or server.
DECIDES := { echo "$$MLFLOW_TRACKING_URI"; ls -i mlflow.db; cat models/run.json reports/metrics.json params.yaml \
	conf/registry/*.yaml conf/experiment/*.yaml src/registry.py src/cifar_pipeline/tracking/*.py; } 2>/dev/null | cksum
PROMOTE := test "$$($(DECIDES))" = "$$(cat $(PROMOTED) 2>/dev/null)" \
	|| { python src/registry.py promote && mkdir -p .cache && { $(DECIDES); } > $(PROMOTED); } || test $$? -eq 2

# DVC keeps pickles in /var/tmp/dvc, where any user of the machine may replace them, and `dvc checkout` and `dvc pull`
# load them. The folder is made first, because DVC would let everybody write to it.
PRIVATE_SITE_CACHE := { install -d -m 700 ~/.cache/dvc-site && dvc config --local core.site_cache_dir ~/.cache/dvc-site; } \
	|| echo "~/.cache/dvc-site cannot be used: DVC keeps its notes in /var/tmp/dvc, where others may write (docs/scaling.md)."

.PHONY: all
all: $(SETUP) ## set up, run the whole pipeline, show what came out
	@dvc repro
	@$(PROMOTE)
	@python src/report.py summary

$(SETUP): pyproject.toml constraints.txt $(MOVED)
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or later was found: install one, or write make PYTHON=/path/to/it."; exit 2; }
	@echo "Installing the pinned environment into .venv (once; two to five minutes and 6 GB) ..."
	@"$(PYTHON)" -m venv $(if $(MOVED),--clear) .venv
	@python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[development,launchers]'
	@case "$$(LC_ALL=C git rev-parse --git-dir 2>&1)" in \
		*"not a git repository (or any"* | *"not found"*) test -e .git || dvc config --local core.no_scm true ;; esac
	@$(PRIVATE_SITE_CACHE)
	@(cd .venv && pwd -P) > $(SETUP)

moved:

.PHONY: setup
setup: $(SETUP) ## set up only

# A sweep's trials beside each other: `make sweep JOBS=2`.
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

.PHONY: test
test: $(SETUP) ## set up and run the tests (five minutes or more on two cores)
	@python -m pytest

.PHONY: test-long
test-long: $(SETUP) ## run all tests, those that take minutes too
	@python -m pytest -m ''

# Moments at which trainings are killed: `make torture COUNT=10`.
COUNT ?= 100

.PHONY: torture
torture: $(SETUP) ## kill trainings at COUNT=100 moments and compare what comes of them (15 minutes at most)
	@python tests/crash_recovery/torture.py --count $(COUNT)

.PHONY: bench
bench: $(SETUP) ## time it against a plain loop, against Lightning as usual, and against its limits (seven to ten minutes)
	@python benchmarks/run.py

# Which races (those of benchmarks/speedrun.py); seeds, if not as many as the leaderboard's rules want: `SEEDS="0 1"`.
RECIPE ?= quick airbench94

.PHONY: speedrun
speedrun: $(SETUP) ## run the best of docs/leaderboard.md and print its row (RECIPE=quick, SEEDS="0 1 2"; half an hour or more for both)
	@python benchmarks/speedrun.py $(RECIPE) $(if $(SEEDS),--seeds $(SEEDS))

.PHONY: results-table
results-table: $(SETUP) ## print the table of experiments (Markdown) from MLflow's database
	@python src/report.py experiments

.PHONY: check
check: $(SETUP) ## check format, style and types
	@ruff format --check
	@ruff check
	@mypy src

.PHONY: format
format: $(SETUP) ## format the code, and mend what can be mended by a machine
	@ruff format
	@ruff check --fix

.PHONY: docs
docs: $(SETUP) ## write docs/configuration.md and schema/ anew from conf/
	@python src/build_docs.py

# MLflow's first page is about language models; this address opens the runs.
.PHONY: ui
ui: $(SETUP) ## show the runs in MLflow, on http://127.0.0.1:5000
	@echo 'The runs: http://127.0.0.1:5000/#/experiments/1?workflowType=machine_learning'
	@mlflow ui --host 127.0.0.1 --backend-store-uri sqlite:///mlflow.db

.PHONY: serve
serve: $(SETUP) ## answer for images over HTTP with the champion, on http://127.0.0.1:5001 (MODEL=models:/cifar10/3)
	@python src/serve.py $(if $(MODEL),--model '$(MODEL)')

.PHONY: list-models
list-models: $(SETUP) ## list the registered models, the newest first
	@python src/registry.py list

.PHONY: rollback
rollback: $(SETUP) ## put the champion's predecessor back
	@python src/registry.py rollback

.PHONY: export
export: $(SETUP) ## copy the model to exported/, where it runs without this project and in a browser (MODEL=models:/cifar10@champion)
	@python src/export.py $(if $(MODEL),--model '$(MODEL)')

.PHONY: cifar10
cifar10: $(SETUP) ## fetch the real CIFAR-10 after a start on the fallback, and train on it
	@dvc repro --force --single-item download
	@dvc repro
	@$(PROMOTE)
	@python src/report.py summary

.PHONY: clean
clean: ## remove what the stages wrote; the environment, DVC's cache and the runs in MLflow stay
	rm -rf data models multirun exported reports/samples.png reports/skipped.csv reports/mistakes.png reports/report.html reports/confusion.csv reports/predictions.csv .cache

.PHONY: help
help: ## list these targets
	@grep -hE '^[a-z0-9-]+:.*## ' Makefile | sed -E 's/^([a-z0-9-]+):.*## (.*)/make \1\t\2/' | expand -t 22
