# Everything a developer needs; each target sets up what it needs by itself.
VENV   := .venv
PYTHON := $(VENV)/bin/python
SECONDS ?= 60
# Tests at one time, which mostly wait; a file's stay together, in their order.
JOBS   ?= 2
# Not test_touches.py: it counts the accesses of the very instructions.
SANITIZED := tests/unit/test_mmio.py tests/unit/test_native_messages.py \
	tests/unit/test_register_program.py tests/unit/test_eventfd.py \
	tests/unit/test_direct_dma.py tests/unit/test_server_dma_view.py \
	tests/fault/test_exchange.py tests/fault/test_flow.py tests/fault/test_server_direct.py \
	tests/conformance
PYTEST := $(PYTHON) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder
TREE   := setup.py pyproject.toml pyvfio/native/build.py $(wildcard pyvfio/native/[!_]*.c)

.DEFAULT_GOAL := help
.PHONY: help demo demo-emulator test check lint sanitize bench bench-compare bench-docs fuzz soak
.PHONY: clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/run.stamp ## drive an emulated PCI device from another process, no hardware needed
	@$(PYTHON) -m pyvfio demo

demo-emulator: $(VENV)/run.stamp ## guest firmware in a small emulated PC drives the same device
	@echo "Installing Unicorn in $(VENV) ..."
	@$(PYTHON) -m pip install -q --disable-pip-version-check -e '.[unicorn]'
	@$(PYTHON) -m pyvfio demo --emulator

test: $(VENV)/dev.stamp lint ## lint, types and all tests, the guest with the real kernel included
	@sh tools/test-packages.sh
	$(PYTEST)
	@echo "The conformance suite again, without the ways through C:"
	PYVFIO_NATIVE_CHANNEL=0 PYVFIO_NATIVE_SERVER=0 $(PYTEST) tests/conformance

check: $(VENV)/dev.stamp lint ## lint, types, unit and conformance tests, a short fuzz: under 2 minutes
	$(PYTEST) tests/unit tests/conformance tests/fuzz

lint: $(VENV)/dev.stamp ## format, lint and types
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

sanitize: $(VENV)/dev.stamp ## tests of the C parts, built with AddressSanitizer and UBSan
	sh tools/sanitize.sh $(PYTHON) -n $(JOBS) --dist loadfile --timeout 600 $(SANITIZED)

soak: $(VENV)/dev.stamp ## traffic for SECONDS (60), 100 migrations, ends that die at 200 random moments
	PYVFIO_SOAK=$(SECONDS) $(PYTHON) -m pytest tests/soak

bench: $(VENV)/dev.stamp ## measure, each figure beside its baseline, in under 5 minutes
	$(PYTHON) -m bench

bench-compare: $(VENV)/bench.stamp ## measure this tree and BASE=COMMIT in turns
	$(PYTHON) -m bench.compare $(BASE)

bench-docs: $(VENV)/bench.stamp ## put the last run of bench into docs/performance.md
	$(PYTHON) -m bench.docs

fuzz: $(VENV)/dev.stamp ## random peers and inputs for SECONDS (60); what fails goes to fuzz-found/
	@$(PYTHON) -m pip install -q --disable-pip-version-check -e '.[fuzz]' \
		|| echo "No atheris for this Python: inputs of the codec come from seeds."
	$(PYTHON) -m tests.fuzz --seconds $(SECONDS)

clean: ## remove everything that was built or downloaded
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -rf bench/built bench/results
	rm -f pyvfio/native/_native.c pyvfio/native/*.so pyvfio/native/*.o
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@sh tools/make-venv.sh $(VENV)

$(VENV)/run.stamp: $(VENV)/bin/python $(TREE)
	@echo "Building pyvfio in $(VENV) (cffi, numpy and posix_ipc come from the package index) ..."
	@$(PYTHON) -m pip install -q --disable-pip-version-check -e .
	@touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp
	@echo "Installing pytest, hypothesis, ruff and mypy in $(VENV) ..."
	@$(PYTHON) -m pip install -q --disable-pip-version-check -e '.[dev]'
	@touch $@

$(VENV)/bench.stamp: $(VENV)/dev.stamp
	@echo "Installing matplotlib in $(VENV) ..."
	@$(PYTHON) -m pip install -q --disable-pip-version-check -e '.[bench]'
	@touch $@
