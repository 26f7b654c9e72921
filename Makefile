# Everything a person runs. `make` alone lists it.

TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
EMBERLINE := $(TARGET_DIR)/debug/emberline
MODEL := smollm2-135m-instruct

# How long each part of `make soak` runs, and workers are killed in `make chaos`.
SOAK_SECONDS := 600
CHAOS_SECONDS := 60
# How long `make fuzz` runs each target, and how many cases `make schemathesis` tries for each operation.
FUZZ_SECONDS := 60
CASES := 2000
# Which clients `make clients` runs: all, or names with commas.
CLIENTS := all
# SPIR-V instead of WGSL where the GPU is driven by Vulkan.
GPU_FEATURES := --features emberline-worker/$(if $(filter Darwin,$(shell uname -s)),gpu,vulkan)
# Tests are built for the GPU, too, which is a software adapter where there is none.
TEST_FEATURES := --features emberline-worker/gpu

.PHONY: help up bench bench-engine bench-gateway bench-gpu kernels-report soak chaos status build build-tests function setup pip test clients \
	client-packages lint lint-deploy fmt fuzz schemathesis manifests images dist test-dist wasi

help:
	@echo "make up        build everything, start it, print a curl line; Ctrl-C stops it"
	@echo "make test      formatting, lints, unit and end-to-end tests; faster with cargo-nextest"
	@echo "make bench     measure the running stack, or one started for it"
	@echo "make bench-gateway  measure everything but the model, and other gateways if they are there"
	@echo "make bench-engine  measure the engine alone, and llama.cpp if it is there; make bench-gpu: on a GPU"
	@echo "make kernels-report  what NVIDIA's compiler makes of the GPU kernels, and an estimate of a step's time; needs no GPU"
	@echo "make soak      $(SOAK_SECONDS) s of mixed random load on the engine, then on all of it: nothing leaks, every answer is right"
	@echo "make chaos     $(CHAOS_SECONDS) s of workers killed under load, and the other tests of what breaks"
	@echo "make clients   client packages, frameworks and test suites of others against it: a table of what works"
	@echo "make fuzz      each fuzz target for $(FUZZ_SECONDS) s"
	@echo "make schemathesis  $(CASES) generated requests for each operation of /openapi.json"
	@echo "make status    show the workers of the running stack"
	@echo "make build     the programs that run; make function: the WASM component"
	@echo "make fmt lint  format the code; look for mistakes"
	@echo "make images    container images, with buildah, podman or docker; docs/deploy says what for"
	@echo "make dist      what a release has, for this platform: archive, wheel, function; make test-dist installs the wheel"
	@echo "make manifests deploy/kubernetes from deploy/chart; make lint-deploy: look for mistakes in deploy/"

# Not by way of the recipe's shell: Ctrl-C must reach this one process, which stops the rest in order.
up: build function pip
	@$(EMBERLINE) up

bench: build function pip
	@$(EMBERLINE) bench

bench-engine: build pip
	@$(EMBERLINE) bench engine

bench-gateway: build function pip
	@$(EMBERLINE) bench gateway

# A GPU or nothing: what computes on the CPU is told so before and after half an hour of compiling.
bench-gpu: setup pip
	@deploy/setup.sh gpu
	@cargo build --workspace $(GPU_FEATURES)
	@$(EMBERLINE) bench engine --backend wgpu --require-gpu
	@$(EMBERLINE) bench engine --backend wgpu --require-gpu --random llama-1b

# Instructions, loads, registers and launches, and bounds of them.
kernels-report: setup
	@deploy/setup.sh kernels_report

soak: build-tests function pip
	model=$$($(EMBERLINE) pull $(MODEL)) && nats=$$($(EMBERLINE) pull --nats-server) && \
	export EMBERLINE_TEST_MODEL=$$model EMBERLINE_TEST_NATS=$$nats SOAK_SECONDS=$(SOAK_SECONDS) && \
	cargo test --workspace $(TEST_FEATURES) --test soak --test footprint -- --nocapture && \
	cargo test -p emberline-tests --test e2e faults::soak -- --nocapture

chaos: build function pip
	model=$$($(EMBERLINE) pull $(MODEL)) && nats=$$($(EMBERLINE) pull --nats-server) && \
	export EMBERLINE_TEST_MODEL=$$model EMBERLINE_TEST_NATS=$$nats CHAOS_SECONDS=$(CHAOS_SECONDS) && \
	ignored=$$(! deploy/setup.sh two_hosts || echo --include-ignored) && \
	cargo test -p emberline-tests --test e2e faults -- --nocapture --test-threads 1 --skip soak $$ignored

status:
	@$(EMBERLINE) status

build: setup
	@deploy/setup.sh programs

# Everything that tests start.
build-tests: setup
	@cargo build --workspace $(TEST_FEATURES)

function: setup
	@deploy/setup.sh wasm

# The function for hosts without Spin's variables.
wasi: setup
	@deploy/setup.sh wasi

setup:
	@deploy/setup.sh rust vulkan

pip:
	@deploy/setup.sh pip

# CLIENTS=aider,codex runs those alone.
clients: build function pip
	@deploy/setup.sh all_clients
	model=$$($(EMBERLINE) pull $(MODEL)) && nats=$$($(EMBERLINE) pull --nats-server) && \
	export EMBERLINE_TEST_MODEL=$$model EMBERLINE_TEST_NATS=$$nats EMBERLINE_TEST_CLIENTS=$(CLIENTS) && \
	cargo test -p emberline-tests --test e2e clients -- --nocapture

client-packages:
	@deploy/setup.sh clients

# The second run, if Spin is there, has it instead of the project's own host.
test: setup lint lint-deploy kernels-report client-packages build-tests function wasi pip
	model=$$($(EMBERLINE) pull $(MODEL)) && nats=$$($(EMBERLINE) pull --nats-server) && \
	export EMBERLINE_TEST_MODEL=$$model EMBERLINE_TEST_NATS=$$nats && deploy/setup.sh tests && \
	if deploy/setup.sh spin_works; then EMBERLINE_TEST_HOST=spin deploy/setup.sh e2e_tests; fi

schemathesis: setup client-packages build function pip
	nats=$$($(EMBERLINE) pull --nats-server) && export EMBERLINE_TEST_NATS=$$nats EMBERLINE_TEST_CASES=$(CASES) && \
	cargo test -p emberline-tests --test e2e schemathesis -- --nocapture

fuzz: setup
	@FUZZ_SECONDS=$(FUZZ_SECONDS) deploy/setup.sh fuzz

lint: setup
	@deploy/setup.sh lint

lint-deploy:
	@deploy/setup.sh lint_deploy

# After a change of deploy/chart.
manifests:
	@deploy/setup.sh manifests

# REGISTRY=registry.example.com/you goes before their names; IMAGES="host cli" builds those alone.
images:
	@REGISTRY=$(REGISTRY) IMAGES="$(IMAGES)" PROGRAMS=$(PROGRAMS) BASE=$(BASE) deploy/setup.sh images

# DIST_PROFILE=dev makes the packages of programs that are not optimised.
dist: setup pip
	@DIST_PROFILE=$(DIST_PROFILE) deploy/dist.sh

# The wheel of `make dist` where no compiler is on PATH: from pip to the first answer.
test-dist:
	@python3 deploy/checks/installation.py dist/emberline-*.whl

fmt:
	cargo fmt --all
