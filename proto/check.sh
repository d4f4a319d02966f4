#!/bin/sh
# Says whether csi/pb is what proto/generate.sh makes of proto/csi.proto; exit code 1 and a diff if it is not.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT

"$root/proto/generate.sh" "$fresh"
if ! diff --recursive --unified --exclude=__pycache__ "$root/csi/pb" "$fresh/csi/pb"; then
  echo "csi/pb is not up to date: run proto/generate.sh" >&2
  exit 1
fi
