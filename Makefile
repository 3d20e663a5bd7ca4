# Everything below needs only make and Python 3.11 or newer with pip.

PYTHON ?= $(shell for python in python3.11 python3 python3.12 python3.13; do \
	$$python -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
PROTOS := $(wildcard protos/retrieval/v1/*.proto)
GENERATED := retrieval/v1
, := ,
# Each process computes with one thread: the processes already fill the cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadgroup

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast check bench protos serve constraints clean

help: ## list what can be made
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

setup: $(VENV)/.dev ## create .venv with everything that development needs

demo: $(VENV)/.demo ## run all steps on real images: train, calibrate, index, serve, audit
	$(BIN)/retrieval demo

serve: $(VENV)/.demo ## run the search server with the settings of the environment
	$(BIN)/retrieval serve

test: check ## run make check, then every test on all cores
	$(PYTEST)

test-fast: $(VENV)/.dev ## run only the quick tests, for the inner loop
	$(PYTEST) -m "not slow and not e2e"

check: $(VENV)/.dev ## check style, types, import rules, generated code and deployment files
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(call generate,$(VENV)/protos)
	diff -r -u -x __init__.py -x __pycache__ $(GENERATED) $(VENV)/protos/$(GENERATED) || \
		{ echo "$(GENERATED) does not match protos/: run 'make protos'" >&2; exit 1; }
	$(BIN)/hadolint deploy/Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec deploy/compose.yaml

bench: $(VENV)/.dev ## run every benchmark in tests/bench
	@for script in tests/bench/*.py; do echo "== $$script"; PYTHONPATH=. $(BIN)/python $$script || exit 1; done

protos: $(VENV)/.dev ## generate retrieval/v1 from protos/
	rm -f $(GENERATED)/*_pb2*.py $(GENERATED)/*_pb2*.pyi
	$(call generate,.)

constraints: ## write constraints.txt from what an unconstrained install picks today
	rm -rf $(VENV)/resolve && $(PYTHON) -m venv $(VENV)/resolve
	$(VENV)/resolve/bin/python -m pip install -e '.[cpu,train,embedded,demo,dev]'
	{ sed '/^[^#]/,$$d' constraints.txt; $(VENV)/resolve/bin/python -m pip freeze --exclude-editable | \
		grep -v -E '^(cuda|nvidia|triton)-?' | sed 's/+.*$$//'; } > $(VENV)/constraints.txt
	mv $(VENV)/constraints.txt constraints.txt && rm -rf $(VENV)/resolve

clean: ## remove everything that the targets made, including .venv
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# $(call generate,DIR): messages, services and their stubs from protos/ into DIR/retrieval/v1.
define generate
	@rm -rf $(VENV)/protos && mkdir -p $(1)
	PATH="$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -I protos --python_out=$(1) --grpc_python_out=$(1) \
		--mypy_out=$(1) --mypy_grpc_out=$(1) $(PROTOS)
endef

# $(call install,EXTRAS): the project with these extras. Prints pip's progress; pip's log is in .venv/pip.log.
define install
@{ $(PIP_INSTALL) -e '.[$(1)]' 2>&1; echo $$? > $(VENV)/pip.status; } | tee $(VENV)/pip.log | \
	awk -v terminal=$$(test -t 2 && echo 1 || echo 0) "$$PIP_PROGRESS"
@test "$$(cat $(VENV)/pip.status)" = 0 || { tail -n 20 $(VENV)/pip.log >&2; \
	echo "pip failed: its whole log is in $(VENV)/pip.log" >&2; exit 1; }
endef

# On a terminal: one line that is overwritten. Elsewhere: a line for every 25 packages.
export define PIP_PROGRESS
function show(text) { if (terminal) printf "\r\033[K  %s", text; else print "  " text; fflush() }
/^Collecting / { if (terminal || ++found % 25 == 0) { found += terminal; show("package " found ": " $$2) } }
/^ *Downloading .*[0-9] [MG]B/ { if (terminal) show("downloading " $$2 " " $$3 " " $$4) }
/^Installing collected packages/ { show("installing " gsub(/,/, "") + 1 " packages") }
END { if (terminal) print "" }
endef

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/pip
	@echo "Installing the CPU set into $(VENV). The first time takes a few minutes."
	$(call install,cpu$(,)train$(,)embedded$(,)demo)
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/pip
	@echo "Installing the CPU set and the developers' tools into $(VENV). The first time takes a few minutes."
	$(call install,cpu$(,)train$(,)embedded$(,)demo$(,)dev)
	@touch $@ $(VENV)/.demo

# Debian has ensurepip in a separate package; without it, the system's pip installs pip into the environment.
$(BIN)/pip:
	@$(or $(PYTHON),false) -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "Python 3.11 or newer with its module venv is needed, found: $(or $(PYTHON),none)." \
		"Install one, or name it: make PYTHON=/path/to/python ..." >&2; exit 1; }
	@echo "Creating $(VENV) with $$($(PYTHON) --version)"
	@if $(PYTHON) -c 'import ensurepip' 2>/dev/null; then $(PYTHON) -m venv $(VENV); \
		else $(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install pip; fi
