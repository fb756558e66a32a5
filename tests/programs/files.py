# What POSIX and Linux promise of files, tried out in the directory that is named, which has to be empty and is
# afterwards. Prints a line for each promise that is not kept, else "posix". With "user", owners are left alone.
import os, sys, errno, stat, mmap, ctypes, time, fcntl
os.chdir(sys.argv[1])
os.umask(18)
c = ctypes.CDLL(None, use_errno=True)
bad = []

def check(what, ok):
    if not ok:
        bad.append(what)

def is_(what, got, want):
    if got != want:
        bad.append('%s: %r, not %r' % (what, got, want))

def no(e, call, *a, **k):
    try:
        call(*a, **k)
    except OSError as x:
        if x.errno != e:
            bad.append('%s%r: %s, not %s' % (call.__name__, a, errno.errorcode[x.errno], errno.errorcode[e]))
        return
    bad.append('%s%r: did not fail with %s' % (call.__name__, a, errno.errorcode[e]))

def rename2(a, b, f):
    if c.renameat2(-100, a.encode(), -100, b.encode(), f):
        raise OSError(ctypes.get_errno(), 'renameat2')

def put(n, t=b'x'):
    f = os.open(n, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 420)
    os.write(f, t)
    os.close(f)

# open
no(errno.ENOENT, os.open, 'none', os.O_RDONLY)
f = os.open('f', os.O_CREAT | os.O_EXCL | os.O_RDWR, 438)
is_('mode', stat.S_IMODE(os.fstat(f).st_mode), 420)
no(errno.EEXIST, os.open, 'f', os.O_CREAT | os.O_EXCL | os.O_RDWR)
no(errno.ENOTDIR, os.open, 'f/x', os.O_RDONLY)
no(errno.ENOTDIR, os.open, 'f', os.O_RDONLY | os.O_DIRECTORY)
is_('write', os.pwrite(f, b'hello', 3), 5)
is_('size', os.fstat(f).st_size, 8)
is_('hole', os.pread(f, 10, 0), b'\x00\x00\x00hello')
os.ftruncate(f, 2)
is_('shrunk', os.stat('f').st_size, 2)
os.ftruncate(f, 6)
is_('grown', os.pread(f, 10, 0), b'\x00' * 6)
no(errno.EINVAL, os.ftruncate, f, -1)
g = os.open('f', os.O_WRONLY | os.O_APPEND)
os.write(g, b'ab')
os.write(f, b'Q')
os.write(g, b'cd')
is_('append', os.pread(f, 20, 0), b'Q' + b'\x00' * 5 + b'abcd')
os.close(g)
no(errno.EBADF, os.read, os.open('f', os.O_WRONLY), 1)

# links
os.link('f', 'g')
is_('nlink', (os.stat('f').st_nlink, os.stat('g').st_nlink, os.fstat(f).st_nlink), (2, 2, 2))
check('same', os.stat('f').st_ino == os.stat('g').st_ino)
no(errno.EEXIST, os.link, 'f', 'g')
no(errno.ENOENT, os.link, 'none', 'h')
os.unlink('f')
is_('nlink of the other', os.stat('g').st_nlink, 1)
is_('nlink of the open', os.fstat(f).st_nlink, 1)
os.unlink('g')
is_('nlink of the gone', os.fstat(f).st_nlink, 0)
os.pwrite(f, b'still', 0)
is_('gone', os.pread(f, 5, 0), b'still')
os.fchmod(f, 384)
os.ftruncate(f, 1)
is_('gone size', os.fstat(f).st_size, 1)
os.close(f)
os.symlink('nowhere', 's')
no(errno.EEXIST, os.symlink, 'x', 's')
is_('readlink', os.readlink('s'), 'nowhere')
is_('lsize', os.lstat('s').st_size, 7)
no(errno.ENOENT, os.stat, 's')
no(errno.EINVAL, os.readlink, '.')
os.symlink('loop', 'loop')
no(errno.ELOOP, os.stat, 'loop')
os.symlink('x' * 4000, 'long')
is_('long link', len(os.readlink('long')), 4000)
os.lchown('s', os.getuid(), os.getgid())
os.utime('s', (5, 6), follow_symlinks=False)
is_('ltime', os.lstat('s').st_mtime, 6)
for n in ('s', 'loop', 'long'):
    os.unlink(n)

