"""Reads a part of each of several disks at the same time, past the page cache, each by a CPU, and says how long that took.

    streams.py BYTES CPU:DISK:OFFSET...

A line for each: when it began and when it ended, in nanoseconds of the guest's clock. All begin together.
"""
import mmap
import os
import sys
import time

CHUNK = 1 << 18


def stream(cpu, path, offset, size, ready, go):
    os.sched_setaffinity(0, {cpu})
    file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    buffer = mmap.mmap(-1, CHUNK)
    # What is executed below is here then.
    os.preadv(file, [buffer], 0)
    time.monotonic_ns()
    os.write(ready, b".")
    os.read(go, 1)
    began = time.monotonic_ns()
    for at in range(offset, offset + size, CHUNK):
        assert os.preadv(file, [buffer], at) == CHUNK
    return began, time.monotonic_ns()


size = int(sys.argv[1])
ready, go = os.pipe(), os.pipe()
children = []
for word in sys.argv[2:]:
    cpu, path, offset = word.split(":")
    answer = os.pipe()
    child = os.fork()
    if child == 0:
        took = stream(int(cpu), path, int(offset), size, ready[1], go[0])
        os.write(answer[1], b"%d %d" % took)
        os._exit(0)
    os.close(answer[1])
    children.append((child, answer[0]))
for _ in children:
    assert os.read(ready[0], 1) == b"."
os.write(go[1], b"." * len(children))
for child, answer in children:
    assert os.waitpid(child, 0)[1] == 0
    print(os.read(answer, 100).decode())
