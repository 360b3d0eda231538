# Everything below works on a fresh machine: the first command makes a virtual environment in .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: bench bench-all demo tutorial test test-all lint clean

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
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

# On a quiet machine; the first takes a few minutes.
bench: .venv/ready
	$(BIN)/python -m benchmarks.speed --rounds 2
	$(BIN)/python -m benchmarks.five_strengths --images 200

bench-all: .venv/ready
	$(BIN)/python -m benchmarks.speed --rounds 5
	$(BIN)/python -m benchmarks.five_strengths

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv dist build .pytest_cache .ruff_cache .mypy_cache .hypothesis
