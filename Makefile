PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test test-slow cluster-test slurm-test lint chaos clean

# One stamp for everything that is installed: touched last, so that a broken install is tried again.
.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing into .venv: about 4 minutes and 7 GB, most of it PyTorch."
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	touch $@

install: .venv/.installed

# The question of the paper on data that ships with scikit-learn: about 6 minutes on 2 cores.
demo: install
	$(BIN)/vitc-sweep run search_spaces/lr_wd.yaml

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# What starts a Ray cluster does so alone, because beside other tests its time limits are not safe on two cores.
# For the slowest: make test PYTEST_ADDOPTS=--durations=20
test: install lint
	$(BIN)/python -m pytest -m "not ray and not slow" --numprocesses 2 --dist worksteal
	$(BIN)/python -m pytest -m "ray and not slow"

# Whole runs that are killed, stopped, searched and continued: about 10 minutes on 2 cores.
test-slow: install
	$(BIN)/python -m pytest -m slow

# The commands of cluster/README.md on machines that are made here, of namespaces: about 15 minutes on 2 cores.
# Needs Linux and root; elsewhere it says so and ends well. Three machines: make cluster-test MACHINES=3
cluster-test: install
	$(BIN)/python -m tests.cluster --machines $(or $(MACHINES),2)

# The job for Slurm on such machines, with programs in the place of Slurm's: about 6 minutes on 2 cores.
slurm-test: install
	$(BIN)/python -m tests.cluster --slurm

# Faults by the hundred, simulated and real: about 40 minutes on 2 cores. Its short form is among the tests.
chaos: install
	$(BIN)/python -m tests.chaos

clean:
	rm -rf .venv build *.egg-info .mypy_cache .pytest_cache .ruff_cache
