# Everything that a newcomer types. A fresh machine needs Python >= 3.10 and make, nothing else.

PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed
# PyTorch's index of builds for CPUs (pytorch.org names it): make run TORCH_INDEX=URL. On Linux pip's choice are CUDA builds.
TORCH_INDEX ?=
SCRIPTS = $(wildcard launch/*.sh slurm/*.sh slurm/*.sbatch benchmarks/*.sh) .ci/run

.DEFAULT_GOAL := help
.PHONY: help run test kernels check docs

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-7s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(INSTALLED) ## set up, train FedMef on the bundled digits on 2 ranks, show the table and the plots
	$(VENV)/bin/python -m fedmef_dist.cluster.torchrun --standalone --nproc-per-node 2 -m fedmef_dist run configs/quickstart.yaml --run-dir runs/quickstart
	$(VENV)/bin/fedmef-dist compare runs/quickstart

test: $(INSTALLED) ## set up and run the whole test suite
	$(VENV)/bin/python -m pytest --numprocesses 2 --dist loadfile

kernels: $(INSTALLED) ## set up with Triton, run the GPU's kernels in its interpreter and compile them for a Hopper GPU
	$(VENV)/bin/python -c 'import triton' 2>/dev/null || $(VENV)/bin/python -m pip install --disable-pip-version-check triton==3.6.0
	$(VENV)/bin/python -m pytest tests/layers/kernels/test_gpu.py tests/test_launches.py

check: $(INSTALLED) ## set up, check style, formatting, types and shell scripts
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	@if command -v shellcheck >/dev/null; then shellcheck -x $(SCRIPTS); else echo "shellcheck is not installed: shell scripts not checked"; fi

docs: $(INSTALLED) ## set up, build the documentation as a site in site/; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --quiet --site-dir site

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	@test -z "$(TORCH_INDEX)" || \
		$(VENV)/bin/python -m pip install -c constraints.txt --index-url "$(TORCH_INDEX)" torch torchvision
	$(VENV)/bin/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev,mpich]'
	@touch $@
