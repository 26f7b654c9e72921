# Everything a person runs. `make` alone lists it.

TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
EMBERLINE := $(TARGET_DIR)/debug/emberline
MODEL := smollm2-135m-instruct

.PHONY: help up bench status build function setup test clients lint fmt

help:
	@echo "make up        build everything, start it, print a curl line; Ctrl-C stops it"
	@echo "make test      formatting, lints, unit and end-to-end tests"
	@echo "make bench     measure the running stack, or one started for it"
	@echo "make status    show the workers of the running stack"
	@echo "make build     the native programs; make function: the WASM component"
	@echo "make fmt lint  format the code; look for mistakes"

# Not by way of the recipe's shell: Ctrl-C must reach this one process, which stops the rest in order.
up: build function
	@$(EMBERLINE) up

bench: build function
	@$(EMBERLINE) bench

status:
	@$(EMBERLINE) status

build: setup
	@cargo build --workspace

function: setup
	@deploy/setup.sh wasm

setup:
	@deploy/setup.sh rust vulkan

clients:
	@deploy/setup.sh clients

test: setup lint clients build function
	model=$$($(EMBERLINE) pull $(MODEL)) && nats=$$($(EMBERLINE) pull --nats-server) && \
	EMBERLINE_TEST_MODEL=$$model EMBERLINE_TEST_NATS=$$nats cargo test --workspace

lint: setup
	@deploy/setup.sh lint

fmt:
	cargo fmt --all
