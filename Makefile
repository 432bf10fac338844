# What people type. `make help` lists it.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
AUDIT = $(BIN)/uvx pip-audit --progress-spinner off
# One thread for each test worker: two workers with two threads each only fight.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: help setup demo test nightly lint format serve bench guard mini types docs constraints audit clean

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

setup: $(STAMP)  ## a virtual environment with everything, from the constraints file

$(STAMP): pyproject.toml constraints.txt clients/python/pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt \
		-e '.[dev]' -e 'clients/python[batch]'
	touch $@

demo: setup  ## build a memory from bundled images, score others, write heat maps; offline
	$(BIN)/mrad demo --out demo-output

test: setup  ## the whole suite, in under 10 minutes on 2 cores
	$(PYTEST) -n 2 -m "not nightly"

nightly: setup  ## what takes longer: 200 kills, 100,000 mutated images, the images' install steps, Ray Serve, the lowest versions
	$(PYTEST) -m nightly

lint: setup  ## ruff, mypy (strict on mrad), import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup  ## ruff's fixes and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

serve: setup  ## the server on the demo's memory: http://127.0.0.1:8000
	test -f demo-output/bank/bank.json || $(BIN)/mrad demo --out demo-output
	$(BIN)/mrad serve --bank demo-output/bank --no-auth

bench: setup  ## every table of benchmarks/results
	$(BIN)/python -m benchmarks

guard: setup  ## ratios of the last bench against the committed ones; never seconds
	$(BIN)/python -m benchmarks.guard

mini: setup  ## train the shipped small CLIP anew (74 minutes on 2 cores with AMX, about 80 with AVX-512, an estimated 2 hours with AVX2)
	OMP_WAIT_POLICY=passive $(BIN)/python -m pretraining --out runs/mini

types: setup  ## the TypeScript client's types, from the server's OpenAPI description
	cd clients/typescript && npm ci --ignore-scripts --no-audit --no-fund --prefer-offline --silent
	$(BIN)/python -c "import json, sys; from mrad_service.app import create_app; \
		from mrad_service.settings import Settings; \
		json.dump(create_app(Settings(bank='none', auth='off')).openapi(), sys.stdout)" \
		> clients/typescript/node_modules/openapi.json
	cd clients/typescript && node types.mjs node_modules/openapi.json src/schemas.ts

docs: setup  ## the documentation, strictly
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[docs]'
	$(BIN)/mkdocs build --strict

constraints:  ## resolve constraints.txt anew, without URLs
	uv pip compile pyproject.toml clients/python/pyproject.toml --all-extras --no-header \
		--no-emit-index-url --no-emit-package mrad-client --no-annotate --python-version 3.11 --universal -q -o constraints.txt

# An index without vulnerability data finds nothing against anything: first it is asked about a release
# that is known to be faulty.
audit: setup  ## known vulnerabilities in what is installed; "Error 3" where the index has no such data
	@echo pillow==9.0.0 > $(VENV)/faulty.txt
	@$(AUDIT) --requirement $(VENV)/faulty.txt --no-deps --disable-pip --format json 2>/dev/null \
		| grep -q '"fix_versions"' || { echo "NOT AUDITED: the package index that is reached from here" \
		"has no data on vulnerabilities (it knows nothing against pillow 9.0.0)" >&2; exit 3; }
	$(AUDIT) --skip-editable --path $$($(BIN)/python -c 'import sysconfig as s; print(s.get_path("purelib"))')

clean:  ## caches and outputs, not the environment
	rm -rf demo-output site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
