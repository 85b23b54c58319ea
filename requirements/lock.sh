#!/bin/sh
# Lock envferry's own dependencies, for every Python and platform, with hashes: called by `make lock`.
# Arguments go to `uv pip compile`; without any, locks keep the versions they have.
set -eu
cd "$(dirname "$0")/.."

compile() {
  output=$1
  shift
  "${VENV:-.venv}/bin/uv" pip compile -q --universal --python-version 3.10 --generate-hashes \
    --no-header --no-annotate --output-file "$output" "$@"
}

compile requirements/dev.txt pyproject.toml --extra dev "$@"
# Parts of it, at the same versions: both images, the training host's tool, and what installs the rest.
compile requirements/build.txt pyproject.toml --extra build --extra s3 -c requirements/dev.txt
compile requirements/host.txt pyproject.toml --extra s3 -c requirements/dev.txt
compile pipeline/envferry/transfer/tool-requirements.txt pyproject.toml -c requirements/dev.txt
echo uv | compile requirements/uv.txt - -c requirements/dev.txt
# What tests the Ansible collection has other requirements, and no version in common.
compile requirements/ansible.txt requirements/ansible.in "$@"
compile requirements/rivals.txt requirements/rivals.in "$@"
