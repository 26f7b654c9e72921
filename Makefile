# Everything a person runs. `make` alone lists it.

TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
EMBERLINE := $(TARGET_DIR)/debug/emberline
MODEL := smollm2-135m-instruct

.PHONY: help up bench status build function setup pip test clients lint fmt

help:
	@echo "make up        build everything, start it, print a curl line; Ctrl-C stops it"
	@echo "make test      formatting, lints, unit and end-to-end tests"
	@echo "make bench     measure the running stack, or one started for it"
	@echo "make status    show the workers of the running stack"
	@echo "make build     the native programs; make function: the WASM component"
	@echo "make fmt lint  format the code; look for mistakes"

# Not by way of the recipe's shell: Ctrl-C must reach this one process, which stops the rest in order.
up: build function pip
	@$(EMBERLINE) up

bench: build function pip
	@$(EMBERLINE) bench

status:
	@$(EMBERLINE) status

build: setup
	@cargo build --workspace

function: setup
	@deploy/setup.sh wasm

setup:
	@deploy/setup.sh rust vulkan

pip:
	@deploy/setup.sh pip

clients:
	@deploy/setup.sh clients

# The second run, if there is one, has Spin instead of the project's own host.
test: setup lint clients build function pip
	model=$$($(EMBERLINE) pull $(MODEL)) && nats=$$($(EMBERLINE) pull --nats-server) && \
	export EMBERLINE_TEST_MODEL=$$model EMBERLINE_TEST_NATS=$$nats && cargo test --workspace && \
	if deploy/setup.sh spin_works; then EMBERLINE_TEST_HOST=spin cargo test -p emberline-tests; fi

lint: setup
	@deploy/setup.sh lint

fmt:
	cargo fmt --all
