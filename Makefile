# Everything a developer types. `make` alone lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

BIN := .venv/bin
# The environment is as good as the two files that describe it: another content is another stamp.
KEY := $(shell cat requirements/dev.lock pyproject.toml | cksum | tr -d ' \n')
STAMP := .venv/.ready-$(KEY)
# Where `make demo` puts its run; running it again goes on where it stopped, or shows the finished run.
DEMO_FOLDER ?= runs/thoughts-demo

.PHONY: help setup demo test chaos engines lint format docs bench lock clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*  ## ' Makefile | sed -E 's/^([a-z]+):.*  ## /\1\t/' | expand -t 10

setup: $(STAMP)  ## make .venv with the locked packages; does nothing when it is there

$(STAMP):
	@python=""; \
	for name in python3.11 python3.12 python3.13 python3 python; do \
	  if $$name -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then \
	    python=$$name; break; \
	  fi; \
	done; \
	if [ -z "$$python" ]; then echo "make setup: needs Python 3.11, 3.12 or 3.13 on the PATH" >&2; exit 1; fi; \
	if [ -e .venv ] && ! $(BIN)/python -c '' 2>/dev/null; then rm -rf .venv; fi; \
	if [ ! -e .venv ]; then $$python -m venv .venv; fi
	$(BIN)/python -m pip install --quiet -r requirements/dev.lock
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps -e .
	@rm -f .venv/.ready-*
	@touch $@

# Exit codes 0, 1 and 2 of a run are verdicts (go, no-go, inconclusive) and no failures; 3 and 4 are errors. A process
# that dies before it has begun may also leave with 1, so the report is asked for as well.
demo: setup  ## run the study `thoughts` at rung `demo`: minutes on two cores
	@code=0; $(BIN)/stepwell run thoughts --rung demo --out $(DEMO_FOLDER) || code=$$?; \
	case $$code in \
	  0) verdict=go;; \
	  1) verdict=no-go;; \
	  2) verdict=inconclusive;; \
	  *) exit $$code;; \
	esac; \
	test -s $(DEMO_FOLDER)/report.html || { echo "make demo: the run ended without a report" >&2; exit 4; }; \
	echo "verdict: $$verdict (exit code $$code of stepwell run)"; \
	echo "report: $(DEMO_FOLDER)/report.html"

test: lint  ## ruff, pyright and all tests that are not slow
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow"

chaos: setup  ## kills, full disks, clock jumps, lost connections, several devices: minutes on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup -m slow tests/chaos \
	  tests/studies/test_devices.py tests/studies/test_imprint_chunks.py tests/test_sharding.py --ignore tests/chaos/test_engines_equal.py

engines: setup  ## all studies on every engine, with equal records: minutes on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/chaos/test_engines_equal.py

lint: setup  ## ruff and pyright, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: setup  ## let ruff sort imports, repair what it can and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup  ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: setup  ## print the ratios of medians that the project promises
	@for file in benchmarks/bench_*.py; do echo "== $$file"; $(BIN)/python "$$file"; done

lock: setup  ## write requirements/dev.lock from what is installed in .venv
	$(BIN)/python requirements/lock.py > requirements/dev.lock.new
	mv requirements/dev.lock.new requirements/dev.lock

clean:  ## remove caches and builds; .venv and runs/ stay
	rm -rf build dist site .pytest_cache .ruff_cache .hypothesis
	find src tests benchmarks requirements -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
