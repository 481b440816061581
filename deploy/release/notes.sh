#!/usr/bin/env bash
# Prints the notes of a release: the message of its tag, which says what an operator must do, and what
# was committed since the tag before: notes.sh TAG
set -euo pipefail
tag=$1
before=$(git describe --tags --abbrev=0 --match 'v*' "$tag^" 2>/dev/null || true)

git for-each-ref --format='%(contents:subject)%0a%0a%(contents:body)' "refs/tags/$tag"
printf '## Changes%s\n\n' "${before:+ since $before}"
git log --no-merges --reverse --format='- %s' "${before:+$before..}$tag"
