# Every target sets up what it needs in .venv; only Python 3.10 to 3.13 and make have to be there.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow lint types bench clean

demo: .venv/demo
	$(BIN)/python examples/minigrid_demo.py

test: .venv/dev .venv-numpy2/dev
	$(BIN)/python -m pytest
	.venv-numpy2/bin/python -m pytest -q tests plr_client plr_server wrappers

test-slow: .venv/dev
	$(BIN)/python -m pytest -m slow

lint: .venv/dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: .venv/dev
	$(BIN)/mypy

bench: .venv/dev
	$(BIN)/python benchmarks/transport.py
	$(BIN)/python benchmarks/procgen_speed.py

.venv/demo: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[demo]'
	touch $@

.venv/dev: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,demo,procgen]'
	touch $@

# The same tests on the newest numpy; Procgen, which holds numpy below 2, is left out there.
.venv-numpy2/dev: pyproject.toml | .venv-numpy2/bin/python
	.venv-numpy2/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' 'numpy>=2'
	touch $@

.venv/bin/python .venv-numpy2/bin/python:
	$(PYTHON) -m venv $(@D:/bin=)

clean:
	rm -rf .venv .venv-numpy2 .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
