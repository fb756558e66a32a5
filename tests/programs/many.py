"""Processes and threads all over the CPUs, and everything they talk through."""

import mmap
import os
import pty
import queue
import select
import signal
import socket
import subprocess
import sys
import threading
import time

CPUS = sorted(os.sched_getaffinity(0))
TURNS = 40
STARTS = 10
ITEMS = 60


def child(cpu, work):
    """Runs `work` in a process on `cpu`, or wherever it comes to be."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            if cpu is not None:
                os.sched_setaffinity(0, {cpu})
            work()
            code = 0
        finally:
            os._exit(code)
    return pid


def reap(pid, code=0):
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == code, (pid, status)


def exactly(fd, count):
    data = b""
    while len(data) < count:
        part = os.read(fd, count - len(data))
        assert part, "early end"
        data += part
    return data


def hogs():
    """Processes that compute come to run on all CPUs, although none executes a program."""
    # A byte for each CPU, of all processes. They go on for as long as one is missing: that has its end elsewhere.
    seen = mmap.mmap(-1, 4096)

    def compute():
        while not all(seen[cpu] for cpu in CPUS):
            for _ in range(100_000):
                pass
            with open("/proc/self/stat") as stat:
                seen[int(stat.read().rsplit(")", 1)[1].split()[36])] = 1

    for pid in [child(None, compute) for _ in CPUS]:
        reap(pid)


def storm():
    """A process on each CPU starts programs on the next, all at once."""

    def start(here):
        there = CPUS[(CPUS.index(here) + 1) % len(CPUS)]
        for _ in range(STARTS):
            done = subprocess.run(
                ["taskset", "-c", str(there), "sh", "-c", "(exit 5); echo $?; cat /proc/self/stat"],
                stdout=subprocess.PIPE,
                check=True,
            )
            first, stat = done.stdout.decode().split("\n", 1)
            assert first == "5"
            assert int(stat.rsplit(") ", 1)[1].split()[36]) == there, stat

    for pid in [child(cpu, lambda cpu=cpu: start(cpu)) for cpu in CPUS]:
        reap(pid)


def ring(make):
    """A byte block goes round over all CPUs and changes at each."""
    links = [make() for _ in CPUS]
    block = os.urandom(10_000)

    def pass_on(n):
        for _ in range(TURNS):
            data = exactly(links[n][0], len(block))
            os.write(links[(n + 1) % len(CPUS)][1], bytes((b + 1) % 256 for b in data))

    pids = [child(cpu, lambda n=n: pass_on(n)) for n, cpu in enumerate(CPUS) if n]
    os.sched_setaffinity(0, {CPUS[0]})
    expected = block
    for _ in range(TURNS):
        os.write(links[1 % len(CPUS)][1], expected)
        expected = bytes((b + len(CPUS) - 1) % 256 for b in expected)
        assert exactly(links[0][0], len(block)) == expected
    os.sched_setaffinity(0, set(CPUS))
    for pid in pids:
        reap(pid)
    for link in links:
        for fd in set(link):
            os.close(fd)


def socket_ends():
    reader, writer = socket.socketpair()
    return reader.detach(), writer.detach()


def tcp():
    server = socket.create_server(("127.0.0.1", 0))
    port = server.getsockname()[1]
    data = os.urandom(300_000)

    def client():
        with socket.create_connection(("127.0.0.1", port)) as peer:
            peer.sendall(data)
            peer.shutdown(socket.SHUT_WR)
            back = b"".join(iter(lambda: peer.recv(65536), b""))
        assert back == data[::-1]

    for cpu in CPUS:
        pid = child(cpu, client)
        peer, _ = server.accept()
        got = b"".join(iter(lambda: peer.recv(65536), b""))
        peer.sendall(got[::-1])
        peer.close()
        reap(pid)


def terminals():
    for cpu in CPUS:
        pid, fd = pty.fork()
        if pid == 0:
            os.execvp("taskset", ["taskset", "-c", str(cpu), "sh", "-c", "stty size; read x; echo =$x="])
        os.sched_setaffinity(0, {CPUS[(cpu + 1) % len(CPUS)]})
        os.write(fd, b"word\n")
        text = b""
        while b"=word=" not in text:
            ready, _, _ = select.select([fd], [], [], 20)
            assert ready, text
            text += os.read(fd, 1000)
        # Ctrl-C at a terminal is a signal to a process on another CPU.
        reap(pid)
        os.close(fd)
        pid, fd = pty.fork()
        if pid == 0:
            # Python's own handler would only be noticed after a sleep that has begun meanwhile.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.sched_setaffinity(0, {cpu})
            os.write(1, b"ready")
            time.sleep(60)
        assert b"ready" in os.read(fd, 100)
        os.write(fd, b"\x03")
        while True:
            try:
                if not os.read(fd, 1000):
                    break
            except OSError:
                break
        _, status = os.waitpid(pid, 0)
        assert status != 0
        os.close(fd)
    os.sched_setaffinity(0, set(CPUS))


def signals():
    """Two processes send each other signals in turn; then one that computes is killed."""
    for cpu in CPUS[1:]:
        parent = os.getpid()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})

        def answer():
            for _ in range(TURNS):
                signal.sigwait({signal.SIGUSR1})
                os.kill(parent, signal.SIGUSR1)

        pid = child(cpu, answer)
        for _ in range(TURNS):
            os.kill(pid, signal.SIGUSR1)
            signal.sigwait({signal.SIGUSR1})
        reap(pid)

        def compute():
            os.write(writer, b"x")
            while True:
                pass

        reader, writer = os.pipe()
        pid = child(cpu, compute)
        exactly(reader, 1)
        os.close(reader)
        os.close(writer)
        begin = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        reap(pid, -signal.SIGKILL)
        assert time.monotonic() - begin < 5


def threads():
    """Threads of one process, each on its CPU, through queues."""
    work, done = queue.Queue(), queue.Queue()

    def run(cpu):
        os.sched_setaffinity(threading.get_native_id(), {cpu})
        while (item := work.get()) is not None:
            done.put((cpu, item * item))

    pool = [threading.Thread(target=run, args=(cpu,)) for cpu in CPUS for _ in range(2)]
    for thread in pool:
        thread.start()
    for n in range(ITEMS):
        work.put(n)
    results = [done.get() for _ in range(ITEMS)]
    for _ in pool:
        work.put(None)
    for thread in pool:
        thread.join()
    assert sorted(result for _, result in results) == [n * n for n in range(ITEMS)]


for name in sys.argv[1:]:
    begin = time.monotonic()
    if name == "pipes":
        ring(os.pipe)
    elif name == "sockets":
        ring(socket_ends)
    else:
        globals()[name]()
    print(name, "ok", flush=True)
    print(f"{name}: {time.monotonic() - begin:.1f} s", file=sys.stderr)
