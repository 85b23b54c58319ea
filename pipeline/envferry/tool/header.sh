#!/bin/sh
{ exec 4>&2 2>/dev/null; trap 'printf "error: %s is not complete\nhint: copy it again\n" "$0" >&4; exit 8' EXIT; }
# That line speaks for a file that was cut in this script: what the shell makes of the rest is nothing, or an error of
# syntax, and both end here. So there are only functions below, and the last line calls one, which takes it back.
#
# envferry @VERSION@ for @PLATFORM@, with its own Python @PYTHON@: one file for hosts without Python.
#
#   sh envferry.run install REF …               the commands of envferry; `--help` lists them
#   sh envferry.run --info                      what is in this file, and what it needs
#   sh envferry.run --verify KEY.pub [FILE]     whether that key signed it, or FILE; needs openssl 3
#
# It needs sh, tar, gzip and the glibc of the host. The first start unpacks it, once, into a directory that only
# its owner and root can write to: ENVFERRY_TOOL_DIR, or the first of `places` below that can be used.
version='@VERSION@' platform='@PLATFORM@' machine='@MACHINE@' python='@PYTHON@'
loader='@LOADER@' glibc='@GLIBC@' libraries='@LIBRARIES@'
payload_sha256='@SHA256@' payload_bytes='@BYTES@' unpacked_mb='@UNPACKED_MB@'
id=$version-@ID@
# Root unpacks for everybody; others look there first. Caches come before folders that are emptied from time to time.
shared=/var/lib/envferry/tool

fail() {
    printf 'error: %s\nhint: %s\n' "$1" "$2" >&2
    exit "${3:-11}"
}

# No program of the current directory may run: it may be anybody's.
keep_absolute_path() {
    absolute=
    IFS=:
    for entry in ${PATH-}; do
        case $entry in /*) absolute=${absolute:+$absolute:}$entry ;; esac
    done
    unset IFS
    PATH=${absolute:-/usr/local/bin:/usr/bin:/bin}
    export PATH
    unset CDPATH
}

find_self() {
    self=$0
    case $self in
        /*) ;;
        *) self=$PWD/$self ;;
    esac
    [ -r "$self" ] || fail "this script does not know its own file: $self cannot be read" \
        "start it by its path: sh /path/to/envferry.run"
}

places() {
    if [ -n "${ENVFERRY_TOOL_DIR-}" ]; then
        printf '%s\n' "$ENVFERRY_TOOL_DIR"
        return
    fi
    if [ "$uid" = 0 ]; then
        printf '%s\n' "$shared" /opt/envferry/tool
    elif [ -n "${XDG_CACHE_HOME-}" ]; then
        printf '%s\n' "$XDG_CACHE_HOME/envferry/tool"
    elif [ -n "${HOME-}" ]; then
        printf '%s\n' "$HOME/.cache/envferry/tool"
    fi
    printf '%s\n' "/var/tmp/envferry-$uid"
    case ${TMPDIR-} in '' | /tmp | /tmp/ | /var/tmp | /var/tmp/) ;; *) printf '%s\n' "$TMPDIR/envferry-$uid" ;; esac
    printf '%s\n' "/tmp/envferry-$uid" "/dev/shm/envferry-$uid"
}

# is_private DIRECTORY: whether only its owner (we, or root) and root can change what lies there; why not, in $reason.
# Every folder above it counts: who may rename one may put another in its place.
is_private() {
    physical=$(cd -P -- "$1" 2>/dev/null && pwd -P) || {
        reason='cannot be entered'
        return 1
    }
    parents=/ path=
    rest=${physical#/}
    while [ -n "$rest" ]; do
        path=$path/${rest%%/*}
        case $rest in */*) rest=${rest#*/} ;; *) rest= ;; esac
        parents="$parents
$path"
    done
    IFS='
'
    # shellcheck disable=SC2086  # one word a line
    listed=$(LC_ALL=C ls -ldn -- $parents 2>/dev/null) || {
        unset IFS
        reason='cannot be looked at'
        return 1
    }
    for line in $listed; do
        unset IFS
        is_safe_line "$line" || return 1
    done
    unset IFS
    # The last line is the directory itself: not even a sticky one will do.
    case $line in
        d????-??-*) ;;
        *)
            reason='can be written to by other users'
            return 1
            ;;
    esac
}

