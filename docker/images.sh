#!/usr/bin/env bash
# Builds Plinth's images and checks them: `make images`, or docker/images.sh [TARGET …].
#
#   BASE           base image (else see base.sh)          VERSION    tag; the project's own
#   PIP_CERT       authorities that pip trusts            REGISTRY   before the names: host/path/
#   PIP_CONFIG_FILE  a pip.conf with your index           DOCKER     the client
#   PIP_FIND_LINKS a folder of wheels; those of the lock are used before any index
#   TORCH_INDEX    where the CPU's torch comes from; empty once docker/wheels has it
#   SBOM           a folder for a bill of materials of each of Plinth's images
#   BUILD_NETWORK  of the build's own steps; `host` where the engine has no bridge
# The first two of pip's variables enter a build as secrets and are in no layer.
set -euo pipefail
cd "$(dirname "$0")/.."
export DOCKER=${DOCKER:-docker} DOCKER_BUILDKIT=1
VERSION=${VERSION:-$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)}
REGISTRY=${REGISTRY:-}
GATEWAY_LIMIT_MB=250

$DOCKER version --format '{{.Server.Version}}' >/dev/null || {
  echo "plinth: no Docker engine answers; start one, or name its socket with DOCKER_HOST" >&2
  exit 1
}
# Since 23 a client builds by its plugin, which some packages leave out; it says so when asked.
$DOCKER build --help >/dev/null 2>&1 || {
  echo "plinth: $(command -v "$DOCKER") can't build with BuildKit: install its buildx plugin, or" \
    "name a client that can with DOCKER=" >&2
  exit 1
}
targets=("$@")
[ $# -gt 0 ] || targets=(gateway cpu redis)

if [ -d "${PIP_FIND_LINKS:-}" ]; then
  for wheel in "$PIP_FIND_LINKS"/*.whl; do
    [ -e "$wheel" ] || continue
    name=$(basename "$wheel" | cut -d- -f1) release=$(basename "$wheel" | cut -d- -f2)
    if grep -qix "${name//_/[-_]}==${release%%+*}" requirements.lock; then
      cp --update "$wheel" docker/wheels/
    fi
  done
fi
arguments=(--file docker/Dockerfile --network "${BUILD_NETWORK:-default}")
arguments+=(--build-arg "BASE=$(docker/base.sh)" --build-arg "VERSION=$VERSION")
arguments+=(--build-arg "REVISION=$(git rev-parse HEAD 2>/dev/null || echo unknown)")
arguments+=(--build-arg "CREATED=$(date -u +%Y-%m-%dT%H:%M:%SZ)")
if [ -n "${TORCH_INDEX+set}" ] || compgen -G 'docker/wheels/torch-*.whl' >/dev/null; then
  arguments+=(--build-arg "TORCH_INDEX=${TORCH_INDEX:-}")
fi
[ ! -f "${PIP_CERT:-}" ] || arguments+=(--secret "id=ca,src=$PIP_CERT")
[ ! -f "${PIP_CONFIG_FILE:-}" ] || arguments+=(--secret "id=pip,src=$PIP_CONFIG_FILE")

for target in "${targets[@]}"; do
  echo "plinth: building $target"
  $DOCKER build "${arguments[@]}" --target "$target" --tag "${REGISTRY}plinth/$target:$VERSION" .
  if [ -n "${SBOM:-}" ] && [ "$target" != redis ]; then
    $DOCKER build "${arguments[@]}" --target sbom --build-arg "FLAVOUR=$target" --output "$SBOM" .
  fi
done

size() { $DOCKER image inspect --format '{{.Size}}' "$1"; }
base=$(docker/base.sh)
for target in "${targets[@]}"; do
  image=${REGISTRY}plinth/$target:$VERSION
  own=$((($(size "$image") - $(size "$base")) / 1000000))
  echo "plinth: $image has $own MB without its base"
  if [ "$target" = gateway ] && [ $own -ge $GATEWAY_LIMIT_MB ]; then
    echo "plinth: more than the $GATEWAY_LIMIT_MB MB that the gateway may have" >&2
    exit 1
  fi
done
