# Two commands for a newcomer: `make demo` and `make test`. Both set everything up by themselves.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

TOOLS := .tools
VENV := .venv
PYTHON := $(VENV)/bin/python
SOURCES := services tenants notifications tests manage.py
# The tools that read the settings without serving anything need some values.
CHECKING := SECRET_KEY=checking FIELD_ENCRYPTION_KEYS=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA= DATABASE_URL=postgresql://checking/checking REDIS_URL=redis://checking

.PHONY: help demo demo-shell demo-clean test check bench faults lock clean

help: ## What there is to run.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /|/' | column -t -s '|'

demo: $(VENV)/.ready ## Run the whole service, sending messages; ONCE=1 ends once they have arrived.
	@$(PYTHON) -m services.demo $(if $(ONCE),--once)

demo-shell: $(VENV)/.ready ## A Python shell on the running demo.
	@set -a; . .demo/environment; . .demo/running; set +a; $(PYTHON) manage.py shell

demo-clean: ## Remove the demo's data.
	@if [ -x $(PYTHON) ]; then $(PYTHON) -m services.demo --clean; else rm -rf .demo; fi

test: check ## Check everything and run every test.
	@$(PYTHON) -m pytest $(ARGS)

check: $(VENV)/.ready ## Format, lint, types, import contracts, migrations in step.
	@$(VENV)/bin/ruff format --check $(SOURCES)
	@$(VENV)/bin/ruff check $(SOURCES)
	@$(VENV)/bin/lint-imports
	@$(CHECKING) $(VENV)/bin/mypy
	@$(CHECKING) $(PYTHON) -W ignore::RuntimeWarning manage.py makemigrations --check --dry-run --skip-checks

bench: $(VENV)/.ready ## Measure beside what else a Django team would use; ONLY=delivery,accept, QUICK=1.
	@ONLY="$(ONLY)" QUICK="$(QUICK)" $(if $(PEERS),PEERS="$(PEERS)") $(PYTHON) -m tests.benchmarks

faults: $(VENV)/.ready ## Break things and count messages; ONLY=flushall,crash, QUICK=1, SEED=7, SOAK=minutes.
	@ONLY="$(ONLY)" QUICK="$(QUICK)" SEED="$(SEED)" SOAK="$(SOAK)" KEEP="$(KEEP)" $(PYTHON) -m tests.faults

lock: $(VENV)/.ready ## Pin the newest allowed versions of all dependencies, with hashes.
	@$(MAKE) -s uv
	@uv="$$(cat $(TOOLS)/uv.path)"; \
	compile=("$$uv" pip compile --quiet --universal --python-version 3.13 --generate-hashes --no-header --upgrade pyproject.toml); \
	"$${compile[@]}" -o requirements/base.txt; \
	"$${compile[@]}" --extra demo --extra dev -c requirements/base.txt -o requirements/dev.txt

clean: ## Remove what was built and installed here.
	@rm -rf $(VENV) $(TOOLS) build dist .mypy_cache .ruff_cache .pytest_cache

# The installed environment, made again when the lock changes.
$(VENV)/.ready: requirements/dev.txt
	@$(MAKE) -s uv
	@uv="$$(cat $(TOOLS)/uv.path)"; \
	[ -x $(PYTHON) ] || "$$uv" venv --quiet --clear --python "$$(./.bootstrap python)" $(VENV); \
	echo "Installing the locked dependencies …"; \
	"$$uv" pip sync --quiet --python $(PYTHON) --require-hashes requirements/dev.txt
	@touch $@

.PHONY: uv
uv:
	@mkdir -p $(TOOLS) && ./.bootstrap uv > $(TOOLS)/uv.path
