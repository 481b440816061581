#!/usr/bin/env bash
# Attacks the REST gateway with ZAP: every operation of openapi.json, and the pages. A warning fails it, too.
# Reports go to dist/zap. It starts a service with an empty database, and needs docker.
set -euo pipefail
cd "$(dirname "$0")/../.."
image=ghcr.io/zaproxy/zaproxy:2.17.0@sha256:781a2bdaea47324e7bab583e2263f21d257b0aee61ed51521a5be45f5f5081ef
address=http://127.0.0.1:8080

data=$(mktemp -d)
DATA_DIR=$data .venv/bin/python -m gateway up >"$data/log" 2>&1 &
trap 'kill %1; wait %1 || true; rm -rf "$data"' EXIT
timeout 60 bash -c "until curl --silent --fail $address/health; do sleep 1; done"

mkdir -p dist/zap && chmod 777 dist/zap && cp gateway/static/openapi.json deploy/scan/zap.tsv dist/zap
zap() { docker run --rm --network host --volume "$PWD/dist/zap:/zap/wrk" "$image" "$@"; }
failed=0
zap zap-api-scan.py -t openapi.json -f openapi -O "$address" -c zap.tsv -J api.json || failed=$?
zap zap-baseline.py -t "$address" -c zap.tsv -J pages.json || failed=$?
exit "$failed"
