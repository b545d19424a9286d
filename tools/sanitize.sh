#!/bin/sh
# Run tests on the C parts built with AddressSanitizer and UndefinedBehaviorSanitizer:
#     sh tools/sanitize.sh .venv/bin/python tests/unit/test_mmio.py ...
# In a copy of the tree, so that nothing of the usual build is touched.  Leaks are not looked for:
# the interpreter has its own.
set -eu
case $1 in
    /*) python=$1 ;;
    *) python=$PWD/$1 ;;
esac
shift
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cp -R pyvfio tests examples setup.py pyproject.toml README.md "$copy"
rm -f "$copy"/pyvfio/native/_native*.so
cd "$copy"
checks="-fsanitize=address,undefined -fno-sanitize-recover=all"
CFLAGS="$checks -g -O1 -fno-omit-frame-pointer" LDFLAGS="$checks" \
    "$python" setup.py -q build_ext --inplace
# An access to memory that is not there is survived, and tests make some.
ASAN_OPTIONS=detect_leaks=0:handle_sigbus=0:handle_segv=0 UBSAN_OPTIONS=print_stacktrace=1 \
    LD_PRELOAD="$(cc -print-file-name=libasan.so) $(cc -print-file-name=libubsan.so)" \
    "$python" -m pytest "$@"
