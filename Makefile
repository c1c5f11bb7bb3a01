# Every target works from a clean clone. Targets that mount file systems or
# need Debian packages run scripts/setup first, and need root.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# Without cgo, as the product is: what one target has compiled, the others need not.
export CGO_ENABLED := 0

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
FUZZTIME ?= 10s
BENCH ?= .

.PHONY: help
help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## install and build what tests and demo use (root; no-op when all is there)
	@scripts/setup

.PHONY: build
build: ## build bin/skimmer, one static binary
	@CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o bin/skimmer ./cmd/skimmer

# Real kernels, processes and networks now and then do on a busy machine what they
# never do elsewhere. A few tests that failed are therefore run once more,
# and the summary says DONE 2 runs and shows how they failed first; that is a
# fault to mend, not to live with. A data race, a panic, a test that hangs and
# whatever fails twice fail at once.
TESTSUM := "$$gotestsum" --format pkgname --format-icons text --format-hide-empty-pkg --rerun-fails=1 \
	--rerun-fails-max-failures=6 --rerun-fails-run-root-test --rerun-fails-abort-on-data-race

# Three runs, because they find different faults: everything at full speed
# against the real kernel, the built binary end to end, then again under the
# race detector without what only takes time there (tests that ask
# testing.Short), which needs cgo. End to end, packages wait for slow links and for
# their programs half of the time, so two run at once; they share nothing.
.PHONY: test
test: setup ## run all tests, then the short ones again under the race detector (root)
	@go vet -tags e2e ./...
	@gotestsum=$$(go tool -n gotestsum); status=0; \
	 $(TESTSUM) --packages ./... -- -timeout 10m || status=1; \
	 $(TESTSUM) --packages ./test/... -- -p 2 -parallel 6 -timeout 20m -tags e2e || status=1; \
	 CGO_ENABLED=1 $(TESTSUM) --packages ./... -- -timeout 10m -race -short || status=1; \
	 exit $$status

.PHONY: test-short
test-short: ## run what is quick, without set-up
	@go test -short ./...

.PHONY: lint
lint: ## gofmt, go vet, staticcheck and the rules of test/rules
	@scripts/lint

.PHONY: fuzz
fuzz: ## run every fuzz target for FUZZTIME (default 10s) each
	@scripts/fuzz $(FUZZTIME)

.PHONY: bench
bench: setup ## run the benchmarks that BENCH (a regular expression) matches (root)
	@go test -run '^$$' -bench '$(BENCH)' -benchmem ./...

# What we compare with is a module of its own: the product never depends on it.
.PHONY: bench-baseline
bench-baseline: ## build bin/stargz-snapshotter, the stock snapshotter that bench coldstart compares with
	@CGO_ENABLED=0 go build -C bench -trimpath -o ../bin/stargz-snapshotter ./stargz-snapshotter

.PHONY: generate
generate: ## write the Go code of the protocols in api/ (needs no protoc)
	@go run ./api/generate

.PHONY: docs
docs: ## write the generated documentation: docs/config.md, docs/config/*.yaml, docs/commands.md
	@go run ./cmd/skimmer docs docs

.PHONY: demo
demo: ## mount a real image lazily on this machine and print what that cost (root)
	@scripts/setup demo
	@$(MAKE) --no-print-directory build
	@bin/skimmer demo

.PHONY: clean
clean: ## remove what the other targets made
	@rm -rf bin .cache