# dirs
os.mkdir('d', 511)
is_('dmode', stat.S_IMODE(os.stat('d').st_mode), 493)
no(errno.EEXIST, os.mkdir, 'd')
os.mkdir('d/e')
is_('dnlink', os.stat('d').st_nlink, 3)
no(errno.ENOTEMPTY, os.rmdir, 'd')
no(errno.ENOENT, os.rmdir, 'none2')
no(errno.EISDIR, os.unlink, 'd')
put('p')
no(errno.ENOTDIR, os.rmdir, 'p')
no(errno.EISDIR, os.open, 'd', os.O_WRONLY)
no(errno.EINVAL, os.rename, 'd', 'd/e/x')
no(errno.ENOTDIR, os.rename, 'd', 'p')
no(errno.EISDIR, os.rename, 'p', 'd')
os.mkdir('o')
os.rename('d', 'o')
is_('moved', os.listdir('o'), ['e'])
os.mkdir('d2')
no(errno.ENOTEMPTY, os.rename, 'd2', 'o')
os.rmdir('d2')
fd = os.open('o', os.O_RDONLY)
os.fsync(fd)
os.fchmod(fd, 448)
is_('fchmod dir', stat.S_IMODE(os.stat('o').st_mode), 448)
os.close(fd)

# rename flags
put('a', b'A')
put('b', b'B')
no(errno.EEXIST, rename2, 'a', 'b', 1)
rename2('a', 'b', 2)
is_('exchanged', (open('a').read(), open('b').read()), ('B', 'A'))
rename2('a', 'c', 1)
check('noreplace', not os.path.exists('a') and open('c').read() == 'B')
no(errno.ENOENT, rename2, 'c', 'zz', 2)
no(errno.EINVAL, rename2, 'c', 'zz', 3)
rename2('b', 'o', 2)
check('exchanged kinds', os.path.isdir('b') and open('o').read() == 'A')
os.unlink('o')
os.link('c', 'c2')
os.rename('c', 'c2')
check('same file', os.path.exists('c') and os.path.exists('c2'))

# names
n = 'n' * 255
put(n)
check('255', n in os.listdir())
os.unlink(n)
no(errno.ENAMETOOLONG, os.open, 'n' * 256, os.O_CREAT | os.O_WRONLY)
no(errno.ENAMETOOLONG, os.mkdir, 'n' * 256)
no(errno.ENAMETOOLONG, os.rename, 'c', 'n' * 256)
for n in ('a b', 'ä', '\n', '-', '"', '\\', 'a\tb', '%', '..x'):
    put(n, n.encode())
    is_('name', open(n).read(), n)
    os.unlink(n)
try:
    for _ in range(40):
        os.mkdir('x' * 200)
        os.chdir('x' * 200)
except OSError as e:
    is_('deep', errno.errorcode[e.errno], 'ENAMETOOLONG')
os.chdir(sys.argv[1])
os.system('rm -rf ' + 'x' * 200)

# modes and owners
put('m')
for m in (0, 4095, 2541, 1481, 1023, 420):
    os.chmod('m', m)
    is_('chmod', stat.S_IMODE(os.stat('m').st_mode), m)
if os.getuid() == 0 and 'user' not in sys.argv:
    os.chown('m', 12, 34)
    is_('chown', (os.stat('m').st_uid, os.stat('m').st_gid), (12, 34))
    os.chmod('m', 3565)
    os.chown('m', -1, 35)
    is_('chown keeps uid', (os.stat('m').st_uid, os.stat('m').st_gid), (12, 35))
    f = os.open('m', os.O_RDWR)
    os.fchown(f, 1, -1)
    is_('fchown', os.fstat(f).st_uid, 1)
    os.close(f)
f = os.open('sm', os.O_CREAT | os.O_RDWR, 2505)
is_('suid create', stat.S_IMODE(os.fstat(f).st_mode), 2505)
os.close(f)

os.umask(0)
os.mkdir('all', 0o777)
os.close(os.open('all/f', os.O_CREAT | os.O_RDWR, 0o666))
os.mkfifo('all/p', 0o622)
is_('no umask', [stat.S_IMODE(os.stat(n).st_mode) for n in ('all', 'all/f', 'all/p')], [0o777, 0o666, 0o622])
os.umask(18)

# times
os.utime('m', ns=(1000000001123456789, 1500000000987654321))
s = os.stat('m')
is_('ns', (s.st_atime_ns, s.st_mtime_ns), (1000000001123456789, 1500000000987654321))
os.utime('m', ns=(2, 1500000000987654321))
f = os.open('m', os.O_RDWR)
os.utime(f, ns=(1000000000, 2000000000))
is_('futimens', os.fstat(f).st_mtime_ns, 2000000000)
os.utime('m', (-5, -6))
is_('before 1970', os.stat('m').st_mtime, -6)
os.utime('m', (2 ** 33, 2 ** 33))
is_('after 2038', os.stat('m').st_mtime, 2 ** 33)
t = time.time()
os.utime('m')
check('now', abs(os.stat('m').st_mtime - t) < 5)
os.utime('m', (9, 9))
f2 = os.open('m', os.O_RDONLY)
os.utime(f2)
os.close(f2)
os.utime('m', ns=(7, 7))
os.close(f)
os.utime('m')
check('now, forgotten', abs(os.stat('m').st_mtime - t) < 5)
c.utimensat(-100, b'm', (ctypes.c_long * 4)(11, 0, 0, 0x3ffffffe), 0)
check('atime alone', (os.stat('m').st_atime, abs(os.stat('m').st_mtime - t) < 5) == (11, True))
c.utimensat(-100, b'm', (ctypes.c_long * 4)(0, 0x3ffffffe, 12, 0), 0)
check('mtime alone', (os.stat('m').st_atime, os.stat('m').st_mtime) == (11, 12))
f = os.open('m', os.O_RDWR)
os.utime('m', (9, 9))
os.write(f, b'y')
check('mtime of a write', os.stat('m').st_mtime > 9)
os.close(f)

# large and sparse
f = os.open('l', os.O_CREAT | os.O_RDWR)
os.pwrite(f, b'end', 5 << 30)
is_('large', os.fstat(f).st_size, (5 << 30) + 3)
is_('read large', os.pread(f, 9, (5 << 30) - 2), b'\x00\x00end')
os.fsync(f)
check('sparse %d' % os.stat('l').st_blocks, os.stat('l').st_blocks < 64)
try:
    is_('hole', os.lseek(f, 0, os.SEEK_DATA), 5 << 30)
except OSError as e:
    bad.append('SEEK_DATA ' + str(e))
is_('seek hole', os.lseek(f, 5 << 30, os.SEEK_HOLE), (5 << 30) + 3)
no(errno.ENXIO, os.lseek, f, 6 << 30, os.SEEK_DATA)
try:
    os.posix_fallocate(f, 0, 8192)
    is_('fallocate', os.fstat(f).st_size, (5 << 30) + 3)
    os.pwrite(f, b'data' * 4096, 0)
    is_('punch', c.fallocate(f, 3, ctypes.c_long(4096), ctypes.c_long(8192)), 0)
    is_('punched', os.pread(f, 16384, 0), b'data' * 1024 + bytes(8192) + b'data' * 1024)
    is_('punched hole', os.lseek(f, 0, os.SEEK_HOLE), 4096)
    is_('reserve', c.fallocate(f, 1, ctypes.c_long(6 << 30), ctypes.c_long(4096)), 0)
    is_('reserved', os.fstat(f).st_size, (5 << 30) + 3)
except OSError as e:
    bad.append('fallocate ' + str(e))
os.close(f)
os.unlink('l')
no(errno.EOPNOTSUPP, os.open, '.', os.O_TMPFILE | os.O_RDWR)
no(errno.EOPNOTSUPP, os.setxattr, 'm', 'user.x', b'1')
v = os.statvfs('.')
check('statvfs', v.f_blocks > 0 and v.f_bfree <= v.f_blocks and (v.f_namemax == 255) and (v.f_files > 0))

# mmap
f = os.open('mm', os.O_CREAT | os.O_RDWR)
os.ftruncate(f, 10000)
m = mmap.mmap(f, 10000)
m[9000:9003] = b'abc'
m.flush()
is_('mmap', os.pread(f, 3, 9000), b'abc')
os.pwrite(f, b'zz', 0)
is_('mmap sees', m[:2], b'zz')
os.ftruncate(f, 5000)
is_('cut', len(os.pread(f, 10000, 0)), 5000)
m.close()
os.close(f)
f = os.open('mm', os.O_RDWR)
os.pwrite(f, b'q', 4096)
os.ftruncate(f, 4096)
os.ftruncate(f, 8192)
is_('zeros', os.pread(f, 1, 4096), b'\x00')
os.close(f)

# locks, fifo, socket
f = os.open('lk', os.O_CREAT | os.O_RDWR)
g = os.open('lk', os.O_RDWR)
fcntl.flock(f, fcntl.LOCK_EX)
no(errno.EWOULDBLOCK, fcntl.flock, g, fcntl.LOCK_EX | fcntl.LOCK_NB)
os.mkfifo('ff')
r = os.open('ff', os.O_RDWR)
os.write(r, b'1')
is_('fifo', os.read(r, 1), b'1')
import socket
s = socket.socket(socket.AF_UNIX)
s.bind('sk')
s.listen()
k = socket.socket(socket.AF_UNIX)
k.connect('sk')

# listing while removing
os.mkdir('many')
for i in range(500):
    open('many/%d' % i, 'w').close()
for i, n in enumerate(os.scandir('many')):
    os.unlink('many/' + n.name)
is_('removed all', os.listdir('many'), [])
os.system('rm -rf ./* ./..x 2>/dev/null')
is_('empty', os.listdir('.'), [])
print('\n'.join(bad) or 'posix')
