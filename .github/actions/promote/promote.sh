#!/usr/bin/env bash
# Move the tag TO of the environment NAME to FROM, an id or a tag; signed where ENVFERRY_SIGN_KEY is set.
set -euo pipefail
# An input that was left out is empty, which means nothing.
if [ -z "${AWS_ENDPOINT_URL_S3:-}" ]; then unset AWS_ENDPOINT_URL_S3; fi
if [ -z "${ENVFERRY_SIGN_KEY:-}" ]; then unset ENVFERRY_SIGN_KEY; fi
envferry tag "$NAME@$FROM" "$TO" --platform "$PLATFORM"
echo "- \`$NAME\` ($PLATFORM): \`$TO\` is now \`$FROM\`" >> "$GITHUB_STEP_SUMMARY"
