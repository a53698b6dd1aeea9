# Two commands do all the set-up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PEERS ?= .peers
DERMAUDIT_DATA ?= $(wildcard ../shared)
PARALLEL ?= -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
export DERMAUDIT_DATA

.PHONY: install demo test test-fast lint docs coverage results reference bench bench-sae bench-peers clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

demo: install
	$(BIN)/dermaudit demo --force

test: install lint
	$(BIN)/python -m pytest $(PARALLEL)

# Without the tests that take long or need a browser: for use while you work.
test-fast: install
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow and not browser"

# Branch coverage of everything, with a lower limit for the core.
coverage: install
	$(BIN)/python -m pytest $(PARALLEL) --cov --cov-report=
	$(BIN)/coverage report --sort=cover --skip-covered
	$(BIN)/coverage report --include='sae/*,concepts/*,dermaudit/run/*,dermaudit/stats/*' --fail-under=90 | tail -1

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python docs/scripts/architecture.py --check
	$(BIN)/python docs/scripts/results.py --check
	$(BIN)/pyright

# Runs both audits and the benchmarks of suppression (an hour), and writes every page with figures.
results: install
	$(BIN)/python -m pip install --quiet --editable ".[trunk]"
	$(BIN)/python docs/scripts/results.py

# The head, the recipes, the concept latents and the dictionaries that the bundled models ship. Needs $DERMAUDIT_DATA.
ARTIFACTS := ruler dark_corner gel_bubble hair ink gel_border patch
reference: install
	for seed in 2000 3000; do \
	  $(BIN)/dermaudit demo --run runs/calibration-$$seed --seed $$seed --seeds 0 || exit 1; \
	done
	$(BIN)/python docs/scripts/calibrate_names.py runs/calibration-2000 runs/calibration-3000
	$(BIN)/dermaudit demo
	$(BIN)/dermaudit data convert $(DERMAUDIT_DATA)/dermoscopy --out data/dermoscopy --force
	$(BIN)/dermaudit audit data/dermoscopy --model dermoscopy-small --run runs/dermoscopy
	for run in runs/demo runs/dermoscopy; do \
	  for concept in $(ARTIFACTS); do $(BIN)/dermaudit concepts teach $$concept --run $$run || exit 1; done; \
	  $(BIN)/dermaudit recipe make --run $$run --keep-going && \
	  rm -rf $$run-dictionary && cp -r $$run $$run-dictionary && \
	  $(BIN)/dermaudit fit --consensus --halves pooled --no-metrics --force --run $$run-dictionary && \
	  $(BIN)/dermaudit annotate --run $$run-dictionary && $(BIN)/dermaudit name --run $$run-dictionary && \
	  $(BIN)/python docs/scripts/reference.py $$run $$run-dictionary || exit 1; \
	done

# The documentation as a site, in the folder site.
docs: install
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: install
	$(BIN)/python tests/benchmarks/bench_phantom.py
	$(BIN)/python tests/benchmarks/bench_cli.py
	$(BIN)/python tests/benchmarks/bench_demo.py
	$(BIN)/python tests/benchmarks/bench_trap.py
	$(BIN)/python tests/benchmarks/bench_pretrain.py
	$(BIN)/python tests/benchmarks/bench_make.py

bench-sae: install
	$(BIN)/python tests/benchmarks/bench_sae_step.py
	test -d runs/demo || $(BIN)/dermaudit demo
	$(BIN)/python tests/benchmarks/bench_sae_quality.py runs/demo
	$(BIN)/python tests/benchmarks/bench_monosemanticity.py
	$(BIN)/python tests/benchmarks/bench_embed.py
	$(BIN)/python tests/benchmarks/bench_sae_memory.py

# The step beside every peer. They come without what they require, whose pins would change ours.
bench-peers: install
	$(BIN)/python -m pip install --quiet --no-deps --target $(PEERS) --upgrade \
		overcomplete dictionary-learning eai-sparsify natsort schedulefree
	$(BIN)/python tests/benchmarks/bench_sae_step.py --peers $(PEERS)

clean:
	rm -rf $(VENV) $(PEERS) build dist *.egg-info
