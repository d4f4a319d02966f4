#!/usr/bin/env bash
# Writes what `kubectl apply -k deploy/kubernetes` and `…/cleanup` apply, from the chart and deploy/kubernetes/values.yaml.
# With --check it writes nothing, and fails if a file is another; where no helm is at hand it says so and passes.
set -euo pipefail
cd "$(dirname "$0")/.."

render() { # VALUE…
  echo "# Made by scripts/render-manifests.sh from deploy/chart and values.yaml: change those, and run it again."
  # The oldest Kubernetes that the chart is for, so that nothing is in it which that does not know.
  "$helm" template weightless deploy/chart --namespace weightless --kube-version 1.27 --values deploy/kubernetes/values.yaml "$@" \
    | sed -e '/^# Source:/d' -e '/^ *helm.sh\/chart:/d' -e '/^ *app.kubernetes.io\/managed-by:/d' -e 's/ *$//'
}

check() { # FILE VALUE…
  if ! render "${@:2}" | cmp --silent - "$1"; then
    echo "$1 is not what the chart says: run scripts/render-manifests.sh" >&2
    exit 1
  fi
}

write() { # FILE VALUE…
  render "${@:2}" >"$1.new"
  mv "$1.new" "$1"
}

if [ "${1:-}" = --check ]; then
  do=check
  if ! helm=$(scripts/helm.sh --at-hand); then
    echo "manifests: not compared with the chart, for there is no helm (scripts/helm.sh builds one)" >&2
    exit 0
  fi
else
  do=write
  helm=$(scripts/helm.sh)
fi
$do deploy/kubernetes/weightless.yaml
$do deploy/kubernetes/cleanup/cleanup.yaml --set cleanup.enabled=true
