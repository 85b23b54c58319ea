#!/bin/sh
# Install envferry from the wheels beside this file: with POSIX sh and python3, without network.
#
#   sh install.sh [DIRECTORY]                 a venv there; ~/envferry unless given
#   PYTHON=python3.12 sh install.sh           another interpreter than python3
set -eu

fail() {
    printf 'error: %s\nhint: %s\n' "$1" "$2" >&2
    exit 1
}

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
python=${PYTHON:-python3}
target=${1:-${HOME:-.}/envferry}
case $target in
    -*) sed -n '2,5s/^# *//p' "$0"; exit 2 ;;
    /*) ;;
    *) target=$PWD/$target ;;
esac

command -v "$python" >/dev/null 2>&1 || fail "there is no $python" "name one: PYTHON=/path/to/python3 sh $0"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
machine=$("$python" -c 'import platform; print(platform.machine())')
requirements=$here/requirements-$version.txt
known=$(cd -- "$here" && printf '%s ' requirements-*.txt | sed 's/requirements-//g; s/\.txt//g')
[ -f "$requirements" ] || fail "$python is python $version, these wheels are for $known" \
    "PYTHON=python3.X sh $0, or export again with --python $version"
wanted=$(cat "$here/machine.txt")
[ "$machine" = "$wanted" ] || fail "this machine is $machine, these wheels are for $wanted" \
    "export again with another --platform"

"$python" - "$here" <<'END' || fail "files on this disk are damaged or missing" "copy or export them again"
import hashlib, pathlib, sys
here, wrong = pathlib.Path(sys.argv[1]), []
for line in (here / "SHA256SUMS").read_text().splitlines():
    digest, name = line.split("  ", 1)
    try:
        found = hashlib.sha256((here / name).read_bytes()).hexdigest()
    except OSError as error:
        found = error.strerror
    if found != digest:
        wrong.append("%s: expected %s, found %s" % (name, digest, found))
sys.exit("\n".join(wrong) or 0)
END

if [ -e "$target" ] && [ ! -f "$target/pyvenv.cfg" ] && [ -n "$(ls -A "$target")" ]; then
    fail "$target holds something else" "name another directory: sh $0 DIRECTORY"
fi
# Without pip: Debian has no ensurepip unless python3-venv is there. pip runs out of its wheel.
"$python" -m venv --without-pip "$target" || fail "$python cannot make a venv at $target" \
    "is the place writable, and python complete?"
for pip in "$here"/wheels/pip-*.whl; do :; done
"$target/bin/python" -E -s "$pip/pip" install --quiet --no-index --find-links "$here/wheels" \
    --require-hashes --no-cache-dir --disable-pip-version-check --no-input \
    --root-user-action ignore -r "$requirements" ||
    fail "pip could not install the wheels" "see what it says above"

registry=$(dirname -- "$here")
"$target/bin/envferry" --version
printf '\nNext:\n'
printf '  %s ls --registry %s\n' "$target/bin/envferry" "$registry"
printf '  %s install NAME@TAG --registry %s\n' "$target/bin/envferry" "$registry"
if [ -d "$registry/keys" ]; then
    printf 'Public keys are in %s: compare them with what you were told, then\n' "$registry/keys"
    printf 'put them into /etc/envferry/trusted.d, and nothing unsigned is installed.\n'
fi
