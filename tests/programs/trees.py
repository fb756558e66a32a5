# Makes, fills, renames, links and removes files and directories as chance wants, in as many processes as there are CPUs,
# each in a directory of its own and on whatever CPU it has moved to, and compares what is there with what should be:
# DIRECTORY SEED OPERATIONS. Prints the seed first, and in the end a SHA-256 of all names and contents.
# DIRECTORY alone prints that of what is there.
import hashlib, os, random, sys

FILE_MAX, NAMES = 9000, 12

def found(top):
    """What is below a directory: a name with its kind and contents."""
    seen = {}
    for at, directories, files in os.walk(top):
        for name in directories + files:
            path = os.path.join(at, name)
            key = os.path.relpath(path, top)
            if os.path.islink(path):
                seen[key] = ('link', os.readlink(path).encode())
            elif os.path.isdir(path):
                seen[key] = ('directory', b'')
            else:
                with open(path, 'rb') as f:
                    seen[key] = ('file', f.read())
    return seen

def digest(top):
    all = hashlib.sha256()
    for key, (kind, data) in sorted(found(top).items()):
        all.update(('%s %s %d\n' % (key, kind, len(data))).encode() + data)
    return all.hexdigest()

def work(top, seed, count):
    chance = random.Random(seed)
    cpus = sorted(os.sched_getaffinity(0))
    os.mkdir(top)
    # Names to nodes; hard links share one. A node is [kind, contents].
    model = {}
    log = []
    full = lambda key: os.path.join(top, key)

    def wrong(what):
        print('WRONG', os.path.basename(top), what, *log[-12:], sep='\n', flush=True)
        os._exit(1)

    def below(key):
        return [other for other in model if other.startswith(key + '/')]

    def some(kind):
        keys = sorted(key for key in model if model[key][0] == kind)
        return chance.choice(keys) if keys else None

    def fresh():
        """A place in a directory that is there; there may be something already."""
        above = sorted(key for key in model if model[key][0] == 'directory' and key.count('/') < 3)
        above = chance.choice(above + ['', ''])
        name = 'n%d' % chance.randrange(NAMES) + 'x' * chance.choice([0, 0, 0, 90])
        return (above + '/' if above else '') + name

    def make():
        key = fresh()
        if key not in model:
            chance.choice([file, file, directory, symlink])(key)

    def file(key):
        data = chance.randbytes(chance.randrange(FILE_MAX))
        with open(full(key), 'xb') as f:
            f.write(data)
        model[key] = ['file', data]

    def directory(key):
        os.mkdir(full(key))
        model[key] = ['directory', b'']

    def symlink(key):
        says = 'to-%d' % chance.randrange(99)
        os.symlink(says, full(key))
        model[key] = ['link', says.encode()]

    def change():
        key = some('file')
        if not key:
            return
        data, at = bytearray(model[key][1]), chance.randrange(FILE_MAX)
        more = chance.randbytes(chance.randrange(1, 2000))
        with open(full(key), 'r+b') as f:
            if chance.random() < 0.3:
                f.truncate(at)
                data = data[:at] + bytes(max(0, at - len(data)))
            else:
                f.seek(at)
                f.write(more)
                data += bytes(max(0, at - len(data)))
                data[at:at + len(more)] = more
            if chance.random() < 0.2:
                f.flush()
                os.fsync(f.fileno())
        model[key][1] = bytes(data)

    def remove():
        key = chance.choice(sorted(model)) if model else None
        if not key:
            return
        if model[key][0] != 'directory':
            os.unlink(full(key))
        elif below(key):
            try:
                os.rmdir(full(key))
                wrong('removed what is not empty: ' + key)
            except OSError:
                return
        else:
            os.rmdir(full(key))
        del model[key]

    def rename():
        old = chance.choice(sorted(model)) if model else None
        new = fresh()
        if not old or new == old or new.startswith(old + '/') or old.startswith(new + '/'):
            return
        was = model.get(new)
        directories = (model[old][0] == 'directory', was and was[0] == 'directory')
        fits = was is None or directories[0] == directories[1] and not below(new)
        try:
            os.rename(full(old), full(new))
        except OSError as error:
            if fits:
                wrong('rename %s %s: %s' % (old, new, error))
            return
        if not fits:
            wrong('renamed %s to %s' % (old, new))
        # Two names of one file stay as they are.
        if was is model[old] and was[0] == 'file':
            return
        for key in [old] + below(old):
            model[new + key[len(old):]] = model.pop(key)

    def link():
        old, new = some('file'), fresh()
        if old and new not in model:
            os.link(full(old), full(new))
            model[new] = model[old]

    def look():
        key = some('file')
        if key:
            names = sum(node is model[key] for node in model.values())
            st = os.stat(full(key))
            if (st.st_nlink, st.st_size) != (names, len(model[key][1])):
                wrong('%s: %d links, %d bytes' % (key, st.st_nlink, st.st_size))
            with open(full(key), 'rb') as f:
                if f.read() != model[key][1]:
                    wrong('contents of ' + key)

    def move():
        os.sched_setaffinity(0, {chance.choice(cpus)})

    def compare():
        seen, wanted = found(top), {key: tuple(node) for key, node in model.items()}
        for key in sorted(seen.keys() | wanted.keys()):
            if seen.get(key) != wanted.get(key):
                wrong('%s: %r, not %r' % (key, str(seen.get(key))[:40], str(wanted.get(key))[:40]))

    kinds = [make] * 8 + [change] * 6 + [remove] * 3 + [rename] * 5 + [link] * 2 + [look] * 4 + [move] * 5
    for number in range(count):
        kind = chance.choice(kinds)
        log.append('%d %s' % (number, kind.__name__))
        try:
            kind()
        except OSError as error:
            wrong(str(error))
        if number % 100 == 99:
            compare()
    compare()

top = os.path.abspath(sys.argv[1])
if len(sys.argv) > 2:
    seed, count = int(sys.argv[2]), int(sys.argv[3])
    print('seed', seed, flush=True)
    children = []
    for n in range(len(os.sched_getaffinity(0))):
        child = os.fork()
        if child == 0:
            work('%s/w%d' % (top, n), seed * 100 + n, count)
            os._exit(0)
        children.append(child)
    if any(os.waitpid(child, 0)[1] for child in children):
        sys.exit(1)
print(digest(top))