is_safe_line() {
    # shellcheck disable=SC2086  # the columns of ls
    set -- $1
    case $3 in
        0 | "$uid") ;;
        *)
            # In a user namespace, whom it does not know is shown as nobody.
            if [ "$3" != "$overflow_uid" ]; then
                shift 8
                reason="belongs to another user, or $* does"
                return 1
            fi
            ;;
    esac
    case $1 in
        d????-??-* | d????????[tT]*) ;;
        *)
            shift 8
            reason="can be changed by other users, or $* can"
            return 1
            ;;
    esac
}

find_overflow_uid() {
    overflow_uid=none
    if [ -r /proc/self/uid_map ]; then
        read -r inside outside count </proc/self/uid_map || :
        case "${inside-} ${outside-} ${count-}" in
            '0 0 4294967295') ;;
            *) overflow_uid=65534 ;;
        esac
    fi
}

# is_usable DIRECTORY: make it, and try whether programs run there; why not, in $reason.
is_usable() {
    case $1 in
        /*) ;;
        *)
            reason='is not an absolute path'
            return 1
            ;;
    esac
    case $1 in
        *[!A-Za-z0-9/._+@~=,-]*)
            reason='has blanks or special characters in its path'
            return 1
            ;;
    esac
    mkdir -p -- "$1" 2>/dev/null || {
        reason='cannot be made'
        return 1
    }
    is_private "$1" || return 1
    try=$physical/.try-$$
    if ! { printf '#!/bin/sh\nexit 0\n' >"$try"; } 2>/dev/null; then
        rm -f -- "$try" 2>/dev/null || :
        reason='cannot be written to'
        return 1
    fi
    chmod 755 "$try"
    if ! "$try" 2>/dev/null; then
        rm -f -- "$try"
        reason='is on a file system where no program may run (noexec)'
        return 1
    fi
    rm -f -- "$try"
}

# host_glibc: print the version of the host's glibc, if it can be found out.
host_glibc() {
    for libc in /lib64/libc.so.6 "/lib/$machine-linux-gnu/libc.so.6" /usr/lib64/libc.so.6 \
        "/usr/lib/$machine-linux-gnu/libc.so.6" /lib/libc.so.6 /usr/lib/libc.so.6; do
        [ -f "$libc" ] || continue
        said=$("$loader" "$libc" 2>/dev/null) || continue
        case $said in
            *'stable release version '[0-9]*)
                said=${said#*stable release version }
                printf '%s\n' "${said%%[!0-9.]*}"
                return
                ;;
        esac
    done
}

require_host() {
    here=$(uname -m)
    case $here in
        x86_64) other="make one on a build machine: \`envferry tool FILE --platform linux-64\`" ;;
        aarch64) other="make one on a build machine: \`envferry tool FILE --platform linux-aarch64\`" ;;
        *) other="envferry has no such file for this machine: use \`pip install envferry\` there" ;;
    esac
    [ "$here" = "$machine" ] || fail "this machine is $here, this file is for $machine" "$other" 11
    [ -x "$loader" ] || fail "this system has no $loader: it has another C library than glibc, such as musl, or none" \
        "use a system with glibc $glibc or newer, or \`pip install envferry\` there" 11
    found=$(host_glibc)
    found=${found%.}
    [ -n "$found" ] || return 0 # what is unpacked is tried out before it is used
    if [ "${found%%.*}" -lt "${glibc%%.*}" ] ||
        { [ "${found%%.*}" -eq "${glibc%%.*}" ] && minor=${found#*.} && [ "${minor%%.*}" -lt "${glibc#*.}" ]; }; then
        fail "this system has glibc $found, this file needs $glibc or newer" \
            "make one with an older Python: \`envferry tool FILE --interpreter\`, or use tool/install.sh with a Python of this host" 11
    fi
}

# open_payload: let descriptor 3 read what follows the line that ends this script. `read` takes no byte more than
# a line, so neither tail nor dd is needed.
open_payload() {
    exec 3<"$self"
    while IFS= read -r line <&3; do
        [ "$line" != '#payload' ] || return 0
    done
    fail "$self is not complete" "copy it again" 8
}

require_intact() {
    if command -v sha256sum >/dev/null 2>&1; then
        open_payload
        found=$(sha256sum <&3)
    elif command -v openssl >/dev/null 2>&1; then
        open_payload
        found=$(openssl dgst -sha256 -r <&3)
    else
        return 0 # gzip's own checksum finds what damages by chance
    fi
    [ "${found%% *}" = "$payload_sha256" ] ||
        fail "$self is damaged: SHA-256 of its content expected $payload_sha256, found ${found%% *}" "copy it again" 8
}

# remove_leftovers: remove what processes of this host left that were killed while they unpacked.
remove_leftovers() {
    set +f
    for old in "$physical"/.new-"$host"-*; do
        pid=${old##*-}
        case $pid in *[!0-9]*) continue ;; esac
        kill -0 "$pid" 2>/dev/null || rm -rf -- "$old"
    done
    set -f
}

# show_first COUNT TEXT: print the first lines of a text on stderr.
show_first() {
    printf '%s\n' "$2" | while IFS= read -r line && [ "${shown:=0}" -lt "$1" ]; do
        printf '%s\n' "$line"
        shown=$((shown + 1))
    done >&2
}

unpack() {
    require_host
    for command in tar gzip; do
        command -v "$command" >/dev/null 2>&1 || fail "$command is not installed" "install it: envferry.run unpacks itself with it"
    done
    umask 022
    refused=
    chosen=
    IFS='
'
    for place in $(places); do
        unset IFS
        if is_usable "$place"; then
            chosen=$physical
            break
        fi
        refused="$refused
  $place $reason"
    done
    unset IFS
    [ -n "$chosen" ] || fail "envferry.run finds no place to unpack itself:$refused" \
        "name a directory of your own on a file system where programs may run: ENVFERRY_TOOL_DIR=/path"
    require_intact
    host=$(uname -n)
    remove_leftovers
    new=$chosen/.new-$host-$$
    trap 'rm -rf -- "$new"' EXIT
    trap 'exit 130' HUP INT TERM
    rm -rf -- "$new"
    mkdir -- "$new" "$new/tree"
    printf 'unpacking envferry %s into %s (once, %s MB)\n' "$version" "$chosen/$id" "$unpacked_mb" >&2
    open_payload
    # tar names every file that does not fit on the disk: the first three will do.
    said=$({ { gzip -dc <&3 || : >"$new/broken"; } | tar -xof - -C "$new/tree" || : >"$new/broken"; } 2>&1)
    exec 3<&-
    if [ -e "$new/broken" ]; then
        rm -rf -- "$new"
        show_first 3 "$said"
        fail "envferry.run cannot be unpacked into $chosen" \
            "is there room for $unpacked_mb MB? ENVFERRY_TOOL_DIR=/path names another place; is the file complete? copy it again"
    fi
    if ! (cd -- "$new/tree" && name_origin "$new/tree" && @CHECK@) >"$new/said" 2>&1; then
        cat -- "$new/said" >&2 || :
        fail "envferry does not start on this system, see above" "it needs glibc $glibc or newer${libraries:+, and $libraries}" 11
    fi
    # A rename: another process may have done the same meanwhile, and then its tree stays.
    mkdir -p -- "$chosen/$id"
    mv -f -- "$new/tree" "$chosen/$id/" 2>/dev/null || :
    is_private "$chosen/$id/tree" || fail "$new/tree cannot be moved to $chosen/$id, which ${reason}" \
        "ENVFERRY_TOOL_DIR=/path names another place"
    rm -rf -- "$new"
    trap - EXIT HUP INT TERM
    umask "$umask"
    tree=$chosen/$id/tree
}

# name_origin TREE: without /proc the loader cannot tell where a program is, and not find its libraries: ld.so(8).
name_origin() {
    [ -e /proc/self/exe ] || export LD_ORIGIN_PATH="$1/bin"
}

# find_tree: set $tree to where this file was unpacked before; what other users could have changed does not count.
find_tree() {
    tree=
    IFS='
'
    for place in ${ENVFERRY_TOOL_DIR:-$shared} $(places); do
        unset IFS
        case $place in /*) ;; *) continue ;; esac
        if [ -d "$place/$id/tree" ] && is_private "$place/$id/tree"; then
            tree=$physical
            return
        fi
    done
    unset IFS
}

show_info() {
    find_tree
    printf 'envferry   %s\nplatform   %s\npython     %s\nglibc      %s or newer\n' "$version" "$platform" "$python" "$glibc"
    printf 'needs      %s\n' "sh, tar, gzip${libraries:+, $libraries}"
    printf 'content    %s bytes, SHA-256 %s\nunpacked   %s MB, %s\n' "$payload_bytes" "$payload_sha256" "$unpacked_mb" \
        "${tree:-not yet}"
}

# verify KEY [FILE]: check FILE.attestation.json, a DSSE envelope around an in-toto statement, as `envferry verify` does.
verify() {
    key=${1-} file=${2:-$self}
    [ -n "$key" ] || fail "--verify needs the file of a public key" "sh envferry.run --verify KEY.pub" 2
    [ -f "$key" ] || fail "$key is not the file of a public key" "sh envferry.run --verify KEY.pub" 2
    [ -f "$file" ] || fail "$file does not exist" "name the file to check" 7
    envelope=$file.attestation.json
    [ -f "$envelope" ] || fail "$file is not signed: $envelope is missing" "copy it from the folder that the file comes from" 8
    openssl pkeyutl -help 2>&1 | grep -q -e -rawin || fail "checking signatures needs openssl 3, which is not here" \
        "check on another machine: \`envferry verify $file --trusted-key $key\`"
    work=$(mktemp -d)
    trap 'rm -rf -- "$work"' EXIT
    trap 'exit 130' HUP INT TERM
    digest=$(openssl dgst -sha256 -r <"$file")
    # shellcheck disable=SC2020  # busybox knows no [x*]
    tr ',{}' '\n\n\n' <"$envelope" >"$work/lines"
    sed -n 's/^ *"payload": *"\([A-Za-z0-9+/=]*\)" *$/\1/p' "$work/lines" | openssl base64 -d -A >"$work/body"
    size=$(wc -c <"$work/body")
    kind=application/vnd.in-toto+json
    printf 'DSSEv1 %s %s %s ' "${#kind}" "$kind" "$((size))" | cat - "$work/body" >"$work/message"
    case $(cat -- "$work/body") in
        *'"predicateType":"urn:envferry:tool:1","subject":[{"digest":{"sha256":"'"${digest%% *}"'"},"name":"envferry.run"}]}') ;;
        *) fail "$file is not the file that $envelope is about" "do not run it: copy it again" 8 ;;
    esac
    sed -n 's/^ *"sig": *"\([A-Za-z0-9+/=]*\)" *$/\1/p' "$work/lines" >"$work/signatures"
    while read -r signature; do
        printf '%s' "$signature" | openssl base64 -d -A >"$work/signature"
        if openssl pkeyutl -verify -pubin -inkey "$key" -rawin -in "$work/message" -sigfile "$work/signature" >/dev/null 2>&1; then
            printf '%s is signed by %s\n' "$file" "$key"
            exit 0
        fi
    done <"$work/signatures"
    fail "$file is not signed by $key" "do not run it, or name the key of who made it" 8
}

main() {
    trap - EXIT
    exec 2>&4 4>&-
    set -euf
    umask=$(umask)
    keep_absolute_path
    find_self
    uid=$(id -u)
    find_overflow_uid
    case ${1-} in
        --info)
            show_info
            exit
            ;;
        --verify)
            shift
            verify "$@"
            ;;
    esac
    find_tree
    [ -n "$tree" ] || unpack
    # Hints and systemd units name this file.
    ENVFERRY_RUN_FILE=$self
    export ENVFERRY_RUN_FILE
    name_origin "$tree"
    exec @START@
}

{ main "$@"; exit 1; }
#payload
