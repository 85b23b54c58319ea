#!/usr/bin/env bash
# Build, pack, push, sign and tag one spec, or several, one after the other. SPEC is its path, or their names or paths,
# separated by spaces; TAGS the tags, one a line; the registry, its login and the key to sign with are in envferry's and
# AWS' own variables.
set -euo pipefail
words=()
while read -r tag; do
  if [ -n "$tag" ]; then words+=(--tag "$tag"); fi
done <<< "${TAGS:-}"
# A path may have a space: what is a file is one spec.
if [ -e "$SPEC" ]; then specs=("$SPEC"); else read -r -a specs <<< "$SPEC"; fi
# An input that was left out is empty, which means nothing.
if [ -z "${AWS_ENDPOINT_URL_S3:-}" ]; then unset AWS_ENDPOINT_URL_S3; fi
if [ -z "${ENVFERRY_SIGN_KEY:-}" ]; then unset ENVFERRY_SIGN_KEY; fi
released=$(mktemp)
envferry release "${words[@]}" --keep-going --json "${specs[@]}" > "$released" || status=$?
python3 - "$released" << 'PYTHON'
import json, os, pathlib, sys

text = pathlib.Path(sys.argv[1]).read_text()
refs = []
with open(os.environ["GITHUB_STEP_SUMMARY"], "a") as summary, open(os.environ["GITHUB_OUTPUT"], "a") as output:
    for one in json.loads(text) if text.strip() else []:
        if one["outcome"] != "released":
            print(f"- **{one['spec']}: {one['outcome']}**", file=summary)
            continue
        built = "" if one["built"] else " (was in the registry already)"
        print(f"- `{one['name']}@{one['id']}`{built}: {', '.join(one['tags'])}", file=summary)
        print(f"id={one['id']}", file=output)
        refs.append(f"{one['name']}@{one['id']}")
    print(f"refs={' '.join(refs)}", file=output)
PYTHON
rm "$released"
exit "${status:-0}"
