# The whole developer interface. `make dev` once; then any of the others.

VENV := .venv
PYTHON := $(VENV)/bin/python

.PHONY: dev build test slow lint format types asan tsan long soak fuzz bench wheel clean

# An editable install with every tool; PYTHON3=python3.13 chooses another interpreter.
PYTHON3 ?= python3
dev:
	$(PYTHON3) -m venv $(VENV)
	$(PYTHON) -m pip install "setuptools>=84" "cython>=3.3.1,<3.4"
	$(PYTHON) -m pip install --no-build-isolation --config-settings editable_mode=compat -e ".[dev]"

# After an edit of a .pyx or .pxd.
build:
	$(PYTHON) setup.py build_ext --inplace

test: build
	$(PYTHON) -m pytest

# The tests that the default run leaves out.
slow: build
	$(PYTHON) -m pytest -m slow

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" cython-lint pyx

format:
	$(PYTHON) -m ruff format .

types:
	$(PYTHON) -m mypy --strict

# Memory errors and data races in rings and image engines, each with its own build. soak runs every test under AddressSanitizer.
asan:
	$(PYTHON) tests/race/run.py address tests/race tests/unit/test_ring.py tests/property/test_ring.py \
		tests/unit/test_vhdx_write.py tests/unit/test_vhdx_disk.py tests/unit/test_vhd_disk.py tests/property/test_hostile_images.py

tsan:
	$(PYTHON) tests/race/run.py thread

# The same for much longer: threads of host and guest as well, and every test, the slow ones too.
long:
	$(PYTHON) tests/race/run.py thread tests/process/test_api.py
	$(PYTHON) tests/race/run.py address
	$(PYTHON) -m pytest -m "slow or not slow"

# Mixed load on many VMs while workers, guests, VMs and hosts are killed; every sector is checked. SOAK_SECONDS=60 is shorter.
SOAK_SECONDS ?= 600
soak: build
	$(PYTHON) -m tests.soak.soak --seconds $(SOAK_SECONDS)

# Hostile images, field by field, guided by coverage; FUZZ_SECONDS=3600 goes on for an hour.
FUZZ_SECONDS ?= 600
fuzz: build
	$(PYTHON) -m pip install --quiet "atheris>=3"
	$(PYTHON) tests/fuzz/fuzz_images.py -max_total_time=$(FUZZ_SECONDS)

# Every figure of docs/performance.md beside its peers, and the benchmarks of parts.
bench:
	HVCORE_EXTRA=bench $(PYTHON) setup.py build_ext --inplace
	$(PYTHON) -m bench.run --json bench.json
	$(PYTHON) -m pytest --benchmark-only $(wildcard bench/bench_*.py)

wheel:
	$(PYTHON) -m build

# All that a build or a test run made; the environment stays.
clean:
	rm -rf build dist hvcore.egg-info .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name '*.so' -not -path './$(VENV)/*' -delete
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
