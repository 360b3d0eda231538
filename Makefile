# Everything below works on a fresh machine: the first command makes a virtual environment in .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: bench bench-all demo docs package tutorial test test-all lint clean

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,docs]'
	# Without their dependencies, which ask for another build of torch than the one that is there.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps torchvision timm
	touch $@

demo: .venv/ready
	$(BIN)/verifix demo

# docs/tutorial.md from beginning to end, with a scripted reviewer in Chromium.
tutorial: .venv/ready
	$(BIN)/python tools/tutorial.py

test: .venv/ready
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

test-all: .venv/ready
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --all-cases

# The site, in build/site. Every tutorial runs; TUTORIALS=15 runs the first and the fifth alone, TUTORIALS=none none.
docs: .venv/ready
	$(BIN)/python -m sphinx --builder html --fail-on-warning --keep-going --quiet docs build/site
	$(BIN)/python tools/links.py build/site

# The wheel and the sdist, in dist, and a demonstration in a clean environment that has nothing but the wheel and what
# it asks for.
package: .venv/ready
	rm -rf dist build/clean
	$(BIN)/python -m build --no-isolation
	$(PYTHON) -m venv build/clean
	build/clean/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt dist/*.whl
	build/clean/bin/verifix demo --out build/clean/pictures

# On a quiet machine with two cores: a subset in less than ten minutes, and every figure of docs/performance.md in about
# two hours. Both say beforehand how long they will take.
bench: .venv/ready
	$(BIN)/python -m benchmarks.speed --quick --rounds 2

bench-all: .venv/ready
	$(BIN)/python -m benchmarks.speed --rounds 3
	$(BIN)/python -m benchmarks.threads
	$(BIN)/python -m benchmarks.speed report

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv dist build .pytest_cache .ruff_cache .mypy_cache .hypothesis
