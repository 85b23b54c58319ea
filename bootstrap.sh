#!/bin/sh
# Make a virtual environment with envferry and everything that its checks need. Run by `make`; safe to
# run again. VENV is its folder; DEPENDENCIES says which versions it gets: `locked` (requirements/dev.txt),
# `newest` or `lowest` of what pyproject.toml allows.
set -eu
cd "$(dirname "$0")"
python=${PYTHON:-python3}
venv=${VENV:-.venv}
dependencies=${DEPENDENCIES:-locked}
# uv trusts its own list of authorities; a site's own is in the system's.
if [ -e /etc/ssl/certs/ca-certificates.crt ]; then export UV_SYSTEM_CERTS="${UV_SYSTEM_CERTS:-1}"; fi

fail() {
  printf 'error: %s\nhint: %s\n' "$1" "$2" >&2
  exit 1
}

# install_package 'PACKAGE…' WHY: from the system when root, else say what to type.
# shellcheck disable=SC2086  # several packages are several words
install_package() {
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing $1 ($2)" >&2
    export DEBIAN_FRONTEND=noninteractive
    apt-get install -y -qq $1 >/dev/null 2>&1 ||
      { apt-get update -qq >/dev/null && apt-get install -y -qq $1 >/dev/null; } ||
      fail "apt-get could not install $1 ($2)" "install it by hand, then run make again"
  else
    fail "not installed: $1 ($2)" "sudo apt-get install -y $1"
  fi
}

