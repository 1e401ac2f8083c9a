# Each target makes its virtual environment when it is missing or the lock has changed (environments/install).
#   make test                      .venv, with the first Python 3.11 to 3.13 found
#   make test PYTHON=python3.13    .venv-python3.13
#   make test VENV=/tmp/x          elsewhere
#   make test ARGS="-k lake"       what else pytest is told
#   make test PROCESSES=8          on so many cores; 0: one test at a time, in one process
#   make test ROOMS="data serving" notebooks of these folders of nbs/ only
#   make test FILES=/dev/shm       where tests put their files; in memory they wait for no disk
#   make outputs NOTEBOOK=a.ipynb  of one notebook
PYTHON ?=
VENV   ?= .venv$(if $(PYTHON),-$(notdir $(PYTHON)))
ARGS   ?=
PROCESSES ?= 2
ROOMS  ?=
FILES  ?=
NOTEBOOK  ?=

BIN       := $(abspath $(VENV))/bin
INSTALLED := $(VENV)/.installed
EXTRAS    := serve otel trees torch search convert wandb lab sql delta iceberg mongodb s3 flights kafka nats valkey pubsub monitoring bench dev
KERNELS   := $$(find scalai_nb/kernels -name '*.py')
LEAN      := --override environments/overrides.txt
COMPILE    = uv pip compile --quiet --universal --python-version 3.11 --no-annotate --no-header $(EXTRAS:%=--extra %) pyproject.toml

export PATH := $(BIN):$(PATH)
unexport PYTHONDONTWRITEBYTECODE  # with it every process compiles every module again: three times the time
.DEFAULT_GOAL := help
.PHONY: help demo test check campaign mutants export update format outputs docs pictures style bench lock test-services clean

help:  ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | while IFS='	' read -r name text; do printf '  make %-14s %s\n' "$$name" "$$text"; done

demo: $(INSTALLED)  ## Run the flights system end to end, on real data
	@$(BIN)/scalai run flights --env laptop

test: $(INSTALLED)  ## Run every notebook and compare its outputs, then run every test
	@echo "test: the notebooks of nbs/, each from top to bottom"
	@$(BIN)/python tests/outputs.py --check --lessons --processes $(PROCESSES) $(if $(ROOMS),--rooms $(ROOMS)) || lessons=failed; \
	echo "test: tests/"; \
	$(if $(FILES),TMPDIR=$(FILES)) $(BIN)/pytest --numprocesses $(PROCESSES) --dist worksteal $(ARGS) || tests=failed; \
	if [ -n "$$lessons" ]; then echo "test: a notebook has failed, above tests/"; fi; \
	[ -z "$$lessons$$tests" ]

check: format  ## What a commit must pass: ruff, the type checker, the export in sync, true documents (two minutes)
	@$(BIN)/ruff check
	@$(BIN)/basedpyright
	@$(BIN)/pytest -m "not slow" tests/test_house.py tests/test_hygiene.py tests/test_project.py tests/test_docs.py $(ARGS)

campaign: $(INSTALLED)  ## Run what takes long: faults by the minute, the bench's own bounds, the soak of a service
	@$(BIN)/pytest -m campaign $(ARGS)
	@$(BIN)/scalai bench serve soak --rounds 1

mutants: $(INSTALLED)  ## Break the code in a hundred places and count what the tests notice (an hour)
	@$(BIN)/python tests/mutants.py --processes $(PROCESSES)

export: $(INSTALLED)  ## Write the notebooks of nbs/ into the modules of scalai_nb/, formatted and clean
	@$(BIN)/ruff format --quiet
	@$(BIN)/ruff format --quiet $(KERNELS)
	@$(BIN)/nbdev-clean && $(BIN)/nbdev-export
	@touch $(INSTALLED)  # nbdev-export writes pyproject.toml again, as it was

update: $(INSTALLED)  ## Bring edits of the modules of scalai_nb/ back into their notebooks
	@$(BIN)/python -c "from scalai_nb.jupyter.docstrings import undo; undo('scalai_nb')"
	@$(BIN)/nbdev-update
	@$(BIN)/nbdev-clean && $(BIN)/nbdev-export
	@touch $(INSTALLED)

format: $(INSTALLED)  ## Check that notebooks, kernels and tests are as ruff formats them
	@$(BIN)/ruff format --check --quiet
	@$(BIN)/ruff format --check --quiet $(KERNELS)

outputs: $(INSTALLED)  ## Run the notebooks and keep what they show; a test compares it
	@$(BIN)/python tests/outputs.py --processes $(PROCESSES) $(NOTEBOOK)
	@$(BIN)/nbdev-clean

docs: $(INSTALLED)  ## Render README, lessons, reference and figures as a site with search into site/
	@$(BIN)/python docs/build.py

pictures: $(INSTALLED)  ## Make the pictures of the documents from a real run (two minutes, needs Chromium)
	@$(BIN)/python docs/pictures.py

style: $(INSTALLED)  ## Measure how the code reads: lines, patches, examples, outputs, types
	@$(BIN)/python tests/style.py

bench: $(INSTALLED)  ## Measure the hot path and a run against their peers, side by side (about ten minutes)
	@$(BIN)/scalai bench hotpath
	@$(BIN)/scalai bench pipeline

lock:  ## Resolve the lock files anew; what still fits keeps its version
	@command -v uv >/dev/null || { echo "lock: needs uv; see https://docs.astral.sh/uv" >&2; exit 1; }
	$(COMPILE) $(LEAN) --output-file environments/lock.txt
	@cp environments/lock.txt environments/cluster.txt && cp environments/lock.txt environments/gpu.txt
	$(COMPILE) $(LEAN) --extra kubernetes --output-file environments/cluster.txt
	$(COMPILE) --extra gpu --output-file environments/gpu.txt

test-services:  ## Install what some tests need besides: Chromium, a C++ compiler, PostgreSQL, MariaDB, TensorFlow, DVC, an MLflow server
	@environments/services

clean:  ## Remove caches and build outputs; data (.scalai) and environments (.venv) stay
	@rm -rf build dist site *.egg-info .pytest_cache .ruff_cache .hypothesis
	@find nbs scalai_nb tests dashboards -depth \( -name __pycache__ -o -name .ipynb_checkpoints \) -exec rm -rf {} +

$(INSTALLED): environments/lock.txt environments/install pyproject.toml
	@PYTHON="$(PYTHON)" environments/install "$(VENV)"
