#!/usr/bin/env bash
# Names a base image for the Dockerfile, by what is at hand: BASE, if it is set; Debian's own slim
# image, if a registry answers; else one that debootstrap makes (Debian packages `debootstrap`;
# as root, or by fakechroot). Prints its name on standard output, and what it does on standard error.
set -euo pipefail
DOCKER=${DOCKER:-docker}
SUITE=${SUITE:-bookworm}
MIRROR=${MIRROR:-http://deb.debian.org/debian}
SLIM=debian:$SUITE-slim
MADE=plinth/base:$SUITE

have() { $DOCKER image inspect "$1" >/dev/null 2>&1; }

if [ -n "${BASE:-}" ]; then
  echo "$BASE"
  exit
fi
for name in "$SLIM" "$MADE"; do
  if have "$name"; then
    echo "$name"
    exit
  fi
done
if $DOCKER pull --quiet "$SLIM" >&2; then
  echo "$SLIM"
  exit
fi
command -v debootstrap >/dev/null || {
  echo "plinth: no registry has $SLIM, and debootstrap is not installed to make a base image;" \
    "install it, or name an image with BASE=" >&2
  exit 1
}
echo "plinth: no registry answers; debootstrap makes $MADE" >&2
folder=$(mktemp -d)
trap 'rm -rf --one-file-system "$folder"' EXIT
debootstrap --variant=minbase "$SUITE" "$folder" "$MIRROR" >&2
# What a container does not read, as Debian's own slim images leave it out.
rm -rf "$folder"/var/cache/apt/* "$folder"/var/lib/apt/lists/* "$folder"/var/log/* \
  "$folder"/usr/share/{doc,man,info,locale,groff,lintian,linda}/*
tar --directory "$folder" --one-file-system --create . \
  | $DOCKER import --change 'CMD ["bash"]' - "$MADE" >&2
echo "$MADE"
