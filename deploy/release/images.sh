#!/usr/bin/env bash
# Builds the images of the service and of the gateway: images.sh REGISTRY VERSION [--push]
#
# With --push, for two architectures, with SLSA provenance; each is then scanned for known vulnerabilities and
# secrets, signed, and gets its SBOM as an attestation.
# cosign signs without a key: with the identity that the pipeline has for this run. The digests are printed, and
# go to GITHUB_OUTPUT.
set -euo pipefail
cd "$(dirname "$0")/../.."
registry=${1,,} version=${2#v} push=${3:-}
mkdir -p dist

build() {
	local target=$1 image=$2
	shift 2
	docker buildx build --file deploy/docker/Dockerfile --target "$target" --tag "$image:$version" \
		--label "org.opencontainers.image.version=$version" \
		--label "org.opencontainers.image.revision=$(git rev-parse HEAD)" \
		--cache-from "type=registry,ref=$image:cache" "$@" .
}

publish() {
	local target=$1 image=$2 digest
	build "$target" "$image" --platform linux/amd64,linux/arm64 --push --metadata-file "dist/$target.json" \
		--attest type=provenance,mode=max --cache-to "type=registry,ref=$image:cache,mode=max"
	digest=$(python3 -c 'import json, sys; print(json.load(sys.stdin)["containerimage.digest"])' <"dist/$target.json")
	.tools/bin/trivy image --scanners vuln,secret --ignore-unfixed --exit-code 1 --quiet "$image@$digest"
	.tools/bin/syft scan "registry:$image@$digest" --quiet --output "cyclonedx-json=dist/$target.cdx.json"
	cosign sign --yes "$image@$digest"
	cosign attest --yes --type cyclonedx --predicate "dist/$target.cdx.json" "$image@$digest"
	echo "$target=$digest" | tee --append "${GITHUB_OUTPUT:-/dev/null}"
}

load() { build "$@" --load; }

run=load
if [ "$push" = --push ]; then
	run=publish
	grep --quiet --line-regexp "version = \"$version\"" pyproject.toml || {
		echo "$version is not the version in pyproject.toml" >&2
		exit 1
	}
fi
$run service "$registry/task-service"
$run gateway "$registry/task-service-gateway"