# unpack_packages 'PACKAGE…' FOLDER: for tests only, so nothing is installed.
# shellcheck disable=SC2086  # several packages are several words
unpack_packages() {
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  chmod 755 "$scratch"  # apt downloads as a user of its own
  download() { (cd "$scratch" && apt-get download -qq $1 >/dev/null 2>&1); }
  download "$1" || { apt-get update -qq >/dev/null && download "$1"; } ||
    fail "apt-get could not download $1" "apt-get download $1"
  mkdir -p "$2"
  for package in "$scratch"/*.deb; do dpkg-deb -x "$package" "$2"; done
}

command -v "$python" >/dev/null || fail "$python is not installed" "sudo apt-get install -y python3"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') ||
  fail "$python does not run" "name another: make PYTHON=/path/to/python3.11"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
  fail "$python is Python $version, 3.10 or newer is needed" "make PYTHON=/path/to/python3.11"
missing='' why=''
if ! command -v bwrap >/dev/null; then
  missing=bubblewrap why="environments are built in its containers"
fi
venv_works() { [ -x "$venv/bin/python" ] && "$venv/bin/python" -c '' 2>/dev/null; }
if ! venv_works && ! "$python" -c 'import ensurepip' 2>/dev/null; then
  missing="${missing:+$missing }python$version-venv" why="${why:+$why; }makes Python's virtual environments"
fi
[ -z "$missing" ] || install_package "$missing" "$why"
if [ "${1:-}" = podman ]; then
  command -v podman >/dev/null || install_package podman "environments are built in its containers"
  command -v crun >/dev/null || install_package crun "runs podman's containers"
  command -v debootstrap >/dev/null || install_package debootstrap "makes the image to start from"
  exit
fi

if [ "${1:-}" = docker ]; then
  # Where no daemon answers, the tests start one of their own.
  docker info >/dev/null 2>&1 || command -v dockerd >/dev/null ||
    install_package docker.io "environments are built in its containers"
  command -v debootstrap >/dev/null || install_package debootstrap "makes the image to start from"
  exit
fi

if [ "${1:-}" = oci ]; then
  # A registry, and what takes images from one; without them their tests are skipped. Packages that
  # would start a service are only unpacked.
  unpacked=$PWD/$venv/oci
  for name in skopeo podman crun umoci; do
    command -v "$name" >/dev/null && continue
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
      install_package "$name" "takes images from a registry"
    else
      echo "no $name: images in registries are not tested with it (sudo apt-get install $name)" >&2
    fi
  done
  [ -x "$unpacked/usr/bin/docker-registry" ] && [ -x "$unpacked/usr/bin/ctr" ] && exit
  if ! command -v apt-get >/dev/null; then
    echo "no apt-get: registries are tested only if docker-registry is on PATH" >&2
    exit
  fi
  unpack_packages "docker-registry containerd runc" "$unpacked"
  exit
fi

if [ "${1:-}" = npm ]; then
  # Another S3 server that the store is tested with: without npm its tests are skipped.
  if ! command -v npm >/dev/null; then
    echo "no npm: the store is not tested with s3rver (sudo apt-get install npm)" >&2
    exit
  fi
  mkdir -p "$venv/npm"
  cmp -s tests/npm/package-lock.json "$venv/npm/package-lock.json" && exit
  # Like uv, npm trusts a list of its own; a site's authority is in the system's.
  if [ -f /etc/ssl/certs/ca-certificates.crt ]; then
    export NODE_EXTRA_CA_CERTS="${NODE_EXTRA_CA_CERTS:-/etc/ssl/certs/ca-certificates.crt}"
  fi
  cp tests/npm/package.json tests/npm/package-lock.json "$venv/npm/"
  npm ci --prefix "$venv/npm" --ignore-scripts --no-audit --no-fund --loglevel=error >&2 ||
    { rm "$venv/npm/package-lock.json"; fail "npm could not install s3rver" "see above"; }
  exit
fi

if [ "${1:-}" = hosts ]; then
  # What training hosts have and build machines need not: without it some tests are skipped.
  missing=''
  command -v busybox >/dev/null || missing="$missing busybox-static"
  command -v mksquashfs >/dev/null || missing="$missing squashfs-tools"
  # People have them as login shells.
  command -v zsh >/dev/null || missing="$missing zsh"
  command -v fish >/dev/null || missing="$missing fish"
  [ -z "$missing" ] || [ "$(id -u)" != 0 ] || (install_package "${missing# }" "hosts of the tests have them") || true
  for name in busybox mksquashfs zsh fish; do
    command -v "$name" >/dev/null || echo "no $name: some tests are skipped" >&2
  done
  exit
fi

if [ "${1:-}" = nginx ]; then
  # The cache of docs/mirrors.md is tested with it. Only unpacked: the package would start a service.
  unpacked=$PWD/$venv/nginx
  command -v nginx >/dev/null || [ -x /usr/sbin/nginx ] || [ -x "$unpacked/usr/sbin/nginx" ] && exit
  if ! command -v apt-get >/dev/null; then
    echo "no apt-get: the cache of docs/mirrors.md is tested only if nginx is on PATH" >&2
    exit
  fi
  unpack_packages "nginx" "$unpacked"
  exit
fi

if [ "${1:-}" = softhsm ]; then
  # A token in software, which keys of PKCS #11 are tested with. Only unpacked: its folder of tokens is ours.
  unpacked=$PWD/$venv/softhsm
  command -v softhsm2-util >/dev/null || [ -x "$unpacked/usr/bin/softhsm2-util" ] && exit
  if ! command -v apt-get >/dev/null; then
    echo "no apt-get: keys of PKCS #11 are tested only if softhsm2-util is on PATH" >&2
    exit
  fi
  unpack_packages "softhsm2 libsofthsm2" "$unpacked"
  exit
fi

if [ "${1:-}" = slurm ]; then
  # The prolog of docs/slurm is tested with it: as root only, for nodes are namespaces.
  command -v slurmctld >/dev/null && command -v slurmd >/dev/null && exit
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "no Slurm: its prolog is tested as a script only (as root: apt-get install slurmctld slurmd)" >&2
    exit
  fi
  # Nothing starts a daemon while a policy says no; one that is there is not ours to change.
  policy=/usr/sbin/policy-rc.d
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    trap 'rm -f "$policy"' EXIT
  fi
  install_package "slurmctld slurmd" "runs the prolog of docs/slurm"
  exit
fi

if [ "${1:-}" = ansible ] || [ "${1:-}" = rivals ]; then
  # Programs that tests and benchmarks run beside envferry, in virtual environments of their own.
  [ -x "$venv/bin/uv" ] || fail "$venv has no uv" "run ./bootstrap.sh first"
  if [ "$1" = rivals ] && ! command -v xxhsum >/dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
      install_package xxhash "verify is held against its xxhsum"
    else
      echo "no xxhsum: verify is not held against it (sudo apt-get install xxhash)" >&2
    fi
  fi
  cmp -s "requirements/$1.txt" "$venv/$1/installed.txt" && exit
  "$venv/bin/uv" venv -q --clear --python "$venv/bin/python" "$venv/$1"
  "$venv/bin/uv" pip install -q --python "$venv/$1/bin/python" --require-hashes -r "requirements/$1.txt"
  cp "requirements/$1.txt" "$venv/$1/installed.txt"
  exit
fi

if [ "${1:-}" = browser ]; then
  # Not every system has this package: without it the tests of the pages in a browser are skipped.
  for name in chromium chromium-browser google-chrome; do command -v "$name" >/dev/null && exit; done
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing chromium (opens the pages of envferry serve)" >&2
    export DEBIAN_FRONTEND=noninteractive
    apt-get install -y -qq chromium >/dev/null 2>&1 ||
      { apt-get update -qq && apt-get install -y -qq chromium; } >/dev/null 2>&1 || true
  fi
  command -v chromium >/dev/null ||
    echo "no Chromium: the pages are not tested in a browser (sudo apt-get install chromium)" >&2
  exit
fi

venv_works || "$python" -m venv --clear "$venv"
"$venv/bin/python" -m pip install -q --disable-pip-version-check --require-hashes -r requirements/uv.txt
# uv does not read pip's settings: a site's own index is passed on.
index=$("$venv/bin/python" -m pip config get global.index-url 2>/dev/null || true)
if [ -n "$index" ] && [ -z "${UV_DEFAULT_INDEX:-}" ]; then
  export UV_DEFAULT_INDEX="$index"
fi
if [ -f /etc/ssl/certs/ca-certificates.crt ]; then
  export UV_SYSTEM_CERTS="${UV_SYSTEM_CERTS:-1}"
fi
install() { "$venv/bin/uv" pip install -q --python "$venv/bin/python" "$@"; }
case $dependencies in
  locked) install --require-hashes -r requirements/dev.txt ;;
  newest) install --upgrade -r pyproject.toml --extra dev ;;
  lowest) install --upgrade --resolution lowest-direct -r pyproject.toml --extra dev ;;
  *) fail "DEPENDENCIES=$dependencies is not one of locked, newest, lowest" "leave it out" ;;
esac
install --no-deps --no-build-isolation -e .
touch "$venv/.ready"
