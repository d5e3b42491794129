# What people and CI type. The tools behind it are cargo and, for the real clients, pytest in a venv under target/.

BINARY := $(abspath $(or $(CARGO_TARGET_DIR),target))/debug/seeme-gateway
VENV   := target/venv

.DEFAULT_GOAL := help
.PHONY: help run test clients check lint kubernetes bench deps venv

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: deps ## a sample backend and the gateway in front of it, with a first key to try
	cargo run --release -- demo

test: deps venv ## every test: Rust, then the real Python clients against the built gateway
	cargo test
	@$(MAKE) --no-print-directory clients

clients: venv ## the tests of the Python clients alone; ARGS="-k openai" picks some
	cargo build
	PYTHONDONTWRITEBYTECODE=1 SEEME_GATEWAY_BIN=$(BINARY) $(VENV)/bin/pytest -c tests/clients/pytest.ini tests/clients $(ARGS)

check: deps ## compiles gateway.yaml and runs its tests
	cargo run --quiet -- check

lint: deps ## formatting and lints, warnings being errors
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings

kubernetes: venv ## checks the manifests of deploy/ against the Kubernetes schemas
	$(VENV)/bin/kubernetes-validate --strict deploy/kubernetes/*.yaml

bench: deps ## what a request costs, beside other proxies
	tests/bench/run

deps: ## installs with apt what this machine lacks; nothing when nothing is missing
	@.ci/dependencies

venv: $(VENV)/installed ## the Python clients, at the versions of tests/clients/requirements.txt

$(VENV)/installed: tests/clients/requirements.txt | deps
	python3 -m venv --clear $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@
