#!/usr/bin/env bash
# Writes deploy/kubernetes/weightless.yaml, for `kubectl apply -k deploy/kubernetes`, from the chart and deploy/kubernetes/values.yaml.
# With --check it writes nothing, and fails if the file is another; where no helm is at hand it says so and passes.
set -euo pipefail
cd "$(dirname "$0")/.."
file=deploy/kubernetes/weightless.yaml

render() {
  echo "# Made by scripts/render-manifests.sh from deploy/chart and values.yaml: change those, and run it again."
  # The oldest Kubernetes that the chart is for, so that nothing is in it which that does not know.
  "$helm" template weightless deploy/chart --namespace weightless --kube-version 1.27 --values deploy/kubernetes/values.yaml \
    | sed -e '/^# Source:/d' -e '/^ *helm.sh\/chart:/d' -e '/^ *app.kubernetes.io\/managed-by:/d' -e 's/ *$//'
}

if [ "${1:-}" = --check ]; then
  if ! helm=$(scripts/helm.sh --at-hand); then
    echo "manifests: not compared with the chart, for there is no helm (scripts/helm.sh builds one)" >&2
    exit 0
  fi
  if ! render | cmp --silent - "$file"; then
    echo "$file is not what the chart says: run scripts/render-manifests.sh" >&2
    exit 1
  fi
else
  helm=$(scripts/helm.sh)
  render >"$file.new"
  mv "$file.new" "$file"
fi
