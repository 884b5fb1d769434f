# The two commands a newcomer needs: `make train` and `make test`. Both set everything up first.
PYTHON ?= python3.11
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
HF     := $(VENV)/.installed-hf
BENCH  := $(VENV)/.installed-bench
ARGS   ?=
JOBS   ?= 2

# A machine may have 3.11 only under another name.
ifeq ($(shell command -v $(PYTHON) 2>/dev/null),)
PYTHON := python3
endif

.PHONY: setup train test test-slow test-hf test-gpu bench bench-peers fields lint format typecheck clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info[:2] >= (3, 11) else "Pointsman needs Python 3.11 or newer; this is %s. Set PYTHON=/path/to/python3.11" % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch -c constraints.txt
	$(BIN)/python -m pip install --quiet -e '.[dev]' -c constraints.txt
	@touch $@

train: $(STAMP)
	$(BIN)/pointsman train $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest tests -m 'not slow and not gpu' -n $(JOBS) --dist worksteal $(ARGS)

test-slow: $(STAMP)
	$(BIN)/python -m pytest tests -m 'slow' -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

# Against freshly made models of transformers, which is installed for it (half a minute, 140 MB).
$(HF): $(STAMP)
	$(BIN)/python -m pip install --quiet -e '.[hf]' -c constraints.txt
	@touch $@

test-hf: $(HF)
	$(BIN)/python -m pytest tests/model/hf tests/measure/speed/peers -m 'slow' $(ARGS)

# What `pointsman bench` holds us against.
$(BENCH): $(STAMP)
	$(BIN)/python -m pip install --quiet -e '.[bench]' -c constraints.txt
	@touch $@

test-gpu: $(STAMP)
	$(BIN)/python -m pytest tests -m 'gpu' $(ARGS)

# The result pages of benchmarks/, on a quiet machine. ARGS: further settings of all of them, e.g. train.precision=bf16.
bench: $(STAMP)
	$(BIN)/pointsman bench layer router model.d_model=512 model.d_ff=2048 $(ARGS) --markdown benchmarks/layer.md
	$(BIN)/pointsman bench step subnormals $(ARGS) --markdown benchmarks/step.md
	$(BIN)/pointsman bench exchange model.d_model=512 $(ARGS) --markdown benchmarks/exchange.md

# Against Hugging Face's models: half an hour on two cores. ARGS=train.precision=fp32: half of that.
bench-peers: $(BENCH)
	$(BIN)/pointsman bench peers --threads 2 $(ARGS) --markdown benchmarks/peers.md
	$(BIN)/pointsman bench generation --threads 2 $(ARGS) --markdown benchmarks/generation.md

# The page of all settings, from the comments in conf/schema.py.
fields: $(STAMP)
	$(BIN)/python -m launch.cli config --fields --markdown docs/fields.md

lint: $(STAMP)
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

format: $(STAMP)
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

typecheck: $(STAMP)
	$(BIN)/pyright

clean:
	rm -rf $(VENV) *.egg-info .pytest_cache .ruff_cache .hypothesis
