# The few verbs of daily work. Everything else is plain pytest, ruff and mypy.
.PHONY: install test lint format ci

install:  ## the package, editable, with what the tests need, at the pinned versions
	pip install -c constraints.txt -e '.[test]'

test:
	pytest

lint:
	ruff check .
	ruff format --check .
	mypy

format:
	ruff format .
	ruff check --fix .

ci:  ## what a merge must pass, in a new virtual environment
	.ci/run
