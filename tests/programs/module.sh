#!/bin/sh
# Runs one module of Python's own tests where nothing of it stays, and prints what it said, a line
# `report`, and a line for each test. As the first process of a kernel it first makes what an init would.
if [ $$ = 1 ]; then
    export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 HOME=/tmp
    mount -t proc proc /proc
    mount -t sysfs sysfs /sys
    mount -t devtmpfs devtmpfs /dev
    mkdir -p /dev/pts /dev/shm
    mount -t devpts devpts /dev/pts
    mount -t tmpfs shm /dev/shm
    mount -t tmpfs run /run
    mount -t tmpfs tmp /tmp
    ip link set lo up
fi
here=$(dirname "$0")
cd /tmp || exit
export PYTHONDONTWRITEBYTECODE=1 HOME=/tmp TMPDIR=/tmp
/usr/bin/python3 "$here/module.py" "$1" < /dev/null 2>&1
echo report
cat results
if [ $$ = 1 ]; then
    # Stopping the kernel loses what the console has not written yet.
    exec /usr/bin/python3 -c 'import ctypes, termios
termios.tcdrain(1)
ctypes.CDLL(None).reboot(0x4321fedc)'
fi
