# Kuri is built with `make`, tried with `make quickstart` and tested with `make test`. `make help` lists the rest.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

PREFIX      ?= /usr/local
DESTDIR     ?=
SYSCONFDIR  ?= /etc
UNITDIR     ?= $(PREFIX)/lib/systemd/system

# A go that is new enough comes first in PATH, so that all recipes and their programs use the same one.
export PATH := $(or $(shell scripts/find-go),/usr/local/go/bin):$(PATH)

# The go command must not ask git for the version: git refuses trees of other owners, and an archive has no git.
export GOFLAGS := $(GOFLAGS) -buildvcs=false

VERSION     := $(shell scripts/version)
TAGS        := seccomp
BUILD       := go build -trimpath
LDFLAGS     := -s -w -X main.version=$(VERSION)
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2

# ARCH=arm64 builds for that architecture in bin-arm64, with the tools of scripts/cross. CROSS is their directory.
BIN         := bin
MUSL_GCC    := musl-gcc
STRIP       := strip
ifeq ($(ARCH),arm64)
BIN         := bin-arm64
MUSL_GCC    := $(CROSS)/bin/musl-gcc
STRIP       := $(CROSS)/bin/strip
export GOARCH := arm64
export CGO_ENABLED := 1
export CC   := $(CROSS)/bin/gcc
export PATH := $(CROSS)/exec:$(PATH)
export PKG_CONFIG_SYSROOT_DIR := $(CROSS)
export PKG_CONFIG_LIBDIR := $(CROSS)/usr/lib/aarch64-linux-gnu/pkgconfig
else ifneq ($(ARCH),)
$(error ARCH is arm64, or empty for this machine, not $(ARCH))
endif

