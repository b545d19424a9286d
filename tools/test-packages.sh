#!/bin/sh
# Programs that tests compare with or run in: root gets what is missing from apt.
set -eu
missing=
command -v lspci >/dev/null 2>&1 && command -v setpci >/dev/null 2>&1 || missing="$missing pciutils"
command -v qemu-system-x86_64 >/dev/null 2>&1 || missing="$missing qemu-system-x86"
[ -n "$missing" ] || exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "Installing$missing ..."
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    # shellcheck disable=SC2086 # a list of words
    apt-get install -qq -y --no-install-recommends $missing >/dev/null
else
    echo "Not installed:$missing. Tests that need them are skipped, or fail; as root:" >&2
    echo "    apt-get install$missing" >&2
fi
