# make quickstart   install what a run needs, train the example, end with a picture and a number
# make test         the test suite
# make matrix       every family with every pair of features and every spoilt config, of which the test suite has some
# make check        style, types, architecture, and the documentation as a site
# make bench        measure what a run, data and features cost, into docs/measured.md
# make claims       show at toy scale what features claim, into docs/claims (half an hour)
# make venv         the development environment alone
# make pretrain     make the quickstart's checkpoint again, from nothing (about an hour)
# make clean        remove the environment, the tools' caches and the quickstart's runs
#
# Extra options for pip go through, here to choose a CPU build of torch:
#   make quickstart PIP_OPTIONS="--extra-index-url URL"

PYTHON ?= python3
VENV ?= .venv
PIP_OPTIONS ?=
PYTEST_OPTIONS ?=
TEST_PROCESSES ?= 2
MATRIX ?= tests/matrix tests/faults tests/memory
RUN_OPTIONS ?= --resume never

BIN := $(VENV)/bin
PACKAGES := core $(sort $(patsubst %/pyproject.toml,%,$(wildcard models/*/pyproject.toml losses/*/pyproject.toml offload/*/pyproject.toml plugins/*/pyproject.toml)))
PROJECTS := $(PACKAGES:%=%/pyproject.toml)
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check $(PIP_OPTIONS)

.PHONY: quickstart test matrix check bench claims venv pretrain clean

quickstart: $(VENV)/.run
	$(BIN)/tune run examples/quickstart/config.toml $(RUN_OPTIONS)
	$(BIN)/python examples/quickstart/compare.py "$$(ls -dt runs/quickstart*/ | head -n 1)"

test: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist worksteal $(PYTEST_OPTIONS)

matrix: $(VENV)/.dev
	$(BIN)/python -m pytest -q -m matrix --numprocesses $(TEST_PROCESSES) --dist worksteal $(MATRIX)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/architecture
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(VENV)/.dev
	$(BIN)/python bench/overhead.py --write docs/measured.md
	$(BIN)/python bench/data.py --write docs/measured.md
	$(BIN)/python bench/tread.py --write docs/measured.md
	$(BIN)/python bench/scheduled_sampling.py --write docs/measured.md
	$(BIN)/python bench/memory.py --write docs/measured.md

claims: $(VENV)/.dev
	for claim in masked crepa tread scheduled_sampling; do $(BIN)/python bench/claims/$$claim.py || exit 1; done

venv: $(VENV)/.dev

pretrain: $(VENV)/.run
	PATH="$(abspath $(BIN)):$$PATH" examples/quickstart/pretrain/make.sh

clean:
	rm -rf $(VENV) runs/quickstart* .mypy_cache .pytest_cache .ruff_cache .hypothesis .site

# torch comes first and alone: its pin then decides which build the rest is resolved against.
$(VENV)/.run: requirements/run.txt $(PROJECTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, $(PYTHON) is " + sys.version.split()[0] + "; name one with: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) "$$(grep '^torch==' requirements/run.txt)"
	$(PIP_INSTALL) -r requirements/run.txt
	touch $@

$(VENV)/.dev: $(VENV)/.run requirements/dev.txt
	$(PIP_INSTALL) -r requirements/dev.txt
	touch $@
