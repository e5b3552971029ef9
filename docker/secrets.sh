#!/bin/sh
# Makes the secrets of compose.yaml once, in docker/secrets (or a folder that is given). The folder is
# its owner's alone; its files may be read by the containers' users, into which they are mounted.
set -eu
folder=${1:-$(dirname "$0")/secrets}
umask 077
mkdir -p "$folder"
chmod 700 "$folder"
for name in cluster-token redis-password ray-token api-key; do
  [ -s "$folder/$name" ] || od -An -N24 -tx1 /dev/urandom | tr -d ' \n' >"$folder/$name"
  chmod 444 "$folder/$name"
done
