#!/bin/sh
# Makes the virtual environment $1. Debian splits what this needs from python3 itself: as root it is installed, else named.
set -e
PYTHON=${PYTHON:-python3}

ready() {
  "$PYTHON" -c 'import ensurepip, os, sysconfig; assert os.path.exists(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null
}

if ! ready; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -q
    apt-get install -yq --no-install-recommends python3-venv python3-dev g++
  fi
  ready || { echo "aoq needs: apt-get install python3-venv python3-dev g++" >&2; exit 1; }
fi
[ -x "$1/bin/pip" ] || "$PYTHON" -m venv "$1"
