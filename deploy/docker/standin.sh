#!/usr/bin/env bash
# Write a root file system that stands in for python:3.13-slim where no registry of images is
# reached: minimal Debian of debootstrap, with a copy of this machine's CPython in /usr/local.
#
#   deploy/docker/standin.sh PYTHON FILE.tar
#
# It differs from the real image in the patch releases of Debian and CPython, and in size: Debian's
# documentation and translations are not removed.
set -euo pipefail
prefix="$("$1" -c 'import sys; print(sys.base_prefix)')"
name="$("$1" -c 'import sys; print(f"python3.{sys.version_info.minor}")')"
libraries=ca-certificates,libbz2-1.0,libexpat1,libffi8,liblzma5,libncursesw6,libreadline8,libsqlite3-0,libssl3,libuuid1,zlib1g

root="$(mktemp --directory)"
trap 'rm -rf "$root"' EXIT
debootstrap --variant=minbase --include="$libraries" bookworm "$root" >"$2.log" 2>&1 || { tail "$2.log"; exit 1; }
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/*

local="$root/usr/local"
cp -P "$prefix"/lib/libpython3*.so* "$local/lib/" 2>/dev/null || true
cp -rP "$prefix/lib/$name" "$local/lib/"
cp "$prefix/bin/$name" "$local/bin/"
ln -s "$name" "$local/bin/python3"
ln -s python3 "$local/bin/python"
# As the real image does.
rm -rf "$local/lib/$name"/{test,idlelib,tkinter,turtledemo} "$local/lib/$name"/config-*/*.a
find "$local" -name __pycache__ -prune -exec rm -rf {} +
find "$local/lib/$name/site-packages" -mindepth 1 -maxdepth 1 ! -name 'pip*' -exec rm -rf {} +
chroot "$root" ldconfig
tar --create --file "$2.new" --directory "$root" --one-file-system .
mv "$2.new" "$2"
