# Every target works on a fresh checkout: the first that needs .venv makes it and installs.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
PARTIAL := $(VENV)/.partial
FITS := import ensurepip, sys, venv; sys.exit(not (3, 9) <= sys.version_info[:2] <= (3, 13))
WHICH := import sys; print(sys.base_prefix, *sys.version_info[:3])

.PHONY: help venv demo test slow lint format bench compat docs-check clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile
	echo "PYTHON=/path/to/python after 'make' builds .venv with that one (3.9 to 3.13)."

venv: $(STAMP)  ## create .venv and install slim_det in it, once

demo: $(STAMP)  ## train, prune and evaluate a small detector on drawn images
	@$(VENV)/bin/slim-det demo

test: lint  ## lint, then every test that is not slow
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(PY) -m pytest -m "not slow" -n 2 --dist loadfile

slow: $(STAMP)  ## run the slow tests: complete trainings, conversions
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-2} $(PY) -m pytest -m slow

lint: $(STAMP)  ## check style, types and spelling; changes nothing
	@failed=0
	$(PY) -m ruff check . || failed=1
	$(PY) -m ruff format --check . || failed=1
	$(PY) -m mypy || failed=1
	$(VENV)/bin/lint-imports --no-logo || failed=1
	{ git ls-files -z --cached --others --exclude-standard 2>/dev/null || printf '.\0'; } |
	    xargs -0 $(PY) -m codespell_lib || failed=1
	exit $$failed

format: $(STAMP)  ## rewrite the code in the project's style
	@$(PY) -m ruff check --fix-only .
	$(PY) -m ruff format .

bench: $(STAMP)  ## run every benchmarks/bm_*.py
	@for file in benchmarks/bm_*.py; do
	    if [[ -e "$$file" ]]; then
	        echo "== $$file"
	        $(PY) "$$file"
	    fi
	done

compat: $(STAMP)  ## try the detectors of PADDLEDETECTION=PATH, a checkout, with every command (hours)
	@$(PY) tools/compatibility "$${PADDLEDETECTION:?names a checkout of PaddleDetection}"

docs-check: demo  ## run README's commands and compare what they print with what it shows
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(PY) docs/check_docs.py README.md

clean:  ## remove caches and build files; keeps .venv, dataset/ and output/
	@rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis bbox.json
	find . \( -path ./.git -o -path ./$(VENV) -o -path ./dataset -o -path ./output \) -prune \
	    -o -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp holds the folder it was made in. It is written last, so an interrupted installation
# has none; it is out of date in a moved checkout, or when PYTHON names another interpreter.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
.PHONY: $(STAMP)
else ifneq ($(PYTHON),)
ifneq ($(shell $(PYTHON) -c '$(WHICH)' 2>/dev/null),$(shell $(PY) -c '$(WHICH)' 2>/dev/null))
.PHONY: $(STAMP)
endif
endif

$(STAMP): pyproject.toml setup.py
	@which() { "$$1" -c '$(WHICH)' 2>/dev/null </dev/null; }
	fits() { "$$1" -c '$(FITS)' >/dev/null 2>&1 </dev/null; }
	candidates() {
	    for minor in 3.10 3.9 3.11 3.12 3.13; do
	        ls -d "$${PYENV_ROOT:-$${HOME:-}/.pyenv}/versions/$$minor"*/bin/python 2>/dev/null |
	            sort -rV || true
	        type -aP "python$$minor" || true
	    done
	}
	usable() {
	    [[ ! -e $(PARTIAL) && "$$(cat $@ 2>/dev/null || echo "$(CURDIR)")" == "$(CURDIR)" ]] &&
	        fits $(PY) && $(PY) -m pip --version >/dev/null 2>&1 &&
	        [[ -z "$$python" || "$$(which "$$python")" == "$$(which $(PY))" ]]
	}
	python="$(PYTHON)"
	if [[ -n "$$python" ]] && ! fits "$$python"; then
	    echo "error: PYTHON=$$python does not run, is not 3.9 to 3.13, or lacks venv" >&2
	    exit 1
	fi
	if ! usable; then
	    while [[ -z "$$python" ]] && read -r path; do
	        if fits "$$path"; then python="$$path"; fi
	    done < <(candidates)
	    if [[ -z "$$python" ]]; then
	        echo "error: no Python 3.9 to 3.13 with venv found; name one: make PYTHON=/path" >&2
	        exit 1
	    fi
	    echo "$(VENV): made with $$python ($$("$$python" -V))"
	    "$$python" -m venv --clear $(VENV)
	else
	    echo "$(VENV): brought up to date ($$($(PY) -V))"
	fi
	rm -f $@
	touch $(PARTIAL)
	echo "$(VENV): installing, which takes some minutes the first time"
	export PIP_DISABLE_PIP_VERSION_CHECK=1
	$(PY) -m pip install -qq -e '.[cpu,dev,lite]'
	if $(PY) -c 'import sys; sys.exit(sys.version_info < (3, 12))'; then
	    $(PY) -m pip install -qq --no-deps paddledet==2.6.0
	fi
	rm $(PARTIAL)
	echo "$(CURDIR)" > $@
