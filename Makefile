# `make demo` and `make test` work on a fresh clone; both make .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo serve test test-all lint gpu-check clean

$(STAMP): pyproject.toml scripts/install.sh
	PYTHON=$(PYTHON) bash scripts/install.sh $(VENV)
	touch $(STAMP)

demo: $(STAMP)  ## ingest the handbook, start the service, ask two questions, stop; MODEL=smollm2 for another model
	$(BIN)/python -m service.cli.demo $(if $(MODEL),--model $(MODEL))

serve: $(STAMP)  ## the same service, kept up
	$(BIN)/python -m service.cli.demo --serve $(if $(MODEL),--model $(MODEL))

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --num-workers 2
	$(BIN)/lint-imports

# Two processes of one thread each: a file's tests stay together.
test: lint  ## what CI runs; browser tests: .venv/bin/python -m pytest -m browser
	OMP_NUM_THREADS=1 $(BIN)/python -m slipcover --out coverage.txt -m pytest -n 2 --dist loadfile
	@echo "coverage of lines and branches, by file in coverage.txt: $$(awk 'END {print $$NF}' coverage.txt) %"

test-all: lint  ## slow tests too
	$(BIN)/python -m pytest -m "not gpu and not clients"

gpu-check:  ## correctness and times on a GPU, with nothing installed; on a CPU a rehearsal of the same
	$(or $(wildcard $(BIN)/python),$(PYTHON)) -m eval.bench.gpu_check --again

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
