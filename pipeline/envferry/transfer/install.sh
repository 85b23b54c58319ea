#!/bin/sh
# Install envferry from the wheels beside this file: with POSIX sh and python3, without network. Where there is no
# python3, or one that the wheels are not for, `envferry.run` is installed, which brings its own.
#
#   sh install.sh [DIRECTORY]                 bin/envferry there; ~/envferry unless given
#   sh install.sh --allow-unsigned [DIRECTORY]   in spite of the keys that this host trusts
#   PYTHON=python3.12 sh install.sh           another interpreter than python3
#
# Where /etc/envferry/trusted.d has keys, one of them must have signed the files beside this one;
# openssl checks it. This script itself comes from the same disk: docs/security.md says how the
# first install is checked by hand, and every later one by the installed envferry.
set -euf

fail() {
    printf 'error: %s\nhint: %s\n' "$1" "$2" >&2
    exit 1
}

# No program and no module of the current directory may run: it may be anybody's.
absolute=
IFS=:
for entry in ${PATH-}; do
    case $entry in /*) absolute=${absolute:+$absolute:}$entry ;; esac
done
unset IFS
PATH=${absolute:-/usr/local/bin:/usr/bin:/bin}
export PATH
unset CDPATH

allow_unsigned=
if [ "${1-}" = --allow-unsigned ]; then
    allow_unsigned=yes
    shift
fi
here=$(cd -- "$(dirname -- "$0")" && pwd)
python=${PYTHON:-python3}
case $python in
    /*) ;;
    */*) python=$PWD/$python ;;
esac
if [ -z "${1-}" ] && [ -z "${HOME-}" ]; then
    fail "HOME is not set, and no directory is named" "name one: sh $0 DIRECTORY"
