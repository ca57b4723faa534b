# Squire. Needs GNU make, Go and a POSIX shell; the tests need more, and "make deps" says or installs what.

SHELL = /bin/sh
PREFIX ?= /usr/local
DESTDIR ?=
# Where mount(8) looks for its helpers, which only root's programs are.
SBINDIR ?= $(if $(filter /usr /usr/local,$(PREFIX)),/sbin,$(PREFIX)/sbin)
UNITDIR ?= $(PREFIX)/lib/systemd/system
FUZZTIME ?= 30s
# The images of tests and benchmarks, see testdata/rootfs.sh.
export SQUIRE_TESTDIR ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/squire-test
IMAGE ?= $(SQUIRE_TESTDIR)/rootfs-zstd.sqsh
BENCHFLAGS ?=
# Flags for every run of the tests, such as TESTFLAGS='-run TestMount -v'.
TESTFLAGS ?=
# A test that hangs ends long before whoever waits for the whole suite does.
# Not from the cache: what they show depends on the machine as much as on the code.
GOTEST = go test -json -count=1 -timeout 20m
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

# One static binary: it runs on any node whatever its C library, and starts itself again inside containers.
export CGO_ENABLED = 0
GOBUILD = go build -trimpath -ldflags '-s -w -X main.version=$(VERSION)'
# Tests live in the tree and, where they are not part of the product, beside the data that they are about.
PACKAGES = ./... ./testdata/tally ./testdata/hostile/...
# The tests that read the images of testdata/corpus.sh.
CORPUSTESTS = ^Test(Golden|LookupAndResume|Kernel|Corpus)$$

GOLANGCI_VERSION = v2.15.0
GOLANGCI = .tools/golangci-lint-$(GOLANGCI_VERSION)

.DEFAULT_GOAL = build
.PHONY: build check fmt vet arrows lint shellcheck test test-short test-race test-all test-corpus corpus fuzz bench bench-codec bench-metadata bench-inodes bench-pack bench-import bench-service bench-run bench-slurm bench-release demo deps rootfs spank install install-spank clean help

build: ## build bin/squire, static
	$(GOBUILD) -o bin/squire ./cmd/squire

# Slurm loads only plugins that were made for its own release, so this is made where Slurm is. SPANK_CFLAGS adds flags,
# such as -I of another release's headers.
SPANKDIR ?= $(PREFIX)/lib/squire
SPANK_CFLAGS ?=
CC ?= cc
SPANK_HARDEN = -pthread -O2 -g -fPIC -pthread -fstack-protector-strong -fstack-clash-protection -fcf-protection=full -D_FORTIFY_SOURCE=2
SPANK_WARN = -std=c99 -Wall -Wextra -Werror -Wformat=2 -Wshadow -Wconversion -Wstrict-prototypes -Wmissing-prototypes -Wvla

spank: ## build bin/spank_squire.so, the plugin of Slurm; needs a C compiler and libslurm-dev
	@testdata/deps.sh cc stdlib.h slurm/spank.h || [ "$$(id -u)" != 0 ]
	@mkdir -p bin
	$(CC) $(SPANK_WARN) $(SPANK_HARDEN) $(SPANK_CFLAGS) $(CFLAGS) -DSQUIRE='"$(PREFIX)/bin/squire"' -shared \
		-Wl,-z,relro,-z,now,-z,noexecstack $(LDFLAGS) \
		-o bin/spank_squire.so cmd/spank/spank_squire.c

install-spank: spank ## install the plugin; plugstack.conf: required …/lib/squire/spank_squire.so
	install -d $(DESTDIR)$(SPANKDIR)
	install -m 0755 bin/spank_squire.so $(DESTDIR)$(SPANKDIR)

check: fmt arrows vet lint shellcheck ## all that can be said about the code without running it

fmt: ## are all files formatted?
	@out=$$(gofmt -l .); [ -z "$$out" ] || { echo "not formatted (run gofmt -w):" $$out; exit 1; }

arrows: ## does every package import only what it may?
	@testdata/arrows.sh

vet: ## go vet, for both processors
	GOARCH=amd64 go vet $(PACKAGES)
	GOARCH=arm64 go vet $(PACKAGES)

