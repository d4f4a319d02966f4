#!/bin/sh
# Makes csi/pb from proto/csi.proto: messages, services and their types. Run from anywhere; with an argument, the package is
# written below that directory instead of the checkout (proto/check.sh does so).
# PYTHON names an interpreter that has the `dev` dependencies; the checkout's own environment by default.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
out=${1:-$root}
python=${PYTHON:-$root/.venv/bin/python}
plugins=$("$python" -c 'import sysconfig; print(sysconfig.get_path("scripts"))')

# The virtual path makes the generated modules import each other as csi.pb.csi_pb2, without edits afterwards.
mkdir -p "$out/csi/pb"
"$python" -m grpc_tools.protoc \
  --proto_path="csi/pb=$root/proto" \
  --plugin="protoc-gen-mypy=$plugins/protoc-gen-mypy" \
  --plugin="protoc-gen-mypy_grpc=$plugins/protoc-gen-mypy_grpc" \
  --python_out="$out" --grpc_python_out="$out" --mypy_out="quiet:$out" --mypy_grpc_out="quiet:$out" \
  csi/pb/csi.proto
echo '"""Generated from proto/csi.proto by proto/generate.sh; not to be edited."""' > "$out/csi/pb/__init__.py"
