# Each target does its own set-up; all that is needed is this checkout, make, and on a bare Debian root.
.PHONY: demo test lint unit bench soak idle faults fuzz deb rpm clean

BIN = .venv/bin
JOBS ?= $(shell nproc)
FUZZ_MINUTES ?= 30

# A simulated node with eight GPUs, a private bus, a configuration applied. No GPU, no root needed.
demo:
	@packaging/prepare demo
	@$(BIN)/python -m migd.simulator.demo

# Everything: linters, types, import direction, all tests.
test: lint
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

lint:
	@packaging/prepare test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports --verbose >.venv/lint-imports.log || { cat .venv/lint-imports.log; false; }
	$(BIN)/mypy

# The pure core and the parsers, in seconds.
unit:
	@packaging/prepare test
	$(BIN)/python -m pytest -q tests/unit

# What it costs: a table, and bench.json. Beside nvidia-mig-parted with PEER=FILE, as root; see docs/benchmarks.md.
bench:
	@packaging/prepare test
	@$(BIN)/python -m tests.bench $(if $(PEER),--peer $(PEER)) $(BENCH)

# Random requests and faults on a booted host, for an hour or SOAK_MINUTES.
soak:
	@packaging/prepare test
	@$(BIN)/python -m tests.soak

# What it costs to do nothing, in ten minutes.
idle:
	@packaging/prepare test
	@$(BIN)/python -m tests.soak --idle

# Everything that can fail, at every place where it can: hours. FAULTS="--sample 1" for less.
faults:
	@packaging/prepare test
	@$(BIN)/python -m tests.faults --jobs $(JOBS) $(FAULTS)

# Inputs that nobody would write, FUZZ_MINUTES for each of the five fuzzers; TARGET=... for some targets.
fuzz:
	@packaging/prepare test
	@$(BIN)/python -m tests.fuzz $(TARGET) --minutes $(FUZZ_MINUTES) --jobs $(JOBS)

# The packages of the working tree, in dist/.
deb:
	@packaging/prepare deb
	@packaging/deb

rpm:
	@packaging/prepare rpm
	@packaging/rpm

clean:
	rm -rf dist .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
