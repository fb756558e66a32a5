#!/bin/sh
# Runs one module of Python's own tests where nothing of it stays, and prints what it said, a line
# `report`, and the report. As the first process of a kernel it first makes what an init would.
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
cd /tmp || exit
export PYTHONDONTWRITEBYTECODE=1 HOME=/tmp TMPDIR=/tmp
/usr/bin/python3 -m test -v --junit-xml report.xml "$1" < /dev/null 2>&1
echo report
cat report.xml
if [ $$ = 1 ]; then
    exec /usr/bin/python3 -c 'import ctypes; ctypes.CDLL(None).reboot(0x4321fedc)'
fi
