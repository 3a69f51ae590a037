# Everything is installed into this folder; nothing global is touched.
SHELL := /bin/sh
BIN := .venv/bin
export PYTHONDONTWRITEBYTECODE := 1
export RUFF_CACHE_DIR := .cache/ruff
export HYPOTHESIS_STORAGE_DIRECTORY := .cache/hypothesis
CODE := src agent/src tests agent/tests tools benchmarks

.PHONY: setup demo test check test-long bench clean

setup:
	@sh tools/bootstrap.sh

demo: setup
	@$(BIN)/deployx demo

check: setup
	@$(BIN)/ruff format --check $(CODE)
	@$(BIN)/ruff check $(CODE)
	@$(BIN)/mypy --cache-dir .cache/mypy -p deployx -p deployx_agent
	@$(BIN)/mypy --cache-dir .cache/mypy tests agent/tests benchmarks tools
	@$(BIN)/lint-imports --cache-dir .cache/import-linter

test: check
	@rm -f .coverage .coverage.*
	@$(BIN)/python -m pytest -n 2 --dist worksteal --cov --cov-report=term:skip-covered -m "not long"

test-long: setup
	@$(BIN)/python -m pytest -m long

bench: setup
	@for file in benchmarks/bench_*.py; do $(BIN)/python -m benchmarks.$$(basename $$file .py) || exit 1; done

clean:
	rm -rf .venv .tools .cache .coverage .coverage.*
