#!/bin/sh
# What the Dockerfile runs for both images, in two layers: `dependencies LOCK` (changes to the code leave it
# alone), then `envferry`, with the wheel in /wheel.
set -eu
case $1 in
  dependencies)
    python3 -m venv /opt/envferry
    /opt/envferry/bin/pip install --no-cache-dir --no-compile --require-hashes -r "/src/requirements/$2"
    find /opt/envferry -name __pycache__ -prune -exec rm -r {} + ;;
  envferry)
    /opt/envferry/bin/pip install --no-cache-dir --no-compile --no-index --no-deps /wheel/*.whl
    python3 -m compileall -q --invalidation-mode unchecked-hash /opt/envferry || echo "the rest stays source"
    ln -s /opt/envferry/bin/envferry /usr/local/bin/envferry
    rm -r /src /wheel ;;
esac
