# Each target sets up what it needs; `make demo` and `make test` are all that a new machine wants.
.PHONY: demo test lint format unit integration podman docker fuzz bench reference docs clean
bin := .venv/bin
# uv trusts its own list of authorities; a site's own is in the system's.
ifneq ($(wildcard /etc/ssl/certs/ca-certificates.crt),)
export UV_SYSTEM_CERTS ?= 1
endif

demo: .venv/.ready
	$(bin)/python -m demo.voyage

test: lint unit integration

lint: .venv/.ready
	$(bin)/ruff format --check .
	$(bin)/ruff check .
	$(bin)/mypy
	$(bin)/codespell
	$(bin)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(bin)/zizmor --offline --quiet .github/workflows

format: .venv/.ready
	$(bin)/ruff format .
	$(bin)/ruff check --fix .

unit: .venv/.ready
	$(bin)/pytest --ignore tests/integration

integration: .venv/.ready
	./bootstrap.sh browser
	./bootstrap.sh npm
	$(bin)/pytest tests/integration -m "not podman and not docker"

podman: .venv/.ready
	./bootstrap.sh podman
	ENVFERRY_REQUIRE=podman $(bin)/pytest tests/integration -m podman

docker: .venv/.ready
	./bootstrap.sh docker
	ENVFERRY_REQUIRE=docker $(bin)/pytest tests/integration -m docker

# SECONDS for each target; findings are left here as crash-… (tests/fuzz.py).
fuzz: .venv/.ready
	$(bin)/uv pip install -q --python $(bin)/python -e '.[dev,fuzz]'
	for target in index archive header; do mkdir -p .fuzz/$$target && \
	  $(bin)/python -m tests.fuzz $$target -max_total_time=$(or $(SECONDS),60) -rss_limit_mb=2048 \
	  -verbosity=0 -print_final_stats=1 .fuzz/$$target tests/corpus || exit 1; done

bench: .venv/.ready
	$(bin)/python -m benchmarks $(if $(ENV),--env $(ENV)) $(if $(JSON),--json $(JSON))

reference: .venv/.ready
	$(bin)/python -m demo.reference $(if $(COMPARE),--compare) $(if $(KEEP),--keep)

docs: .venv/.ready
	$(bin)/python -m docs.generate

clean:
	rm -rf .venv .demo .bench .fuzz .reference dist

.venv/.ready: pyproject.toml bootstrap.sh
	./bootstrap.sh
