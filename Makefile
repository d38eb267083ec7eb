# make help lists the targets.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

MODULES := shared frontend signer cats local k8s e2e tools
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
IMAGE_TAG ?= dev
REVISION ?= $(shell git rev-parse -q --verify HEAD 2>/dev/null || echo unknown)
STAMP := -X github.com/prometheus/common/version.Version=$(VERSION) -X github.com/prometheus/common/version.Revision=$(REVISION)

.PHONY: help
help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.PHONY: build
build: ## build the programs into bin/
	@mkdir -p bin
	go build -ldflags '$(STAMP)' -o bin/ ./frontend ./signer ./cats ./local

.PHONY: run
run: ## start the whole system on this machine, until Ctrl-C
	@mkdir -p bin
	@[ -e bin/local ] || echo "building bin/local (a minute or two, once)"
	@go build -ldflags '$(STAMP)' -o bin/ ./local
	@exec bin/local

.PHONY: test-unit
test-unit: ## the tests of each module but e2e, with the race detector
	@# -vet=off, here and below: make lint vets. The race detector delays each exit by a second.
	GORACE=atexit_sleep_ms=0 go test -race -vet=off $(patsubst %,./%/...,$(filter-out e2e k8s tools,$(MODULES))) ./tools/bench/...
	@# -count=1: the test cache does not see the programs and files that these tests use. Without the race detector: they do
	@# nothing in parallel, but start a hundred fakes of az and kubectl.
	go test -vet=off -count=1 ./k8s/... ./tools/licenses

.PHONY: test
test: test-unit ## unit and end-to-end tests, with the race detector
	@# The programs have the race detector. The code of the end-to-end tests does without, which saves a third of the time.
	@# -count=1: the test cache does not see the programs.
	go build -race -o bin/e2e/ ./signer ./frontend ./cats
	CATS_E2E_BIN=$(CURDIR)/bin/e2e go test -vet=off -count=1 -timeout 13m ./e2e/...

# How long each target is fuzzed, as go test has it: 10m, or 1000000x executions.
FUZZTIME ?= 1m

.PHONY: fuzz
fuzz: ## fuzz all that parses strangers' bytes, FUZZTIME=1m each
	@targets=$$(go test -list '^Fuzz' work | awk '/^Fuzz/ {t[n++] = $$1} $$1 == "ok" {for (i = 0; i < n; i++) print $$2, t[i]; n = 0}'); sum=0; found=; \
	while read -r package target; do \
	  out=$$(go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 5s "$$package" 2>&1) || { found="$$found $$target"; echo "$$out" >&2; }; \
	  execs=$$(sed -nE 's/.*execs: ([0-9]+).*/\1/p' <<<"$$out" | tail -1); \
	  echo "$$package $$target: $${execs:-0} executions"; sum=$$((sum + $${execs:-0})); \
	done <<<"$$targets"; \
	echo "in all: $$sum executions, findings:$${found:- none}"; [ -z "$$found" ] && [ "$$sum" -gt 0 ]

.PHONY: docs
docs: ## write docs/reference: settings from --help, metrics from a running system, the API from openapi.json
	go test -count=1 ./e2e/repo -run ReferenceIsCurrent -update

.PHONY: faults
faults: ## write the measured times of recovery into the table of docs/faults.md
	go test -race -count=1 -timeout 5m ./e2e/faults -run TestFaults -update

# Hours are welcome. SOAK_SEED makes an earlier load again.
SOAK ?= 3m

.PHONY: soak
soak: ## random load and kills, and a count of what was lost or has grown; for SOAK=3m, and three minutes more
	SOAK=$(SOAK) go test -count=1 -timeout 0 -v -run '^TestSoak$$' ./e2e/soak

.PHONY: test-wide
test-wide: ## what make test leaves out: the soak, and each fuzz target for FUZZTIME=10s
	$(MAKE) soak
	$(MAKE) fuzz FUZZTIME=$(or $(filter-out 1m,$(FUZZTIME)),10s)

