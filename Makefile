# Everything is installed into .venv, and nowhere else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
AT_ONCE ?= -n 2 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help demo test test-minio counts soak check format bench bench-buffer bench-stream bench-offload
.PHONY: bench-peers bench-scale clean

help: ## show this list
	@echo "make demo [KEEP=1]   every mode on this machine, verified; KEEP=1 stays up"
	@echo "make test [ARGS=..]  all tests, on real processes and a real S3 server (SeaweedFS)"
	@echo "make test-minio      the tests of the store, on a real MinIO (needs Go)"
	@echo "make counts          calls and system calls of each role beside their baselines, which"
	@echo "                     make test compares; ARGS=--update writes them anew"
	@echo "make soak            faults of every kind for MINUTES=2, drawn from SEED=; every byte"
	@echo "                     compared; ARGS= goes to scripts/soak.py"
	@echo "make check           ruff (lint and format) and mypy --strict"
	@echo "make format          let ruff put the sources in order"
	@echo "make bench           throughput, CPU and memory of every mode; also bench-buffer,"
	@echo "                     bench-stream, bench-offload; ARGS= goes to scripts/bench.py"
	@echo "make bench-peers     mode stream beside other relays, which it gets into a cache folder"
	@echo "make bench-scale     many streams, connectors and requests, and long lines; ARGS= goes to"
	@echo "                     scripts/bench_scale.py (--only PART, --quick)"
	@echo "make clean           remove .venv, caches and what was built"
	@echo "AT_ONCE=             one test after the other, for a debugger; make test runs two files at once"
	@echo "PYTHON=python3.12    makes .venv with another Python (3.11 or later)"

demo: $(VENV)/.demo
	$(BIN)/tunnelsync demo $(if $(filter-out 0,$(KEEP)),--keep)

test: $(VENV)/.test
	$(BIN)/python -m pytest $(AT_ONCE) $(ARGS)

test-minio: $(VENV)/.test
	@minio="$$(sh scripts/build-minio.sh)" && \
	  PATH="$$(dirname "$$minio"):$$PATH" TUNNELSYNC_STORE_TESTS=minio \
	  $(BIN)/python -m pytest $(AT_ONCE) -m store $(ARGS)

counts: $(VENV)/.test
	$(BIN)/python tests/counting.py $(ARGS)

soak: $(VENV)/.test
	$(BIN)/python scripts/soak.py $(if $(MINUTES),--minutes $(MINUTES)) \
	  $(if $(SEED),--seed $(SEED)) $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(VENV)/.demo
	$(BIN)/python scripts/bench.py $(ARGS)

bench-buffer bench-stream bench-offload: bench-%: $(VENV)/.demo
	$(BIN)/python scripts/bench.py --mode $* $(ARGS)

bench-peers: $(VENV)/.bench
	$(BIN)/python scripts/bench_peers.py --install $(ARGS)

bench-scale: $(VENV)/.demo
	$(BIN)/python scripts/bench_scale.py $(ARGS)

clean:
	rm -rf $(VENV) build dist src/*.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests scripts -type d -name __pycache__ -prune -exec rm -rf {} +

# A stamp for each set of extras, made again when the dependencies change. The source is
# installed editable, so an edit needs no new installation.
$(VENV)/.demo $(VENV)/.test $(VENV)/.dev $(VENV)/.bench: $(VENV)/.%: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $(PYTHON) is missing or older than 3.11; try: make PYTHON=python3.12 ..." >&2; \
	  exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "error: $(PYTHON) cannot make environments (no venv or ensurepip);" \
	       "on Debian or Ubuntu: apt install python3-venv" >&2; \
	  exit 1; }
	$(PYTHON) -m venv $(VENV)
