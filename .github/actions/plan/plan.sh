#!/usr/bin/env bash
# Print which jobs a release has: the outputs `matrix` and `jobs` (how many). SPECS names specs,
# separated by spaces; without any, those count that changed since the revision SINCE.
set -euo pipefail
read -r -a specs <<< "${SPECS:-}"
words=("${specs[@]}")
if [ ${#specs[@]} = 0 ]; then words=(--since "$SINCE"); fi
matrix=$(envferry release --matrix github "${words[@]}")
jobs=$(python3 -c 'import json, sys; print(len(json.load(sys.stdin)["include"]))' <<< "$matrix")
printf 'matrix=%s\njobs=%s\n' "$matrix" "$jobs" >> "$GITHUB_OUTPUT"
printf '%s jobs: %s\n' "$jobs" "$matrix"