fi
target=${1:-$HOME/envferry}
case $target in
    -*) sed -n '2,7s/^# *//p' "$here/install.sh"; exit 2 ;;
    /*) ;;
    *) target=$PWD/$target ;;
esac

keys=${ENVFERRY_TRUSTED_DIR:-/etc/envferry/trusted.d}
case $keys in /*) ;; *) fail "ENVFERRY_TRUSTED_DIR is $keys, expected an absolute path" "correct it, or unset it" ;; esac
set +f
has_keys=
is_required=
# A directory that was named may be misspelled; /dev/null says that this host has no keys.
if [ "$keys" != /dev/null ] && [ -n "${ENVFERRY_TRUSTED_DIR-}" ]; then is_required=yes; fi
for key in "$keys"/*.pub; do [ ! -f "$key" ] || has_keys=yes; done
case ${ENVFERRY_REQUIRE_SIGNATURES-} in '' | 0 | false | no | off) ;; *) is_required=yes ;; esac
for file in /etc/envferry/require-signatures "$(dirname -- "$keys")/require-signatures"; do
    if [ -e "$file" ] || [ -h "$file" ]; then is_required=yes; fi
done
if [ -z "$has_keys" ] && [ "$keys" != /dev/null ] && { [ -e "$keys" ] || [ -h "$keys" ]; }; then is_required=yes; fi
accept="or accept it as it is: sh $0 --allow-unsigned"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
cd "$work"

# show_next: what to type next.
show_next() {
    registry=$(dirname -- "$here")
    printf '\nNext:\n'
    printf '  %s ls --registry %s\n' "$target/bin/envferry" "$registry"
    printf '  %s install NAME@TAG --registry %s\n' "$target/bin/envferry" "$registry"
    if [ -d "$registry/keys" ]; then
        printf 'Public keys are in %s: compare them with what you were told, then\n' "$registry/keys"
        printf 'put them into /etc/envferry/trusted.d, and nothing unsigned is installed.\n'
    fi
}

# run_file_is_signed: whether a trusted key signed the copy of envferry.run in $work.
run_file_is_signed() {
    for key in "$keys"/*.pub; do
        sh "$work/envferry.run" --verify "$key" >/dev/null 2>"$work/said" && return 0
    done
    return 1
}

# install_run_file: install envferry.run, which needs no Python, and leave; return where there is none.
install_run_file() {
    [ -f "$here/envferry.run" ] || return 0
    for name in envferry.run envferry.run.attestation.json; do
        [ ! -f "$here/$name" ] || cat -- "$here/$name" >"$work/$name"
    done
    if [ -n "$allow_unsigned" ]; then
        printf 'warning: the signature of envferry.run is not checked (--allow-unsigned)\n' >&2
    elif [ -n "$has_keys" ]; then
        run_file_is_signed || { cat -- "$work/said" >&2 && fail "envferry.run is not signed by a key of $keys" "see above, $accept"; }
        printf 'signed by a key of %s\n' "$keys"
    elif [ -n "$is_required" ]; then
        fail "this host requires signatures, but $keys holds no key" "copy the public key there as NAME.pub, $accept"
    else
        printf 'warning: envferry.run: signature not verified (no trusted keys in %s)\n' "$keys" >&2
    fi
    if [ -e "$target" ] && [ ! -f "$target/bin/envferry" ] && [ -n "$(ls -A "$target")" ]; then
        fail "$target holds something else" "name another directory: sh $0 DIRECTORY"
    fi
    mkdir -p -- "$target/bin"
    cat -- "$work/envferry.run" >"$target/bin/.envferry-$$"
    chmod 755 "$target/bin/.envferry-$$"
    mv -f -- "$target/bin/.envferry-$$" "$target/bin/envferry"
    sh "$target/bin/envferry" --version
    show_next
    exit 0
}

if ! command -v "$python" >/dev/null 2>&1; then
    install_run_file
    fail "$python was not found" "name one: PYTHON=/path/to/python3 sh $0"
fi
# -I: neither variables such as PYTHONPATH nor user site-packages add modules.
version=$("$python" -I -c 'import sys; print("%d.%d" % sys.version_info[:2])')
machine=$("$python" -I -c 'import platform; print(platform.machine())')
[ -f "$here/requirements-$version.txt" ] || install_run_file
set -f

"$python" -I - "$target" <<'END' || fail "envferry cannot be installed there" "name another directory: sh $0 DIRECTORY"
import os, sys, unicodedata
target = sys.argv[1]
odd = sorted({c for c in target if unicodedata.category(c)[0] not in "LMN" and c not in "/._-+@=~"})
if odd:
    sys.exit("%r contains %s" % (target, " ".join(map(ascii, odd))))
if len(os.fsencode(target)) > 100:
    sys.exit("%s is longer than 100 bytes: the kernel cuts the first lines of scripts" % target)
END

# What is used below is a private copy of what was checked: the disk may change meanwhile.
mkdir "$work/tool"
"$python" -I - "$here" "$work" <<'END' || fail "files on this disk are damaged or missing" "copy or export them again"
import base64, hashlib, json, pathlib, re, sys
here, work = map(pathlib.Path, sys.argv[1:])
def read(name, most):
    """Read a file; neither a pipe nor a terabyte of nothing may keep this host busy."""
    if (here / name).exists() and not (here / name).is_file():
        sys.exit("%s is not a regular file" % name)
    with (here / name).open("rb") as stream:
        data = stream.read(most + 1)
    if len(data) > most:
        sys.exit("%s is longer than %d bytes" % (name, most))
    return data
try:
    sums, wrong = read("SHA256SUMS", 1 << 20), []
except OSError as error:
    sys.exit("SHA256SUMS: %s" % error.strerror)
for line in sums.decode(errors="replace").splitlines():
    digest, _, name = line.partition("  ")
    if not re.fullmatch(r"(wheels/)?[A-Za-z0-9_][A-Za-z0-9_.+!-]*", name):
        sys.exit("SHA256SUMS names %r, which is not a file of ours" % name)
    try:
        data = read(name, 1 << 28)
        found = hashlib.sha256(data).hexdigest()
    except OSError as error:
        found = error.strerror
    if found != digest:
        wrong.append("%s: expected %s, found %s" % (name, digest, found))
        continue
    if name == "envferry.run":
        continue
    copy = work / "tool" / name
    copy.parent.mkdir(exist_ok=True)
    copy.write_bytes(data)
    del data
if wrong:
    sys.exit("\n".join(wrong))
(work / "digest").write_text(hashlib.sha256(sums).hexdigest())
try:
    envelope = json.loads(read("attestation.json", 1 << 20))
    # DSSE: what is signed is the encoding of type and body together.
    kind, body = envelope["payloadType"].encode(), base64.b64decode(envelope["payload"])
    statement = json.loads(body)
    subjects = {one["name"]: one["digest"].get("sha256") for one in statement["subject"]}
    about = statement["predicateType"]
    signatures = [base64.b64decode(one["sig"]) for one in envelope["signatures"][:64]]
except FileNotFoundError:
    sys.exit(0)
except OSError as error:
    sys.exit("attestation.json: %s" % error.strerror)
except (AttributeError, LookupError, RecursionError, TypeError, ValueError):
    sys.exit("attestation.json is damaged")
if about != "urn:envferry:tool:1":
    sys.exit("attestation.json is about something else: %r" % (about,))
if subjects.get("SHA256SUMS") != hashlib.sha256(sums).hexdigest():
    sys.exit("attestation.json is about another SHA256SUMS")
(work / "message").write_bytes(b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(body), body))
for number, signature in enumerate(signatures):
    (work / ("signature-%d" % number)).write_bytes(signature)
END

# is_signed: whether a trusted key signed the files.
is_signed() {
    for key in "$keys"/*.pub; do
        for signature in "$work"/signature-*; do
            [ -f "$signature" ] && openssl pkeyutl -verify -pubin -inkey "$key" -rawin \
                -in "$work/message" -sigfile "$signature" >/dev/null 2>&1 && return 0
        done
    done
    return 1
}
set +f
# A place that is there, or that this user may not look into, was meant to hold keys.
if [ -z "$has_keys" ] && [ "$keys" != /dev/null ] && "$python" -I - "$keys" <<'END'; then is_required=yes; fi
import os, pathlib, sys
keys = pathlib.Path(sys.argv[1])
try:
    os.listdir(keys)
except FileNotFoundError:
    sys.exit(not any(os.path.islink(place) and not os.path.exists(place) for place in (keys, *keys.parents)))
except OSError:
    pass
END
if [ -n "$allow_unsigned" ]; then
    printf 'warning: the signature of these files is not checked (--allow-unsigned)\n' >&2
elif [ -n "$has_keys" ]; then
    openssl pkeyutl -help 2>&1 | grep -q -e -rawin ||
        fail "this host trusts keys, but has no openssl 3 to check these files" "run \`envferry verify $here\` with the installed envferry, $accept"
    is_signed || fail "these files are not signed by a key of $keys" "export them with --sign-key, $accept"
    printf 'signed by a key of %s\n' "$keys"
elif [ -n "$is_required" ]; then
    fail "this host requires signatures, but has no keys in $keys" "copy the public key there as NAME.pub, $accept"
else
    printf 'warning: signature not verified: this host trusts no keys (%s)\n' "$keys" >&2
    printf 'SHA-256 of SHA256SUMS, to compare with what you were told: %s\n' "$(cat "$work/digest")" >&2
fi

requirements=$work/tool/requirements-$version.txt
known=$(cd -- "$work/tool" && printf '%s ' requirements-*.txt | sed 's/requirements-//g; s/\.txt//g')
[ -f "$requirements" ] || fail "$python is python $version, these wheels are for $known" \
    "PYTHON=python3.X sh $0, or export again with --python $version"
wanted=$(cat "$work/tool/machine.txt")
[ "$machine" = "$wanted" ] || fail "this machine is $machine, these wheels are for $wanted" \
    "export again with another --platform"

if [ -e "$target" ] && [ ! -f "$target/pyvenv.cfg" ] && [ -n "$(ls -A "$target")" ]; then
    fail "$target holds something else" "name another directory: sh $0 DIRECTORY"
fi
# venv keeps what it finds under the first names: another version of Python, or anything at all.
# Without pip: Debian has no ensurepip unless python3-venv is there. pip runs out of its wheel.
python=$("$python" -I -c 'import sys; print(getattr(sys, "_base_executable", "") or sys.executable)')
{
    rm -f -- "$target/bin/python" "$target/bin/python3" "$target/bin/python$version" &&
        "$python" -I -m venv --without-pip "$target"
} || fail "$python cannot make a venv at $target" "is the place writable, and python complete?"
for pip in "$work"/tool/wheels/pip-*.whl; do :; done
# Neither settings of pip nor its variables: where packages come from is decided here.
PIP_CONFIG_FILE=/dev/null "$target/bin/python" -I "$pip/pip" --isolated install --quiet --no-index \
    --find-links "$work/tool/wheels" --require-hashes --no-cache-dir --disable-pip-version-check \
    --no-input --root-user-action ignore -r "$requirements" ||
    fail "pip could not install the wheels" "see what it says above"

"$target/bin/python" -I -m envferry --version
show_next
