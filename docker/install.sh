# Installs into the image's environment, /opt/plinth, from a stage that has the tools:
#   sh install.sh EXTRA            the dependencies of plinth-llm[EXTRA], and that they are the lock's
#   sh install.sh --only NAME      one package of the lock
#   sh install.sh --tools LOCK     packages of another lock, beside the image
#   sh install.sh                  Plinth itself, over the package of nothing
set -eu
[ ! -f /run/secrets/ca ] || export PIP_CERT=/run/secrets/ca
[ ! -f /run/secrets/pip ] || export PIP_CONFIG_FILE=/run/secrets/pip
locks="/src/requirements.lock ${ALSO_LOCKED:-}"
export PIP_CONSTRAINT="$locks" PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
export PIP_ROOT_USER_ACTION=ignore
# A torch for CPUs that lies there must not be taken for one for CUDA.
[ -n "${ALSO_LOCKED:-}" ] || export PIP_FIND_LINKS=/docker/wheels
[ -z "${TORCH_INDEX:-}" ] || export PIP_EXTRA_INDEX_URL="$TORCH_INDEX"

pip() { /opt/tools/bin/pip "$@"; }
into() { /opt/tools/bin/pip --python /opt/plinth/bin/python "$@"; }
# Plinth's wheel, built with the lock's own setuptools, not with what an index has today.
wheel() {
  rm -rf /wheel && pip wheel --quiet --no-deps --no-build-isolation --wheel-dir /wheel /src
  echo /wheel/plinth_llm-*.whl
}

case "${1:-}" in
--only)
  into install --no-deps "$2==$(sed -n "s/^$2==//p" /src/requirements.lock)"
  ;;
--tools)
  PIP_CONSTRAINT='' pip install --no-deps --requirement "$2"
  ;;
'')
  into install --no-deps --no-index --force-reinstall "$(wheel)"
  ;;
*)
  pip install --quiet "$(grep '^setuptools==' /src/requirements.lock)"
  into install "$(wheel)[$1]"
  # "+cpu" and the like are builds of one version.
  into freeze --all | sed 's/+.*//' | grep -v '^plinth-llm' >/tmp/there
  cat $locks >/tmp/locked
  if grep -vxiFf /tmp/locked /tmp/there; then
    echo "plinth: these are not in requirements.lock at this version" >&2
    exit 1
  fi
  ;;
esac
