# make demo and make test are all a newcomer needs; both set everything up first (see scripts/setup).
PYTHON := .venv/bin/python
PACKAGES := $(wildcard vswitch controller vm demo tests bench)
C_SOURCES := $(shell find dataplane bench tests -name '*.[ch]' 2>/dev/null)
# How long `make fuzz` fuzzes each target.
SECONDS := 60

.DEFAULT_GOAL := help
.PHONY: help setup build check style test demo fuzz clean

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

setup: ## install what is missing (says what; asks on a terminal, not with YES=1) and build
	@scripts/setup

build: setup ## the same as setup: it builds what has changed

check: style ## style, types, and the fast tests that need no root
	HYPOTHESIS_PROFILE=fast $(PYTHON) -m pytest -q -n 3 --dist worksteal -m "not system" tests

style: setup ## style and types only
	$(PYTHON) -m ruff check $(PACKAGES)
	$(PYTHON) -m mypy $(PACKAGES)
	$(if $(C_SOURCES),.venv/bin/clang-format --dry-run -Werror $(C_SOURCES))

test: setup ## all tests, with namespaces and real guests
	$(PYTHON) -m pytest tests

demo: setup ## two guests on a switch: VLANs, ACLs, MAC guard, host port, drops
	$(PYTHON) -m demo

fuzz: setup ## fuzz what reads strangers' bytes, a minute each (SECONDS=N for another time)
	scripts/fuzz --seconds $(SECONDS)

clean: ## remove what was built (not .venv, not the guest image's cache)
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f .venv/vswitch-setup.stamp
	find $(PACKAGES) -name __pycache__ -type d -prune -exec rm -rf {} +