lint: $(GOLANGCI) ## golangci-lint, with .golangci.yml
	$(GOLANGCI) run $(PACKAGES)

# Built once, from source: slow, and the same everywhere.
$(GOLANGCI):
	@mkdir -p .tools
	GOBIN=$$(pwd)/.tools go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)
	mv .tools/golangci-lint $@

shellcheck: ## check the shell scripts
	@testdata/deps.sh shellcheck
	find . -name .tools -prune -o -name '*.sh' -print | xargs shellcheck .ci/run

test: deps rootfs ## run every test; the last line says how many passed, failed and were skipped
	@$(GOTEST) $(TESTFLAGS) $(PACKAGES) | go run ./testdata/tally

test-short: ## the tests that need neither root nor a root file system
	@$(GOTEST) -short $(TESTFLAGS) $(PACKAGES) | go run ./testdata/tally

# The race detector is written in C, so this needs a C compiler.
test-race: deps rootfs ## run every test with the race detector
	@CGO_ENABLED=1 $(GOTEST) -race $(TESTFLAGS) $(PACKAGES) | CGO_ENABLED=0 go run ./testdata/tally

test-all: export SQFS_CORPUS = $(SQUIRE_TESTDIR)/corpus
test-all: corpus test ## make corpus and run every test, on its images too

test-corpus: corpus ## compare readers on images of every writer and option: minutes
	@SQFS_CORPUS="$(SQUIRE_TESTDIR)/corpus" $(GOTEST) -run '$(CORPUSTESTS)' ./sqfs ./fusefs | go run ./testdata/tally

fuzz: ## run every fuzz target for FUZZTIME (30s)
	@testdata/fuzz.sh $(FUZZTIME)

bench: deps rootfs build ## compare with the kernel's squashfs and squashfuse: IMAGE=…, BENCHFLAGS='--rounds 3'
	@bin/squire bench $(BENCHFLAGS) --image $(IMAGE)

