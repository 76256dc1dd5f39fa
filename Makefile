# lazaret: `make help` lists the targets.

PREFIX  ?= /usr/local
DESTDIR ?=
export CARGO_TERM_PROGRESS_WHEN ?= auto

bin     := target/x86_64-unknown-linux-gnu/release
guest   := target/guest
bindir  := $(DESTDIR)$(PREFIX)/bin
datadir := $(DESTDIR)$(PREFIX)/share/lazaret
programs := containerd-shim-lazaret-v2 lazaret lazaret-vmm
scripts  = $(shell git ls-files | xargs grep -lE '^\#!.*(ba|da)?sh$$' --)

.PHONY: all deps programs kernel rootfs install uninstall demo test unit check bench host help

all: programs kernel rootfs ## build the programs and the guest's kernel and root

deps: ## install the packages that are missing, saying which
	@integration/deps

programs: deps ## build the shim, the command, the VMM and the agent
	@cargo build --release --locked --workspace --bins

kernel: deps ## build the guest's kernel (cached)
	@kernel-config/build

rootfs: programs ## build the guest's root image and that of its Docker daemon (cached)
	@rootfs/build
	@rootfs/build docker

install: ## install what was built; PREFIX=/usr/local DESTDIR=
	install -d $(bindir) $(datadir)
	install -m 0755 $(addprefix $(bin)/,$(programs)) $(bindir)
	install -m 0644 $(guest)/vmlinux $(guest)/base.erofs $(guest)/docker.erofs $(datadir)

uninstall: ## remove what `make install` put there; refused while sandboxes run
	@if ls /run/lazaret/*/* >/dev/null 2>&1; then \
		echo "uninstall: sandboxes are running (lazaret ps); end them first" >&2; exit 1; fi
	rm -f $(addprefix $(bindir)/,$(programs))
	rm -rf $(datadir)

demo: all ## a container in a microVM of its own, start to end
	@integration/demo

unit: deps
	@cargo test --locked --workspace --exclude lazaret-integration

test: all unit ## run every test, the end-to-end ones against real containerd and KVM
	@integration/test

check: deps ## rustfmt, clippy and shellcheck, warnings denied
	@cargo fmt --all --check
	@cargo clippy --locked --workspace --all-targets -- -D warnings
	@shellcheck $(scripts)

bench: all ## instructions of a cold start; start times, memory and networks, as ratios within one run
	@integration/bench
	@integration/bench-network

host: all ## an interactive shell in the test host
	@integration/host/run

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile
