# Makes an image of a Debian with sysvinit, whose root's password is "span": IMAGE MIRROR. Needs root and debootstrap.
image=$1 mirror=$2
tree=$(mktemp -d "$image.XXXXXX")
trap 'rm -rf "$tree"' EXIT
debootstrap --variant=minbase --include=sysvinit-core,iproute2,e2fsprogs,login bookworm "$tree" "$mirror"
echo debian >"$tree/etc/hostname"
echo 'nameserver 10.0.2.3' >"$tree/etc/resolv.conf"
# A name that only this host knows is of use in the guest, too.
name=$(echo "$mirror" | sed 's,.*//,,; s,[:/].*,,')
getent hosts "$name" >>"$tree/etc/hosts" || :
printf '%s\n' id:2:initdefault: si::sysinit:/etc/init.d/rcS l0:0:wait:/etc/init.d/rc\ 0 l2:2:wait:/etc/init.d/rc\ 2 \
    l6:6:wait:/etc/init.d/rc\ 6 'co:2:respawn:/sbin/getty -L console 38400 dumb' >"$tree/etc/inittab"
echo root:span | chroot "$tree" chpasswd
truncate -s 2G "$image"
mkfs.ext4 -q -d "$tree" "$image"