# Collecting garbage less often saves a tenth of the processor time of a cold run.
.PHONY: lint
lint: export GOGC := 400
lint: .bin/lint .bin/gofumpt ## static checks
	@files=$$(.bin/gofumpt -l $(MODULES) tools/pinned/lint); [ -z "$$files" ] || { echo "not formatted; run .bin/gofumpt -w on:" $$files >&2; exit 1; }
	.bin/lint -tags cluster $(MODULES:%=./%/...)
	@# Without the workspace, which lets a module import what its go.mod does not require.
	@for m in $(MODULES) tools/pinned; do GOWORK=off go -C $$m mod tidy -diff; done
	@# go work sync would add lines that go mod tidy removes.
	@differ=$$(awk '$$1 == "require" {$$1 = ""; $$0 = $$0} $$2 ~ /^v/ {print $$1, $$2}' $(MODULES:%=%/go.mod) | grep -v '^cats' | sort -u | awk '{print $$1}' | uniq -d); \
	  [ -z "$$differ" ] || { echo "the modules require different versions; make them equal with go get:" $$differ >&2; exit 1; }
	@if command -v shellcheck >/dev/null; then shellcheck -x .ci/run $$(git ls-files '*.sh'); \
	  elif [ -n "$${CI:-}" ]; then echo "shellcheck is missing" >&2; exit 1; \
	  else echo "skipped: shellcheck is not installed"; fi

# tools/pinned is not in the workspace, so that its requirements do not affect the versions there.
.bin/%: tools/pinned/go.mod tools/pinned/go.sum $(wildcard tools/pinned/lint/*.go)
	@echo "building $*"
	@GOBIN=$(CURDIR)/.bin GOWORK=off go -C tools/pinned install $$(GOWORK=off go -C tools/pinned list ./... tool | grep '/$*$$')
	@touch $@

.PHONY: vuln
vuln: .bin/govulncheck ## look for known vulnerabilities in what is called; GOVULNDB is a mirror of https://vuln.go.dev
	@bad=; for m in $(MODULES); do echo "== $$m"; \
	  GOWORK=off .bin/govulncheck $(if $(GOVULNDB),-db $(GOVULNDB)) -C $$m -test ./... || case $$? in \
	    3) bad+=" $$m: vulnerable." ;; \
	    *) bad+=" $$m: NOT CHECKED." ;; \
	  esac; done; [ -z "$$bad" ] || { echo "vuln:$$bad NOT CHECKED means that the database could not be read: https://vuln.go.dev, or GOVULNDB" >&2; exit 1; }

.PHONY: licenses
licenses: ## write docs/licenses.md; needed after a change of dependencies
	go run ./tools/licenses

.PHONY: sbom
sbom: build .bin/cyclonedx-gomod ## list what the programs link, as CycloneDX, in bin/
	@for p in frontend signer; do .bin/cyclonedx-gomod bin -json -std -version $(VERSION) -output bin/$$p.cdx.json bin/$$p; done

.PHONY: bench
bench: ## measure against bare yardsticks, on Linux (about nine minutes); BENCH="-only cached,sink" and more: BENCH=--help
	@mkdir -p bin
	@go build -o bin/bench ./tools/bench
	@exec bin/bench $(BENCH)

IMAGES := cats-api-frontend=Dockerfile.frontend cats-api-signer=Dockerfile.signer cats-api-emulator=local/emulator/Dockerfile
# Kubernetes completes the name cats-api-… of the manifests with this registry; buildah would complete it with localhost/.
REGISTRY := docker.io/library/

.PHONY: images
images: ## build the container images, with docker or buildah
	@build=$$(command -v docker >/dev/null && docker info >/dev/null 2>&1 && echo "docker build" || echo "buildah bud --layers"); \
	for image in $(IMAGES); do \
	  $$build --build-arg VERSION=$(VERSION) --build-arg REVISION=$(REVISION) -f $${image#*=} -t $(REGISTRY)$${image%%=*}:$(IMAGE_TAG) .; \
	done

# How an image gets into the cluster that KUBECONFIG names.
LOAD_IMAGE ?= kind load docker-image

.PHONY: cluster-test
cluster-test: ## test the manifests on the cluster of KUBECONFIG (ten minutes); creates and deletes its own namespaces, cats-api-test and cats-api-test-monitoring
	go test -tags cluster -c -o bin/e2e/cluster.test ./e2e/cluster
	cd e2e/cluster && $(CURDIR)/bin/e2e/cluster.test -test.v -check
	$(MAKE) images IMAGE_TAG=cluster-test
	@for image in $(IMAGES); do name=$(REGISTRY)$${image%%=*}:cluster-test; echo "loading $$name"; $(LOAD_IMAGE) $$name; done
	cd e2e/cluster && $(CURDIR)/bin/e2e/cluster.test -test.timeout 30m -test.v

.PHONY: clean
clean: ## remove what the other targets made
	rm -rf bin .bin .local local/node_modules
