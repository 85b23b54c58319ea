#!/usr/bin/env bash
# Install envferry at the version of this action, with its locked dependencies: into a virtual
# environment of the runner's temporary folder, and onto PATH for the steps that follow.
set -euo pipefail
source=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)
venv=$RUNNER_TEMP/envferry
python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
  echo "::error::envferry needs Python 3.10 or newer: run actions/setup-python first"
  exit 1
}
python3 -m venv --clear "$venv"
"$venv/bin/pip" install -q --disable-pip-version-check --require-hashes -r "$source/requirements/build.txt"
# uv trusts its own list of authorities and does not read pip's settings: a site's own are passed on.
index=$("$venv/bin/pip" config get global.index-url 2>/dev/null || true)
export UV_SYSTEM_CERTS=${UV_SYSTEM_CERTS:-1} UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$index}
if [ -z "$UV_DEFAULT_INDEX" ]; then unset UV_DEFAULT_INDEX; fi
"$venv/bin/uv" pip install -q --python "$venv/bin/python" --no-deps \
  --build-constraints "$source/requirements/dev.txt" "$source"
echo "$venv/bin" >> "$GITHUB_PATH"
echo "ENVFERRY_CACHE=${ENVFERRY_CACHE:-$RUNNER_TEMP/envferry-cache}" >> "$GITHUB_ENV"
"$venv/bin/envferry" --version
if ! command -v docker >/dev/null && ! command -v podman >/dev/null && ! command -v bwrap >/dev/null; then
  echo "::warning::environments are built in containers: install docker, podman or bubblewrap"
fi