# Run by name and beside the image, as the command line becomes part of the file.
bench-release: deps rootfs build ## measure this version, for bench/results
	cd "$(dir $(IMAGE))" && PATH="$(CURDIR)/bin:$$PATH" squire bench --rounds 7 $(BENCHFLAGS) --json - --image "$(notdir $(IMAGE))" >"$(CURDIR)/bench/results/$(VERSION).json"
	@go run ./bench/parts results bench/results/*.json >bench/results/results.tsv
	bin/squire bench --from "bench/results/$(VERSION).json"

# The images stay in SQUIRE_TESTDIR; what is not installed is named and left out.
bench-codec: ## compare the decoders with C libraries: BENCHFLAGS='-only lzo -rounds 9'
	@testdata/deps.sh mksquashfs cc stdlib.h zlib.h lzma.h lzo/lzo1x.h lz4.h zstd.h libdeflate.h || [ "$$(id -u)" != 0 ]
	@go run ./bench/parts codec -dir "$(SQUIRE_TESTDIR)/codec" $(BENCHFLAGS)

bench-metadata: ## compare the reading of metadata with unsquashfs and the kernel: BENCHFLAGS='-rounds 3'
	@testdata/deps.sh mksquashfs unsquashfs || [ "$$(id -u)" != 0 ]
	@go run ./bench/parts metadata $(BENCHFLAGS)

bench-inodes: build ## what an inode costs in mounts of 1,000 to 1,000,000: BENCHFLAGS='-sizes 1000,10000'
	@testdata/deps.sh sqfstar squashfuse_ll || [ "$$(id -u)" != 0 ]
	@go run ./bench/parts inodes -squire bin/squire -dir "$(SQUIRE_TESTDIR)/inodes" $(BENCHFLAGS)

bench-service: rootfs build ## the time to mount with and without the node service, squashfuse and the kernel: root
	@testdata/deps.sh squashfuse squashfuse_ll
	@go run ./bench/parts service -squire bin/squire -image "$(IMAGE)" $(BENCHFLAGS)

# enroot and crun are found in PATH, which their user has to reach, others by --peer 'NAME=COMMAND', see bench/parts/run.go.
bench-run: rootfs build ## the time of a container that runs nothing, alone and 64 at once, beside bwrap, crun and enroot: root
	@testdata/deps.sh bwrap crun
	@go run ./bench/parts run -squire bin/squire -image "$(IMAGE)" $(BENCHFLAGS)

# Others by --peer 'NAME=LINE of plugstack.conf'; enroot has to be in PATH, and its user needs a shell: -user NAME.
bench-slurm: rootfs build spank ## what a container costs srun, beside other plugins: root, BENCHFLAGS="-user me -peer 'pyxis=required …'"
	@testdata/deps.sh slurmctld slurmd munge
	@go run ./bench/parts slurm -squire bin/squire -plugin bin/spank_squire.so -image "$(IMAGE)" $(BENCHFLAGS)

bench-pack: rootfs build ## compare squire pack with mksquashfs: BENCHFLAGS='-rounds 3 -only zstd -tree DIR'
	@testdata/deps.sh mksquashfs || [ "$$(id -u)" != 0 ]
	@go run ./bench/parts pack -squire bin/squire -image "$(IMAGE)" $(BENCHFLAGS)

# The image is made once and takes 5 GB with its packages; --peer 'enroot=…' adds a contestant, see bench/parts/import.go.
bench-import: build ## compare import with unpacking, overlay and mksquashfs: BENCHFLAGS='-rounds 1'
	@testdata/deps.sh docker-registry skopeo umoci debootstrap mksquashfs curl jq zstd setfattr
	@testdata/layers.sh "$(SQUIRE_TESTDIR)/import"
	@go run ./bench/parts import -squire bin/squire -image "$(SQUIRE_TESTDIR)/import/oci:big" \
		-peer 'unpack, overlay, mksquashfs=$(CURDIR)/testdata/unpack-import.sh URL OUT WORK' $(BENCHFLAGS)

demo: build ## make a small image, import another, and run commands in them
	@testdata/demo.sh bin/squire

# Without root what is missing is named, and the tests that need it are skipped.
deps: ## install, or name, the tools that tests need
	@testdata/deps.sh || [ "$$(id -u)" != 0 ]

# Without root the images cannot be made; the tests that need them say so and are skipped.
rootfs: ## make the images that tests and benchmarks use
	@if [ "$$(id -u)" = 0 ]; then testdata/rootfs.sh "$(SQUIRE_TESTDIR)"; testdata/programs.sh "$(SQUIRE_TESTDIR)" || echo "make: tests of programs and MPI will be skipped"; \
	else echo "make: not root, so the images of tests and benchmarks are not made"; fi

# Needs root too. Images are kept, and made anew only when the script or a writer changed.
corpus: ## make the images of test-corpus
	@testdata/deps.sh mksquashfs unsquashfs sqfstar python3 gensquashfs tar2sqfs
	@testdata/corpus.sh "$(SQUIRE_TESTDIR)/corpus"

install: build ## install below PREFIX (/usr/local), inside DESTDIR
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/man/man1 \
		$(DESTDIR)$(PREFIX)/share/bash-completion/completions \
		$(DESTDIR)$(PREFIX)/share/zsh/site-functions \
		$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d \
		$(DESTDIR)$(SBINDIR) $(DESTDIR)$(UNITDIR)
	install -m 0755 bin/squire $(DESTDIR)$(PREFIX)/bin/squire
	ln -sf $(PREFIX)/bin/squire $(DESTDIR)$(SBINDIR)/mount.squire
	sed 's|/usr/local/bin/squire|$(PREFIX)/bin/squire|' dist/squire.service >$(DESTDIR)$(UNITDIR)/squire.service
	install -m 0644 dist/squire.socket $(DESTDIR)$(UNITDIR)/squire.socket
	bin/squire man $(DESTDIR)$(PREFIX)/share/man/man1
	bin/squire completion bash >$(DESTDIR)$(PREFIX)/share/bash-completion/completions/squire
	bin/squire completion zsh >$(DESTDIR)$(PREFIX)/share/zsh/site-functions/_squire
	bin/squire completion fish >$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/squire.fish

clean: ## remove what was built here
	rm -rf bin .tools

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' Makefile
