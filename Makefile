# make train: from a bare checkout to a finished default run.  make test: to the green test suite.
# The environment has what the default run needs; what the tests need is added when they are run.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEV := $(VENV)/.dev
DATASET ?= digits
SEED ?= 0
COUNT ?= 100
SIGNAL ?= KILL
FILES ?= 0

.PHONY: train test lint clean reference docs features bench test-experiments test-kills test-slurm test-browser soak

train: $(READY)
	$(BIN)/python train.py

# Two processes of one thread each: threads that share two cores only wait for one another. The long
# files come first (tests/conftest.py). pyright runs beside them, and what it says comes last. Bytecode
# is written, also where the environment says not to: a hundred runs would each compile diffem.
test: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(BIN)/pyright > $(VENV)/pyright.log 2>&1 & types=$$!; \
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest \
		--numprocesses 2 --dist loadfile --no-loadscope-reorder; tests=$$?; \
	wait $$types; types=$$?; cat $(VENV)/pyright.log; exit $$((tests ? tests : types))

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

features: $(READY)  # the classifier of metric=classifier, for dataset=$(DATASET)
	$(BIN)/python -m diffem classify --dataset $(DATASET) --out features/$(DATASET).safetensors

reference: $(DEV)  # writes docs/reference.md, from the files of conf/ and the tables in the code
	$(BIN)/python tests/helpers/reference.py

docs: $(DEV)  # the documentation as a site, site/index.html; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(DEV)  # ratios against bench/baseline.json (docs/performance.md); BASELINE=1 writes it anew; 6 minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m bench $(if $(BASELINE),--baseline)

test-experiments: $(DEV)  # every experiment file at its own size, a comparison by the wheel; minutes
	$(BIN)/python -m pytest -m slow

test-kills: $(DEV)  # runs that are killed and resumed; minutes
	$(BIN)/python -m pytest -m kill

test-slurm: $(DEV)  # jobs of a SLURM of two nodes, as `tests/helpers/slurm.sh start` starts; minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slurm

test-browser: $(DEV)  # the pages in headless Chromium (Debian: apt-get install chromium); a minute
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,browser]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m browser

soak: $(DEV)  # COUNT kills at random moments in every stage, or stops with SIGNAL=TERM; half an hour
	$(BIN)/python tests/helpers/soak.py --seed $(SEED) --count $(COUNT) --signal $(SIGNAL) --files $(FILES)

# torch and torchvision first and pinned: a range could pull another build of several gigabytes.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch torchvision
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $(READY)

$(DEV): $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(DEV)

clean:  # removes what the targets made, except the runs
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
