# The commands that a person types. `make setup` is quick when nothing is to be done, so the others simply call it.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

BIN := .venv/bin
# Mounting with mount(2) and acting as a node plugin need root; everything else runs as whoever you are.
AS_ROOT := $(shell [ "$$(id -u)" = 0 ] || echo sudo -E)
PYTEST_ARGS ?=
# Most of a test is waiting for processes to start and end: three at a time fill two processors.
PYTEST_PROCESSES ?= 3

.PHONY: help setup demo test conformance faults image-test cluster-test selinux-test check manifests format bench clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install system packages (apt, where root or sudo is at hand) and the virtual environment in .venv
	@scripts/setup.sh

demo: setup ## Mount a real model from a small registry of its own, through the node plugin, and show how lazily it loads
	@$(AS_ROOT) $(BIN)/weightless demo

test: setup ## Run all tests; those that mount need root and are skipped without it
	@$(BIN)/pytest -n $(PYTEST_PROCESSES) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

conformance: setup ## Run csi-sanity, the real program, and show its report (and build/csi-sanity-*.xml, JUnit); needs root, and Go
	@$(AS_ROOT) env WEIGHTLESS_REPORTS=build $(BIN)/pytest -s tests/csi/test_sanity_program.py $(PYTEST_ARGS)

faults: setup ## Run the fault suite in full: half an hour of kills, upgrades and faults under readers; needs root
	@$(AS_ROOT) env WEIGHTLESS_FAULTS=full $(BIN)/pytest -o faulthandler_timeout=0 tests/faults $(PYTEST_ARGS)

image-test: ## Build the image with buildah, three times, and run it; PLATFORM=linux/arm64 emulates another processor; needs root
	@scripts/setup.sh $(if $(PLATFORM),emulation)
	@$(AS_ROOT) env WEIGHTLESS_IMAGE=full WEIGHTLESS_IMAGE_PLATFORM=$(PLATFORM) \
		$(BIN)/pytest -o faulthandler_timeout=0 tests/deploy/test_image.py $(PYTEST_ARGS)

cluster-test: ## See a real kubelet use the driver, in the cluster of KUBECONFIG or in one made here; that needs root, and Go
	@scripts/setup.sh cluster
	@$(if $(KUBECONFIG),,$(AS_ROOT)) $(BIN)/python -m tests.cluster $(PYTEST_ARGS)

selinux-test: ## Boot a machine that enforces SELinux, and let containers' domains read models there, ten minutes; needs root, QEMU, a Debian mirror
	@scripts/setup.sh selinux
	@$(AS_ROOT) $(BIN)/python -m tests.selinux $(PYTEST_ARGS)

check: setup ## Formatting, lint, types, import rules, generated code and manifests
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache
	@proto/check.sh
	@scripts/render-manifests.sh --check

manifests: ## Render deploy/kubernetes from the chart; builds helm where there is none
	@scripts/render-manifests.sh

format: setup ## Format the code and apply the safe fixes of the linter
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: ## Run all benchmarks, a quarter of an hour, and write docs/benchmarks.md; needs root, and nginx
	@scripts/setup.sh bench
	@$(AS_ROOT) $(BIN)/python -m bench --report docs

clean: ## Remove the virtual environment and what the tools have cached
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
