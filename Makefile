# `make serve` and `make test` need nothing but Python: each creates .venv and installs what it
# needs, once, and again when pyproject.toml or constraints.txt change.
#
#   make serve ARGS="--port 8001"       arguments for `bar serve`
#   make test  ARGS="-k engine -x"      arguments for pytest
#   make serve PYTHON=python3.12        another Python for a new .venv

PYTHON ?= python3
ARGS ?=

BIN := .venv/bin
SERVE := .venv/installed-serve
DEV := .venv/installed-dev
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: serve test test-redis lint format clean

serve: $(SERVE)
	$(BIN)/bar serve $(ARGS)

test: lint
	$(BIN)/pytest $(ARGS)

# The queue's tests with the oldest redis-py that is supported; `make test` has the newest.
test-redis: $(DEV)
	$(BIN)/python -m pip install --quiet --target .venv/oldest-redis --no-deps redis==5.2.0
	PYTHONPATH=.venv/oldest-redis $(BIN)/pytest tests/service/test_job_queue.py tests/service/test_redis_queue.py $(ARGS)

lint: $(DEV)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(DEV)
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

clean:
	rm -rf .venv build dist

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v >= (3, 11) or sys.exit( \
	  "bar-serve needs Python 3.11 or newer; $(PYTHON) is %d.%d. Try make PYTHON=python3.11" % v)'
	$(PYTHON) -m venv .venv

$(SERVE): pyproject.toml constraints.txt | $(BIN)/pip
	@echo "Installing bar-serve into .venv (a minute or two) ..."
	$(INSTALL) --editable .
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(BIN)/pip
	@echo "Installing bar-serve and its tools into .venv (a minute or two) ..."
	$(INSTALL) --editable '.[train,siglip2,dev]'
	@touch $(SERVE) $@
