# Everything a new machine needs beside these targets is Python 3.11 or newer and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
export TOKENIZERS_PARALLELISM := false

.PHONY: help venv demo feedback gpu test test-versions test-newest test-slow zoo lint format docs docs-check docs-site wheel clean

help:
	@echo "make demo        from raw text to a model that does as it is asked, on this CPU, and the page of it (minutes)"
	@echo "make feedback    after make demo: judge 40 pairs in a browser, and see the model change (minutes)"
	@echo "make test        run the tests"
	@echo "make test-versions  run its core with the oldest and the newest versions that are allowed"
	@echo "make test-newest run all of it with the newest ones, on the newest Python here; once a week"
	@echo "make gpu         measure on this machine's GPU, in parts of at most ten minutes, and print the tables"
	@echo "make zoo         run the recipes on tiny models of every family of transformers (an hour of CPU), and write docs/models.md"
	@echo "make lint        ruff and pyright"
	@echo "make docs        write the generated option reference, the file tree and the list of translations"
	@echo "make docs-check  check that these and the links and commands of the docs are up to date"
	@echo "make docs-site   build the docs as a site into site/, to read and search without a network"
	@echo "make venv        only make the virtual environment, in $(VENV)"

venv: $(VENV)/.complete

# torch goes first: with it in place no other package asks for another build of it.
$(VENV)/.complete: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "hfstack needs Python 3.11 or newer; $(PYTHON) is older: make venv PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: venv
	PATH="$(CURDIR)/$(BIN):$$PATH" bash recipes/full_story.sh runs/story

feedback: venv
	@test -f runs/story/sft/run.json || { echo "there is no model to judge yet: make demo"; exit 1; }
	PATH="$(CURDIR)/$(BIN):$$PATH" ROUNDS="$${ROUNDS:-1}" OPEN_PAGE=true bash recipes/feedback_rounds.sh runs/story runs/story_feedback

gpu: venv
	$(BIN)/python benchmarks/gpu.py

# one thread for each of the two: more would only wait for each other on two cores
test: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not slow and not gpu and not zoo' -n 2 --dist loadfile

test-versions:
	PYTHON=$(PYTHON) .ci/test_versions

test-newest:
	PYTHON=$(PYTHON) .ci/test_versions --whole newest

test-slow: venv
	$(BIN)/python -m pytest -m slow

# Results that are in runs/zoo.jsonl already are kept: delete it to begin again.
zoo: venv
	mkdir -p runs
	for kind in causal encoder encoder-decoder; do \
	  HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m tests.zoo.matrix runs/zoo.jsonl --kind $$kind || exit 1; \
	done
	$(BIN)/python -m tests.zoo.matrix runs/zoo.jsonl --table docs/models.md

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: venv
	$(BIN)/python -m hfstack.cli.reference
	$(BIN)/python benchmarks/result_file.py

docs-check: venv
	$(BIN)/python -m hfstack.cli.reference --check
	$(BIN)/python benchmarks/result_file.py --check
	$(BIN)/python -m pytest tests/test_docs.py

docs-site: venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo "open site/index.html in a browser"

wheel: venv
	$(BIN)/python -m build --wheel
	$(BIN)/python .ci/describe_wheel "$$(ls -t dist/*.whl | head -1)"

clean:
	rm -rf $(VENV) dist build site .pytest_cache .ruff_cache
