#!/usr/bin/env bash
# Makes this machine ready to run, test and develop Weightless: system packages, a virtual environment in .venv, /dev/fuse.
# Safe to run again, and quick when nothing is to be done. Packages are installed with apt where this is root or sudo is
# at hand; on other systems they are named, and the script goes on as far as it can. `setup.sh bench` adds what draws the benchmarks,
# `setup.sh emulation` what builds the image for another processor, `setup.sh cluster` what a real cluster is made of,
# `setup.sh selinux` what boots a machine with SELinux.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'setup: %s\n' "$*" >&2; }
extra=${1:-}
die() { say "$*"; exit 1; }
works() { "$@" >/dev/null 2>&1; }
has() { command -v "$1" >/dev/null 2>&1; }

# ---- which Python ----

# Prints the first Python that is new enough, the system's default before others. Shims of version managers exist for versions that
# are not installed, so a name counts only if it runs.
find_python() {
  local name
  for name in python3 python3.13 python3.12 python3.11 python3.14; do
    if works "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
      command -v "$name"
      return
    fi
  done
  return 1
}

has_python_headers() {
  works "$1" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))'
}

# ---- system packages ----

# What is missing for running (fuse3; a compiler, pkg-config and headers, since pyfuse3 comes as source) and for the tests
# (a registry and a pusher that are not ours, a TLS tool, ip, what builds the image).
missing_to_run() {
  has fusermount3 || echo fuse3
  works pkg-config --exists fuse3 || echo libfuse3-dev pkg-config
  has cc || has gcc || echo gcc libc6-dev
  if python=$(find_python); then
    has_python_headers "$python" || echo python3-dev
    has uv || works "$python" -c 'import ensurepip' || echo python3-venv
  else
    echo python3 python3-dev python3-venv
  fi
}

missing_to_test() {
  has docker-registry || echo docker-registry
  has skopeo || echo skopeo
  has openssl || echo openssl
  has ip || echo iproute2
  has strace || echo strace
  has curl || echo curl
  has kubectl || echo kubernetes-client
  has buildah || echo buildah
  # Only root's PATH leads there.
  has debootstrap || [ -x /usr/sbin/debootstrap ] || echo debootstrap
  if [ "$extra" = emulation ]; then
    # Of another processor than this one.
    has qemu-aarch64-static || has qemu-x86_64-static || echo qemu-user-static
  fi
  if [ "$extra" = selinux ]; then
    has qemu-system-x86_64 || echo qemu-system-x86
    has mke2fs || echo e2fsprogs
  fi
  if [ "$extra" = cluster ]; then
    has etcd || echo etcd-server
    [ -x /usr/lib/cni/ptp ] || echo containernetworking-plugins
    [ -x /bin/busybox ] || echo busybox-static
    # runc is compiled here.
    works pkg-config --exists libseccomp || echo libseccomp-dev
  fi
}

apt_install() {
  local root=()
  if [ "$(id -u)" -ne 0 ]; then
    has sudo || return 1
    # Without a terminal sudo could not ask for a password.
    if [ -t 0 ]; then root=(sudo); else root=(sudo -n); fi
  fi
  local install=("${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120
    install --yes --no-install-recommends "$@")
  say "installing $*"
  "${install[@]}" >&2 && return 0
  # A fresh machine has no package lists, or old ones.
  "${root[@]}" apt-get -o DPkg::Lock::Timeout=120 update >&2 && "${install[@]}" >&2
}

name_packages() {
  say "please install these, then run make setup again:"
  say "  Debian, Ubuntu:  apt-get install $*"
  say "  Fedora, RHEL:    dnf install fuse3 fuse3-devel pkgconf gcc python3-devel skopeo openssl iproute strace curl"
  say "  Alpine:          apk add fuse3 fuse3-dev pkgconf gcc musl-dev linux-headers python3-dev skopeo openssl iproute2 strace curl"
}

read -r -d '' -a needed < <(missing_to_run && printf '\0')
read -r -d '' -a wanted < <(missing_to_test && printf '\0')
if [ ${#needed[@]} -gt 0 ] || [ ${#wanted[@]} -gt 0 ]; then
  if ! has apt-get || ! apt_install "${needed[@]}" "${wanted[@]}"; then
    name_packages "${needed[@]}" "${wanted[@]}"
  fi
  read -r -d '' -a needed < <(missing_to_run && printf '\0')
  [ ${#needed[@]} -eq 0 ] || die "cannot go on without: ${needed[*]}"
  read -r -d '' -a wanted < <(missing_to_test && printf '\0')
  [ ${#wanted[@]} -eq 0 ] || say "some tests will be skipped without: ${wanted[*]}"
fi

# ---- the virtual environment ----

groups=()
imports='fuse, pyfuse3'
if [ "$extra" = bench ]; then
  groups=(--group bench)
  imports+=', matplotlib'
fi
state=$(cat pyproject.toml uv.lock scripts/setup.sh | cksum)
if [ "$(cat .venv/.ready 2>/dev/null)" != "$state" ] || ! works .venv/bin/python -c "import $imports"; then
  if works .venv/bin/python -c ''; then
    python=.venv/bin/python
  else
    python=$(find_python) || die "Python 3.11 or newer was not found"
  fi
  unset VIRTUAL_ENV
  if works uv --version; then
    uv=(uv sync)
  else
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    if ! works .venv/bin/uv --version; then
      # An environment that uv made, on a machine where there is no uv any more, has no pip.
      works .venv/bin/python -m pip --version || works .venv/bin/python -m ensurepip
      .venv/bin/python -m pip install --quiet uv
    fi
    # Inexact, for uv lives there now and is not in the lock file.
    uv=(.venv/bin/uv sync --inexact)
  fi
  say "installing the Python packages of uv.lock into .venv (pyfuse3 is compiled)"
  UV_PROJECT_ENVIRONMENT=.venv "${uv[@]}" --locked --quiet --python "$python" "${groups[@]}"
  echo "$state" >.venv/.ready
fi

# ---- the device ----

if [ ! -e /dev/fuse ] && [ "$(id -u)" -eq 0 ]; then
  works modprobe fuse || true
  # In a container the module may be loaded without udev having made the node.
  if [ ! -e /dev/fuse ] && [ -e /sys/class/misc/fuse/dev ]; then
    works mknod -m 0666 /dev/fuse c 10 229 || true
  fi
fi
[ -e /dev/fuse ] || say "/dev/fuse is missing, so nothing can be mounted: load the module (modprobe fuse), or give the container --device /dev/fuse"
