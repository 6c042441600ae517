# Everything a newcomer types. `make demo` and `make test` do the whole set-up themselves; all
# they need is Python >= 3.11 and make.
#
#   make demo VENV=/tmp/venv PYTHON=python3.12      another place, another interpreter
#   make test PYTEST_ARGS="-k fid" WORKERS=1        some tests, one process

VENV ?= .venv
WORKERS ?= 2
PYTEST_ARGS ?=
DEMO_ARGS ?=
CHAOS_ARGS ?=
BIN := $(VENV)/bin
TRY := $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python3.14 python)
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
INSTALL := $(PIP) install --quiet --editable

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test chaos docs install install-dev install-docs lint typecheck pytest format clean

help: ## print this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) \
		| awk -F'|' '{ printf "%-20s %s\n", $$1, $$2 }'

demo: install ## train a digits teacher, distil it to one step, write runs/demo (minutes, CPU)
	$(BIN)/python -m dmd2_jax.commands.main demo $(DEMO_ARGS)

# The other checks take the moments in which pytest leaves a core idle; they speak when it has ended.
test: install-dev ## every check that CI runs
	@said=$$(mktemp); \
	$(MAKE) --no-print-directory lint typecheck docs >"$$said" 2>&1 & checks=$$!; \
	$(MAKE) --no-print-directory pytest; tests=$$?; \
	wait $$checks; checks=$$?; cat "$$said"; rm -f "$$said"; \
	exit $$((tests | checks))

chaos: install-dev ## hundreds of damages at random, in half an hour; CHAOS_ARGS="--seed=7 --share=0.1"
	JAX_PLATFORMS=cpu $(BIN)/python -m tests.chaos $(CHAOS_ARGS)

# Not --quiet: MkDocs 1.6 would count no warning then, and --strict would pass broken links.
docs: install-docs ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

install: $(VENV)/.installed ## create the environment and install the package

install-dev: $(VENV)/.installed-dev ## the same with the tools of development

install-docs: $(VENV)/.installed-docs ## the same with what builds the documentation

lint: install-dev ## ruff: rules and format; shellcheck
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/shellcheck launch/*.sh .ci/run
	$(BIN)/nbstripout --verify notebooks/*.ipynb

typecheck: install-dev ## mypy
	$(BIN)/mypy

pytest: install-dev ## the tests alone
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder \
		--durations=15 $(PYTEST_ARGS)

format: install-dev ## rewrite the files as ruff and nbstripout like them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/nbstripout notebooks/*.ipynb

clean: ## remove the environment and every cache; runs/ stays
	@if [ -f "$(VENV)/pyvenv.cfg" ]; then rm -rf "$(VENV)"; fi
	rm -rf build dist site *.egg-info .pytest_cache .ruff_cache .mypy_cache .cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

# The first candidate that runs and is new enough wins (a pyenv shim of a missing version does not
# run). The target is pip, the last file that venv writes: a half-made environment is made anew.
$(BIN)/pip:
	@for python in $(TRY); do \
		"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
		echo "creating $(VENV) with $$("$$python" --version)"; \
		if [ -f "$(VENV)/pyvenv.cfg" ]; then clear=--clear; else clear=; fi; \
		"$$python" -m venv $$clear "$(VENV)" && exit 0; \
		echo "error: '$$python -m venv $(VENV)' failed, see above;" \
			"on Debian and Ubuntu: apt-get install python3-venv" >&2; \
		exit 1; \
	done; \
	echo "error: got no Python >= 3.11 (tried: $(TRY));" \
		"install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python" >&2; \
	exit 1

$(VENV)/.installed: setup.py | $(BIN)/pip
	@echo "installing dmd2_jax into $(VENV) (a minute or two and 1 GB, once)"
	@$(INSTALL) .
	@touch $@

$(VENV)/.installed-dev: setup.py | $(BIN)/pip
	@echo "installing dmd2_jax[dev] into $(VENV) (a minute or two and 2 GB, once)"
	@$(INSTALL) ".[dev]"
	@touch $@ $(VENV)/.installed $(VENV)/.installed-docs

$(VENV)/.installed-docs: setup.py | $(BIN)/pip
	@echo "installing dmd2_jax[docs] into $(VENV) (a minute or two and 1 GB, once)"
	@$(INSTALL) ".[docs]"
	@touch $@ $(VENV)/.installed
