# Each target sets up what it needs; `make demo` and `make test` are all that a new machine wants.
# Only the rules below: make knows one of its own that would copy bootstrap.sh to `bootstrap`.
MAKEFLAGS += --no-builtin-rules
.PHONY: demo test test-newest test-lowest lint format unit integration slow podman docker images fuzz \
  bench reference docs site lock package clean
export VENV ?= .venv
bin := $(VENV)/bin
# uv trusts its own list of authorities; a site's own is in the system's.
ifneq ($(wildcard /etc/ssl/certs/ca-certificates.crt),)
export UV_SYSTEM_CERTS ?= 1
endif

demo: $(VENV)/.ready
	$(bin)/python -m demo.walkthrough

test: lint unit integration

# The same tests on other dependencies than the locked ones, in a virtual environment of their own.
# Old versions of libraries use what newer ones call deprecated: that is not ours to mend.
test-newest test-lowest:
	rm -f .venv-$(@:test-%=%)/.ready
	PYTEST_ADDOPTS="$(if $(findstring lowest,$@),-W ignore::DeprecationWarning)" \
	  $(MAKE) VENV=.venv-$(@:test-%=%) DEPENDENCIES=$(@:test-%=%) unit integration

# Tests run side by side, more than there are cores, for many wait; JOBS=0 runs one after the other.
parallel := -n $(or $(JOBS),$(shell expr 2 \* "$$(nproc)")) --maxprocesses 4 --dist worksteal

lint: $(VENV)/.ready
	$(bin)/ruff format --check .
	$(bin)/ruff check .
	$(bin)/mypy
	$(bin)/codespell
	$(bin)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(bin)/check-jsonschema --builtin-schema vendor.github-actions .github/actions/*/action.yml
	$(bin)/check-jsonschema --builtin-schema vendor.gitlab-ci docs/ci/envferry.gitlab-ci.yml
	$(bin)/zizmor --offline --quiet .github
	$(bin)/shellcheck .github/actions/*/*.sh .ci/run .ci/images bootstrap.sh requirements/lock.sh requirements/into_image.sh pipeline/envferry/transfer/install.sh \
	  docs/slurm/prolog.sh \
	  pipeline/envferry/tool/header.sh

format: $(VENV)/.ready
	$(bin)/ruff format .
	$(bin)/ruff check --fix .

# COVERAGE=1 measures which lines and branches the unit tests run, and fails below the floor in pyproject.toml.
unit: $(VENV)/.ready
	./bootstrap.sh hosts
	./bootstrap.sh softhsm
	$(if $(COVERAGE),$(bin)/coverage run -m,$(bin)/python -m) pytest $(parallel) -m "not slow" --ignore tests/integration
	$(if $(COVERAGE),$(bin)/coverage combine -q && $(bin)/coverage report --skip-covered --skip-empty)

integration: $(VENV)/.ready
	./bootstrap.sh hosts
	./bootstrap.sh browser
	./bootstrap.sh npm
	./bootstrap.sh oci
	./bootstrap.sh ansible
	./bootstrap.sh nginx
	./bootstrap.sh slurm
	$(bin)/pytest $(parallel) tests/integration -m "not podman and not docker and not slow"

# What takes minutes: twenty hosts at once, ansible-test, both images built twice.
slow: $(VENV)/.ready
	./bootstrap.sh ansible
	./bootstrap.sh podman
	$(bin)/pytest tests -m slow

podman: $(VENV)/.ready
	./bootstrap.sh podman
	ENVFERRY_REQUIRE=podman $(bin)/pytest tests/integration -m "podman and not slow"

docker: $(VENV)/.ready
	./bootstrap.sh docker
	ENVFERRY_REQUIRE=docker $(bin)/pytest tests/integration -m docker

# Both images of the Dockerfile, each built twice; ENGINE=podman, BASE=IMAGE@DIGEST, APT_MIRROR=URL.
images:
	./.ci/images

# SECONDS for each target; findings are left here as crash-… (tests/fuzz.py).
fuzz: $(VENV)/.ready
	$(bin)/uv pip install -q --python $(bin)/python -e '.[dev,fuzz]'
	for target in index archive header; do mkdir -p .fuzz/$$target && \
	  $(bin)/python -m tests.fuzz $$target -max_total_time=$(or $(SECONDS),60) -rss_limit_mb=2048 \
	  -verbosity=0 -print_final_stats=1 .fuzz/$$target tests/corpus || exit 1; done

bench: $(VENV)/.ready
	./bootstrap.sh oci
	./bootstrap.sh rivals
	$(bin)/python -m benchmarks $(if $(ENV),--env $(ENV)) $(if $(JSON),--json $(JSON))

reference: $(VENV)/.ready
	$(bin)/python -m demo.reference $(if $(COMPARE),--compare) $(if $(KEEP),--keep)

# The sdist and the wheel in .package/, by the locked build backend; each is tried in an empty environment.
package: $(VENV)/.ready
	rm -rf .package
	$(bin)/uv build --quiet --build-constraints requirements/dev.txt --out-dir .package .
	for file in .package/*; do \
	  $(bin)/uv venv --quiet --clear $(VENV)/package && \
	  $(bin)/uv pip install --quiet --python $(VENV)/package/bin/python \
	    --build-constraints requirements/dev.txt --constraints requirements/dev.txt "$$file" && \
	  (cd $(VENV)/package && ./bin/envferry --version && ./bin/envferry ls --registry .) || exit 1; done
	rm -rf $(VENV)/package

# Lock the dependencies anew: the newest of each (UPGRADE=NAME: of that one only).
lock: $(VENV)/.ready
	./requirements/lock.sh $(if $(UPGRADE),--upgrade-package $(UPGRADE),--upgrade)

docs: $(VENV)/.ready
	$(bin)/python -m docs.generate

# site/: these pages to read in a browser, also from a disk. A link that leads nowhere is an error;
# what Python says of jieba's source when that is compiled is none.
site: $(VENV)/.ready
	NO_MKDOCS_2_WARNING=1 $(bin)/mkdocs build --quiet --clean
	NO_MKDOCS_2_WARNING=1 PYTHONWARNINGS=ignore $(bin)/mkdocs build --quiet --clean \
	  --config-file mkdocs.zh.yml
	@echo site/index.html, site/zh/index.html

clean:
	rm -rf .venv .venv-newest .venv-lowest .package .demo .bench .fuzz .reference dist site

$(VENV)/.ready: pyproject.toml bootstrap.sh requirements/dev.txt
	./bootstrap.sh
