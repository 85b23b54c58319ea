#!/usr/bin/env bash
# Lint the specs that changed since the revision SINCE, check that their locks are up to date, and
# write what changed in the locks into the job's summary. All are reported before a failure ends the
# job. SPECS is the folder of the specs; STRICT=true makes what lint finds a failure.
set -euo pipefail
specs=${SPECS:-specs}
lint=(envferry lint)
if [ "${STRICT:-false}" = true ]; then lint+=(--strict); fi

envferry changed --since "$SINCE" --specs "$specs"
envferry changed --since "$SINCE" --specs "$specs" --markdown >> "$GITHUB_STEP_SUMMARY"
changed=$(mktemp)
trap 'rm -f "$changed"' EXIT
envferry changed --since "$SINCE" --specs "$specs" --json | python3 -c '
import json, sys
for one in json.load(sys.stdin):
    if one["state"] != "deleted":
        print("release" if one["release"] else "lint", one["spec"], sep="\t")
' > "$changed"

failed=0
while IFS=$'\t' read -r what spec; do
  "${lint[@]}" "$spec" || { echo "::error file=$spec::lint refuses it"; failed=1; }
  if [ "$what" = release ] && ! envferry lock --check "$spec"; then
    echo "::error file=$spec::its lock is not up to date: run envferry lock $spec"
    failed=1
  fi
done < "$changed"
exit "$failed"
