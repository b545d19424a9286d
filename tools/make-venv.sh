#!/bin/sh
# Make a virtual environment with a Python that can build pyvfio; root gets what is missing from apt.
set -eu
venv=$1

find_python() {
    for name in python3 python3.13 python3.12 python3.11; do
        if command -v "$name" >/dev/null 2>&1 && "$name" - <<'PY' 2>/dev/null
import os, sys, sysconfig
import ensurepip, venv
header = os.path.join(sysconfig.get_paths()["include"], "Python.h")
sys.exit(not (sys.version_info >= (3, 11) and os.path.exists(header)))
PY
        then
            echo "$name"
            return 0
        fi
    done
    return 1
}

ready() {
    command -v cc >/dev/null 2>&1 && find_python >/dev/null
}

packages="gcc libc6-dev python3 python3-dev python3-venv"
if ! ready; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        echo "Installing $packages ..."
        export DEBIAN_FRONTEND=noninteractive
        apt-get update -qq
        # shellcheck disable=SC2086 # a list of words
        apt-get install -qq -y --no-install-recommends $packages >/dev/null
    fi
    if ! ready; then
        echo "pyvfio needs a C compiler and Python 3.11 or newer with headers and venv." >&2
        echo "On Debian, as root:  apt-get install $packages" >&2
        exit 1
    fi
fi
python=$(find_python)
echo "Making a virtual environment in $venv with $("$python" --version) ..."
"$python" -m venv "$venv"
