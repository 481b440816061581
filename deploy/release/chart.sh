#!/usr/bin/env bash
# Packages the chart, pushes it to an OCI registry and signs it: chart.sh REGISTRY VERSION
set -euo pipefail
cd "$(dirname "$0")/../.."
registry=${1,,} version=${2#v}

.tools/bin/helm package deploy/helm/task-service --version "$version" --app-version "$version" --destination dist
pushed=$(.tools/bin/helm push "dist/task-service-$version.tgz" "oci://$registry/charts" 2>&1)
digest=$(grep -oE 'sha256:[0-9a-f]{64}' <<<"$pushed")
cosign sign --yes "$registry/charts/task-service@$digest"
echo "chart=$digest" | tee --append "${GITHUB_OUTPUT:-/dev/null}"
