# What people, hooks and CI say. Every target sets up what it needs; a second run reuses it.
SHELL := bash
.DELETE_ON_ERROR:
PY := .venv/bin/python
export PYTHONPATH := operator:.

.venv/ready: requirements/dev.txt ## virtual environment with pinned, hashed dependencies
	@command -v python3 >/dev/null || { echo "python3 (3.11 or later) is missing"; exit 1; }
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed, this is $$(python3 --version)"; exit 1; }
	@python3 -c 'import ensurepip' 2>/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && apt-get install -y -qq python3-venv; } \
	  || { echo "this python3 cannot make a virtual environment (no ensurepip). As root: apt-get install python3-venv"; exit 1; }
	@echo "setting up .venv from requirements/dev.txt (about a minute)"
	@python3 -m venv .venv
	@$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@touch $@

.PHONY: demo test unit fuzz check generate verify bench cluster cluster-down lock fmt programs wheels

demo: .venv/ready ## the main job on a real cluster, told as it goes (KEEP=1 leaves the cluster)
	@$(PY) -m e2e.demo

test: .venv/ready programs ## every test there is
	@$(PY) -m pytest -n 2 --maxschedchunk=1 e2e tests

unit: .venv/ready ## seconds
	@$(PY) -m pytest tests/unit -q

FUZZ_SECONDS ?= 60
fuzz: .venv/fuzz ## the TTL state's parser beside Go's decoder, and the grammar; FUZZ_SECONDS=60 each
	@for target in state grammar; do $(PY) -m tests.fuzz.$$target -max_total_time=$(FUZZ_SECONDS) -max_len=2048 -rss_limit_mb=2048 -artifact_prefix=build/fuzz-$$target- || exit 1; done

.venv/fuzz: requirements/fuzz.txt .venv/ready # atheris, which nothing else needs
	@mkdir -p build
	@$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/fuzz.txt
	@touch $@

programs: .venv/ready # Debian packages (if root) and programs the tests start; built once, kept outside the repository
	@$(PY) -m e2e.cluster.programs

check: .venv/ready ## format, lint, types, import contracts
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy
	@.venv/bin/mypy --explicit-package-bases e2e tests/images.py tests/scenario.py tests/builders.py tests/bench
	@.venv/bin/lint-imports

fmt: .venv/ready
	@.venv/bin/ruff format .
	@.venv/bin/ruff check --fix .

generate: .venv/ready ## CRD, the chart's copy of it, generated documents
	@$(PY) -m pullthrough crd --write
	@$(PY) -m pullthrough.gc.document > docs/gc.md
	@$(PY) -m tests.registry.leaks_document > docs/leaks.md

verify: generate ## generated files are up to date
	@changed=$$(git status --porcelain -- crds charts docs) && [ -z "$$changed" ] || { echo "$$changed"; git diff -- crds charts docs; echo "these differ from the last commit: commit what 'make generate' wrote"; exit 1; }

bench: .venv/ready programs ## figures, as ratios within one run
	@$(PY) -m tests.bench

cluster: .venv/ready ## a real cluster for tests; prints the kubeconfig's path
	@$(PY) -m e2e.cluster up

cluster-down: .venv/ready
	@$(PY) -m e2e.cluster down

lock: .venv/ready ## renew the pins
	@cd requirements && for set in runtime dev fuzz; do ../.venv/bin/pip-compile --quiet --generate-hashes --allow-unsafe --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --strip-extras --upgrade --output-file=$$set.txt $$set.in; done

wheels: .venv/ready ## what `docker build` needs: pinned wheels and our own, in build/wheels
	@rm -rf build/wheels && $(PY) -c 'from pathlib import Path; from e2e.cluster import images; images.wheels(Path("build/wheels"))'
