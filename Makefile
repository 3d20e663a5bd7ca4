# Everything below needs Python 3.11 or newer with pip, and make; nothing else.

PYTHON ?= $(shell for python in python3.11 python3 python3.12 python3.13; do \
	$$python -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
PROTOS := $(wildcard protos/retrieval/v1/*.proto)
GENERATED := retrieval/v1

.DEFAULT_GOAL := help
.PHONY: help setup demo test check bench protos serve constraints clean

help: ## what can be made
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

setup: $(VENV)/.dev ## .venv with everything that developing needs

demo: $(VENV)/.demo ## the whole line on real images: train, calibrate, index, serve, audit
	$(BIN)/retrieval demo

serve: $(VENV)/.demo ## the search server, with the settings of the environment
	$(BIN)/retrieval serve

test: check ## make check, then every test
	$(BIN)/python -m pytest

check: $(VENV)/.dev ## linters, types, import rules, generated code, deployment files
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(call generate,$(VENV)/protos)
	diff -r -u -x __init__.py -x __pycache__ $(GENERATED) $(VENV)/protos/$(GENERATED) || \
		{ echo "$(GENERATED) is not what protos/ says: run 'make protos'" >&2; exit 1; }
	$(BIN)/hadolint deploy/Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec deploy/compose.yaml

bench: $(VENV)/.dev ## every benchmark in tests/bench, one question each
	@for script in tests/bench/*.py; do echo "== $$script"; PYTHONPATH=. $(BIN)/python $$script || exit 1; done

protos: $(VENV)/.dev ## retrieval/v1 from protos/
	rm -f $(GENERATED)/*_pb2*.py $(GENERATED)/*_pb2*.pyi
	$(call generate,.)

constraints: ## constraints.txt anew, from what an unconstrained install picks today
	rm -rf $(VENV)/resolve && $(PYTHON) -m venv $(VENV)/resolve
	$(VENV)/resolve/bin/python -m pip install -e '.[cpu,train,embedded,demo,dev]'
	{ sed '/^[^#]/,$$d' constraints.txt; $(VENV)/resolve/bin/python -m pip freeze --exclude-editable | \
		grep -v -E '^(cuda|nvidia|triton)-?' | sed 's/+.*$$//'; } > $(VENV)/constraints.txt
	mv $(VENV)/constraints.txt constraints.txt && rm -rf $(VENV)/resolve

clean: ## remove what the targets made, .venv included
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# $(call generate,DIR): messages, services and their stubs from protos/ into DIR/retrieval/v1.
define generate
	@rm -rf $(VENV)/protos && mkdir -p $(1)
	PATH="$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -I protos --python_out=$(1) --grpc_python_out=$(1) \
		--mypy_out=$(1) --mypy_grpc_out=$(1) $(PROTOS)
endef

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/pip
	@echo "Installing the CPU set into $(VENV); the first time takes a few minutes."
	$(PIP_INSTALL) -e '.[cpu,train,embedded,demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/pip
	@echo "Installing the CPU set and the developers' tools into $(VENV); the first time takes a few minutes."
	$(PIP_INSTALL) -e '.[cpu,train,embedded,demo,dev]'
	@touch $@ $(VENV)/.demo

# Debian keeps ensurepip in a package of its own; without it the system's pip installs one into the environment.
$(BIN)/pip:
	@$(or $(PYTHON),false) -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "Python 3.11 or newer with its module venv is needed, found: $(or $(PYTHON),none)." \
		"Install one, or name it: make PYTHON=/path/to/python ..." >&2; exit 1; }
	@echo "Creating $(VENV) with $$($(PYTHON) --version)"
	@if $(PYTHON) -c 'import ensurepip' 2>/dev/null; then $(PYTHON) -m venv $(VENV); \
		else $(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install pip; fi
