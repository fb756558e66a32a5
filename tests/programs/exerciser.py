# Does what chance wants to a file, from whatever CPU it has moved to, and compares the file with a copy in memory:
# FILE SEED OPERATIONS [KIND,...], where KIND is left out (punch, zero, direct). Prints the seed first, and in the end
# the file's size and SHA-256; if something is not as it should be, the last operations.
import ctypes, errno, hashlib, mmap, os, random, sys

path, seed, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
without = sys.argv[4].split(',') if len(sys.argv) > 4 else []
print('seed', seed, flush=True)
chance = random.Random(seed)
SIZE_MAX, OPERATION_MAX, PAGE = 300000, 70000, 4096
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
cpus = sorted(os.sched_getaffinity(0))
model = bytearray()
log = []
fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
done = {}

def wrong(what):
    print('WRONG', what, *log[-12:], sep='\n')
    sys.exit(1)

def same(got, at, what):
    want = model[at:at + len(got)]
    if got != want:
        n = next((n for n in range(len(want)) if got[n] != want[n]), len(want))
        wrong('%s at %d: %r, not %r' % (what, at + n, bytes(got[n:n + 16]), bytes(want[n:n + 16])))

def noise(n):
    return chance.randbytes(n)

def put(at, data):
    global model
    if at > len(model):
        model += bytes(at - len(model))
    model[at:at + len(data)] = data

def place():
    at = chance.randrange(SIZE_MAX)
    return at, 1 + chance.randrange(min(OPERATION_MAX, SIZE_MAX - at))

def inside():
    if not model:
        return None
    at = chance.randrange(len(model))
    return at, 1 + chance.randrange(min(OPERATION_MAX, len(model) - at))

def read():
    at, n = place()
    got = os.pread(fd, n, at)
    if len(got) != max(0, min(n, len(model) - at)):
        wrong('%d bytes read at %d of %d' % (len(got), at, len(model)))
    same(got, at, 'read')

def write():
    at, n = place()
    data = noise(n)
    if os.pwrite(fd, data, at) != n:
        wrong('a short write')
    put(at, data)

def append():
    f = os.open(path, os.O_WRONLY | os.O_APPEND)
    n = min(SIZE_MAX - len(model), 1 + chance.randrange(5000))
    data = noise(n)
    os.write(f, data)
    put(len(model), data)
    os.close(f)

def mapped(change):
    where = inside()
    if not where:
        return
    at, n = where
    base = at & -PAGE
    m = mmap.mmap(fd, at + n - base, offset=base)
    if change:
        data = noise(n)
        m[at - base:at - base + n] = data
        put(at, data)
        # Else it is up to the kernel when.
        if chance.random() < 0.3:
            m.flush()
    else:
        same(m[at - base:at - base + n], at, 'mapped')
    m.close()

def truncate():
    n = chance.randrange(SIZE_MAX)
    os.ftruncate(fd, n) if chance.random() < 0.5 else os.truncate(path, n)
    if n > len(model):
        put(n, b'')
    del model[n:]

def hole(mode):
    where = inside()
    if not where:
        return
    at, n = where
    if libc.fallocate(fd, mode, at, n):
        wrong('fallocate %d: %s' % (mode, errno.errorcode[ctypes.get_errno()]))
    put(at, bytes(n))

def grow():
    at, n = place()
    os.posix_fallocate(fd, at, n)
    if at + n > len(model):
        put(at + n, b'')

def direct():
    """Past the page cache, in whole blocks."""
    blocks = len(model) // PAGE
    if not blocks:
        return
    at = chance.randrange(blocks)
    n = 1 + chance.randrange(min(8, blocks - at))
    f = os.open(path, os.O_RDWR | os.O_DIRECT)
    m = mmap.mmap(-1, n * PAGE)
    if chance.random() < 0.5:
        data = noise(n * PAGE)
        m[:] = data
        os.pwritev(f, [m], at * PAGE)
        put(at * PAGE, data)
    else:
        os.preadv(f, [m], at * PAGE)
        same(m[:], at * PAGE, 'read past the cache')
    m.close()
    os.close(f)

def again():
    global fd
    os.close(fd)
    fd = os.open(path, os.O_RDWR)

def forget():
    """What is durable need not be cached."""
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

def move():
    os.sched_setaffinity(0, {chance.choice(cpus)})

def size():
    if os.fstat(fd).st_size != len(model) or os.stat(path).st_size != len(model):
        wrong('%d bytes, not %d' % (os.fstat(fd).st_size, len(model)))

kinds = {
    'read': (read, 10), 'write': (write, 10), 'append': (append, 3), 'map': (lambda: mapped(False), 6),
    'store': (lambda: mapped(True), 8), 'truncate': (truncate, 4), 'punch': (lambda: hole(PUNCH_HOLE | KEEP_SIZE), 4),
    'zero': (lambda: hole(ZERO_RANGE), 3), 'grow': (grow, 2), 'direct': (direct, 5), 'again': (again, 3),
    'forget': (forget, 3), 'sync': (lambda: os.fdatasync(fd), 2), 'move': (move, 12), 'size': (size, 3),
}
names = [name for name in kinds if name not in without]
weights = [kinds[name][1] for name in names]
for number in range(count):
    name = chance.choices(names, weights)[0]
    log.append('%d %s on CPU %d, size %d' % (number, name, libc.sched_getcpu(), len(model)))
    done[name] = done.get(name, 0) + 1
    kinds[name][0]()
    # What lies behind the end of a mapped file's last page is zeros.
    if name in ('store', 'truncate') and len(model) % PAGE:
        m = mmap.mmap(fd, len(model) % PAGE, offset=len(model) & -PAGE)
        start = ctypes.c_char.from_buffer(m)
        if any(ctypes.string_at(ctypes.addressof(start), PAGE)[len(model) % PAGE:]):
            wrong('something behind the end')
        del start
        m.close()
size()
same(os.pread(fd, SIZE_MAX, 0), 0, 'the end')
os.fsync(fd)
os.close(fd)
print(' '.join('%s=%d' % item for item in sorted(done.items())))
print(len(model), hashlib.sha256(model).hexdigest())