# The packages with unit tests: all but those below test/, which need the programs and root.
UNIT         = $(shell go list -tags $(TAGS) ./... | grep -v '/kuri/test/')
PROGRAMS    := $(notdir $(wildcard cmd/*))
GO_PROGRAMS := $(filter-out kuri-holder,$(PROGRAMS))

.PHONY: all arm64 arm64-test arm64-unit $(PROGRAMS) help deps test-deps check fmt vet staticcheck lint shellcheck generate generated unit e2e critest kills test soak fuzz load quickstart bench bench-check test-kubelet test-conformance test-vm changelog dist dist-check dist-test install uninstall clean

all: $(PROGRAMS) ## build kurid, kuri-keeper, kuri-holder and kuri into bin/

$(GO_PROGRAMS):
	@mkdir -p $(BIN)
	$(BUILD) -tags '$(TAGS)' -ldflags '$(LDFLAGS)' -o $(BIN)/$@ ./cmd/$@

# kurid and kuri contain no C. Static programs need only the kernel, and run on every distribution.
kurid kuri: export CGO_ENABLED := 0

# The keeper is linked statically: every container's init starts as the keeper's program, and need not load libraries.
# It is built without Go's profiles, which saves memory; LEAN= links them.
LEAN        ?= lean
kuri-keeper: TAGS    += netgo osusergo $(LEAN)
kuri-keeper: LDFLAGS += -linkmode external -extldflags -static

# The holder is C and linked with musl: idle, it uses a thirtieth of the memory that it would use with glibc.
kuri-holder: cmd/kuri-holder/holder.c cmd/kuri-holder/protocol.h
	@mkdir -p $(BIN)
	$(MUSL_GCC) -static -Os -Wall -Wextra -Werror -DVERSION='"$(VERSION)"' -o $(BIN)/$@.new $<
	$(STRIP) $(BIN)/$@.new
	mv $(BIN)/$@.new $(BIN)/$@

# If arm64 programs cannot be built, those of an earlier build are removed, so that nothing uses them by mistake.
arm64: ## build the programs for arm64 into bin-arm64/, with Debian's cross compiler in .cache/cross
	@if cross=$$(scripts/cross); then $(MAKE) --no-print-directory ARCH=arm64 CROSS="$$cross" all; \
	else rm -rf bin-arm64; echo 'SKIP arm64: the cross compiler is not available (scripts/cross)'; fi

# The unit tests that run under QEMU, which does not support openat2(2), the mount API and clone3(2).
ARM64_UNIT  ?= $(addprefix ./,certsd challenge spelling internal/fault internal/flight internal/undo internal/step \
                 internal/sha256 internal/event internal/record internal/config internal/spec)

arm64-test: arm64 ## unit tests of arm64 programs, under QEMU
	@if cross=$$(scripts/cross); then $(MAKE) --no-print-directory ARCH=arm64 CROSS="$$cross" arm64-unit; fi

arm64-unit:
	scripts/tally arm64 -tags $(TAGS) -timeout 30m $(ARM64_UNIT)

help: ## say what can be made
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' Makefile | expand -t 20

deps: ## install what building needs: Debian packages and Go
	@scripts/deps build

test-deps: ## install what testing needs besides
	@scripts/deps test

check: fmt vet staticcheck lint shellcheck generated unit ## formatting, vet, staticcheck, scripts/lint, shellcheck, generated code, floors, unit tests with the race detector

fmt:
	@unformatted=$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go')); \
	if [ -n "$$unformatted" ]; then echo "not gofmt-ed:" $$unformatted >&2; exit 1; fi

vet:
	go vet -tags $(TAGS) ./...

staticcheck:
	go run $(STATICCHECK) -tags $(TAGS) ./...

# errcheck, errorlint, bodyclose and sloglint: scripts/lint/main.go has their settings, go.mod there their versions.
lint:
	@mkdir -p .cache && cd scripts/lint && go build -o ../../.cache/lint .
	go vet -tags $(TAGS) -vettool="$(CURDIR)/.cache/lint" ./...

# The shell scripts of the tree: files whose first line names a shell.
SCRIPTS      = $(shell git grep -lE -m 1 '^\#!(/usr/bin/env |/bin/)(ba)?sh' -- ':!*.txtar' ':!*.go' ':!*.md')

shellcheck:
	@if command -v shellcheck >/dev/null; then shellcheck --severity=warning $(SCRIPTS); \
	else echo 'SKIP shellcheck: it is not installed (make test-deps)'; fi

generate: ## make the code that .proto files make, and the picture of the floors
	scripts/generate
	KURI_GENERATE=1 go test -count=1 -run '^TestPicture$$' ./internal/

generated:
	@if command -v protoc >/dev/null; then scripts/generate --check; \
	else echo 'SKIP generated code: protoc is not installed (make test-deps)'; fi

# Many tests wait more than they work, so more of a package run at once than there are processors. A program with the race
# detector sleeps for a second before it exits, unless GORACE says otherwise. The tags are those of the keeper that a test
# builds, so that their packages are compiled once.
unit: export GORACE := atexit_sleep_ms=20
unit:
	scripts/tally unit -race -parallel 4 -tags '$(TAGS) netgo osusergo' -timeout 30m $(UNIT)

e2e: all ## stories against the real daemon, registry and networks; needs root
	-scripts/previous >/dev/null # its story says what is missing
	scripts/tally e2e -p 1 -tags $(TAGS) -timeout 30m ./test/e2e/...

critest: all ## the CRI validation suite against the real daemon; needs root
	scripts/tally critest -tags $(TAGS) -timeout 30m ./test/critest/...

test: ## everything: installs what it needs, builds, check, e2e, critest; needs root
	@scripts/test

kills: ## the keeper killed 200 times under load, without the race detector; needs root
	KURI_TEST_KILLS=200 scripts/tally kills -tags $(TAGS) -timeout 20m -count 1 -run '^TestKilledAtRandom$$' ./internal/keeper/server/

soak: all ## 500 pods up and down, thousands of killed keepers, all processes killed together, and nothing left; needs root
	KURI_TEST_KILLS=3000 go test -tags $(TAGS) -timeout 60m -count 1 -v -run '^TestKilledAtRandom$$' ./internal/keeper/server/
	KURI_SOAK=500 go test -tags $(TAGS) -timeout 30m -count 1 -v -run '^TestSoak$$' ./test/e2e/
	KURI_TEST_TOGETHER=100 go test -tags $(TAGS) -timeout 120m -count 1 -v -run '^TestKilledTogether$$' ./test/e2e/

FUZZ_TIME   ?= 30s
FUZZ        ?= .

fuzz: ## each fuzz target for FUZZ_TIME (30s); FUZZ=Untar chooses by name
	scripts/fuzz '$(FUZZ_TIME)' '$(FUZZ)'

load: all ## 200 pods of three containers under a kubelet's load for ten minutes (KURI_LOAD=10m); needs root
	KURI_LOAD=$${KURI_LOAD:-10m} go test -tags $(TAGS) -timeout 60m -count 1 -v ./test/load/

quickstart: ## install what it needs, build, run a pod, look at it, clean up; needs root
	@scripts/quickstart

bench: all ## startup, memory and latency beside containerd's; needs root
	bench/run

bench-check: all ## some of the bench, compared with the last result in bench/history: fails when a ratio is a third worse
	bench/run -phases pods,execs,lists -pods 20 -rounds 2 -listed 50 -against "$(CURDIR)/bench/history"

test-kubelet: all ## a real kubelet, standalone, against kurid; needs root, builds for minutes
	test/kubelet/run

test-conformance: all ## Kubernetes' node conformance suite against kurid; needs root, builds for ten minutes, runs for half an hour
	test/conformance/run

test-vm: all ## stories in virtual machines: cgroup v2, systemd as process 1, SELinux, the .deb; needs root, takes a quarter of an hour
	test/vm/run $(MACHINES)

dist: all arm64 ## packages in dist/ for amd64 and arm64: .deb, .rpm, static tar, bill of materials, checksums; the same bytes each time
	VERSION='$(VERSION)' scripts/dist

dist-check: dist ## build the packages again from nothing and compare; lintian and rpmlint; takes minutes
	VERSION='$(VERSION)' scripts/dist-check

dist-test: all ## what is in the .deb, and what dpkg does with it; needs root
	scripts/tally dist -count 1 -tags $(TAGS) -timeout 30m ./test/dist/...

changelog: ## print the next section of CHANGELOG.md; with VERSION=1.2.3 on the command line, write it there
	@go run ./changelog $(if $(filter command line,$(origin VERSION)),release '$(VERSION)',show)

install: all ## install under PREFIX (DESTDIR for packagers)
	install -d '$(DESTDIR)$(PREFIX)/bin' '$(DESTDIR)$(UNITDIR)' '$(DESTDIR)$(SYSCONFDIR)/kuri'
	install -m 0755 bin/kurid bin/kuri bin/kuri-keeper bin/kuri-holder '$(DESTDIR)$(PREFIX)/bin/'
	for unit in kurid kurid-handover; do sed 's|@PREFIX@|$(PREFIX)|g' packaging/$$unit.service > '$(DESTDIR)$(UNITDIR)'/$$unit.service; done
	cd '$(DESTDIR)$(SYSCONFDIR)/kuri' && { [ -e config.toml ] || install -m 0644 '$(CURDIR)/packaging/config.toml' config.toml; }

uninstall: ## take the built-in network away, remove what install put there; configuration and state stay
	@if [ -z '$(DESTDIR)' ] && [ -x '$(PREFIX)/bin/kurid' ]; then '$(PREFIX)/bin/kurid' network prune || \
	  { echo 'uninstall: the pods go on without Kuri, and so does their network: stop kurid, remove the pods, uninstall again' >&2; exit 1; }; fi
	rm -f '$(DESTDIR)$(PREFIX)'/bin/kuri{d,,-keeper,-holder} '$(DESTDIR)$(UNITDIR)'/kurid{,-handover}.service

clean: ## remove what was built; .cache/ (critest, kubelet, test images) too
	rm -rf bin bin-arm64 dist .cache
