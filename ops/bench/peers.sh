#!/usr/bin/env bash
# Makes the peers' environments for ops/bench/align.py under .bench/: each on top of .venv, so that
# torch and transformers are the very same builds, with the peer's own packages before them.
set -euo pipefail
cd "$(dirname "$0")/../.."
base=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
make_peer() {
  local name=$1
  shift
  .venv/bin/python -m venv ".bench/$name"
  local site
  site=$(".bench/$name/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
  echo "$base" >"$site/plinth-base.pth"
  ".bench/$name/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps "$@"
}
make_peer trl trl==1.16.0 accelerate==1.15.0 datasets==5.2.0 dill multiprocess xxhash peft==0.21.2
# The last TRL that has a PPO.
make_peer trl-ppo trl==1.12.0 accelerate==1.15.0 datasets==5.2.0 dill multiprocess xxhash peft==0.21.2
