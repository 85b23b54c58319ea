#!/usr/bin/env bash
# Move the tag TO of the environment NAME to FROM, an id or a tag; or of each of REFS, NAME@ID separated by spaces. The
# tag is signed where ENVFERRY_SIGN_KEY is set.
set -euo pipefail
# An input that was left out is empty, which means nothing.
if [ -z "${AWS_ENDPOINT_URL_S3:-}" ]; then unset AWS_ENDPOINT_URL_S3; fi
if [ -z "${ENVFERRY_SIGN_KEY:-}" ]; then unset ENVFERRY_SIGN_KEY; fi
read -r -a refs <<< "${REFS:-}"
if [ ${#refs[@]} = 0 ]; then refs=("$NAME@$FROM"); fi
for ref in "${refs[@]}"; do
  # One that fails holds back no other.
  if envferry tag "$ref" "$TO" --platform "$PLATFORM"; then
    echo "- \`${ref%@*}\` ($PLATFORM): \`$TO\` is now \`${ref##*@}\`" >> "$GITHUB_STEP_SUMMARY"
  else
    status=$?
  fi
done
exit "${status:-0}"
