#!/bin/busybox sh
# SPDX-License-Identifier: BSD-3-Clause
# First process of the guest: load the modules, put a writable layer on the host's files, run
# /command there, and hand out its status. Binds no device to a driver.
# The kernel's command line sets: terminal (a tty for an interactive command, or empty).

/bin/busybox --install -s /bin
export PATH=/bin

# Leave QEMU by its isa-debug-exit device, with the status (value << 1) | 1. From 0x20 on, as QEMU
# itself ends with 0 after a panic and with 1 after a wrong option. See status() in runner.py.
leave() {
    value=$((0x20 + ($1 < 90 ? $1 : 90)))
    printf "\\x$(printf %x $value)" | dd of=/dev/port bs=1 seek=244 2>/dev/null
    poweroff -f
}

fail() {
    echo "init: $*" >/dev/console
    poweroff -f
}

mount_kernel_files() { # below the folder $1
    mkdir -p "$1/proc" "$1/sys" "$1/dev"
    mount -t proc proc "$1/proc" && mount -t sysfs sysfs "$1/sys" &&
        mount -t devtmpfs devtmpfs "$1/dev"
}

mkdir -p /lower /layer /new
mount_kernel_files "" || fail "no /proc, /sys or /dev"
for module in /modules/*; do
    insmod "$module" || fail "$module does not load"
done
dmesg -n 8 # the boot is over: from here on the serial log has all messages

mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,ro,cache=loose host /lower ||
    fail "the host's files are not there"
mount -t tmpfs layer /layer && mkdir /layer/upper /layer/work &&
    mount -t overlay -o lowerdir=/lower,upperdir=/layer/upper,workdir=/layer/work root /new ||
    fail "no writable layer"
mount_kernel_files /new || fail "no /proc, /sys or /dev in the new root"
mkdir -p /new/dev/shm /new/dev/pts /new/run
mount -t tmpfs shm /new/dev/shm
mount -t devpts -o mode=620,ptmxmode=666 devpts /new/dev/pts
mount -t tmpfs run /new/run && mkdir /new/run/out /new/run/lock
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=none out /new/run/out ||
    fail "the output folder is not there"
for link in fd:/proc/self/fd stdin:fd/0 stdout:fd/1 stderr:fd/2; do
    ln -sf "${link#*:}" "/new/dev/${link%%:*}"
done
chmod 1777 /new/dev/shm
hostname guest
ifconfig lo up
cp /command /new/run/command

if [ -n "$terminal" ]; then
    setsid -c chroot /new /bin/sh /run/command <"/dev/$terminal" >"/dev/$terminal" 2>&1
else
    setsid chroot /new /bin/sh /run/command </dev/null >/new/run/out/console.txt 2>&1
fi
code=$?
dmesg >/new/run/out/dmesg.txt
echo $code >/new/run/out/exitcode
leave $code
