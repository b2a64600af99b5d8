# Two commands: `make demo` shows it, `make test` checks it. Both reuse what is there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS := 1
export OMP_WAIT_POLICY := passive

.PHONY: demo test test-all soak check docs clean

KERNELS := setup.py $(wildcard workflow/dynamics/lanes/*.h workflow/dynamics/lanes/*.cpp)

$(VENV)/.installed: pyproject.toml constraints.txt $(KERNELS)
	@echo "setting up $(VENV) from constraints.txt"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt pip setuptools
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[mpich]"
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	@echo "adding what the tests need"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[mpich,catalog,esm,browser,test]"
	touch $@

demo: $(VENV)/.installed
	@echo "running the quickstart experiment; the same command continues or reuses it"
	$(BIN)/gfdt run quickstart

check: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports --no-logo

test: check
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-all: check
	$(BIN)/python -m pytest -m "not soak"

soak: check
	$(BIN)/python -m pytest -m soak --timeout=3600

docs: $(VENV)/.installed-test
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[docs]"
	$(BIN)/python -m pytest --doctest-modules $$(grep -rl '>>> ' --include=*.py workflow hpc)
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs: docs/_build/html/index.html"

clean:
	rm -rf $(VENV) build docs/_build docs/_generated *.egg-info
