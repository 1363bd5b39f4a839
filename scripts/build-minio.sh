#!/bin/sh
# Builds a real MinIO from its Go module, once: the binary is kept between runs, outside the
# tree. Prints its path. Needs Go; the first build takes some minutes.
set -eu

version=v0.0.0-20260212201848-7aac2a2c5b7c
bin="${XDG_CACHE_HOME:-$HOME/.cache}/tunnelsync/bin"
stamp="$bin/minio.version"

if [ -x "$bin/minio" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$version" ]; then
    echo "$bin/minio"
    exit 0
fi
if ! command -v go >/dev/null 2>&1; then
    echo "error: MinIO is built with Go, and there is no 'go' on the PATH" >&2
    echo "  hint: install Go 1.24 or later, or run 'make test', which needs only Python" >&2
    exit 1
fi
echo "building MinIO $version (once, some minutes) ..." >&2
mkdir -p "$bin"
build="$(mktemp -d "$bin/build.XXXXXX")"
trap 'rm -rf "$build"' EXIT
trap 'exit 130' INT TERM
# Built aside and renamed, so that a build cut off leaves nothing that looks whole.
GOBIN="$build" go install "github.com/minio/minio@$version"
mv -f "$build/minio" "$bin/minio"
echo "$version" >"$stamp"
echo "$bin/minio"
