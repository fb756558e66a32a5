# Talks to a command at a terminal: SECONDS EXPECT SEND EXPECT SEND … EXPECT -- COMMAND…, each EXPECT a regular
# expression. Shows what is said. Ends as the command does, once it has said the last; with 1 if it says something else for
# so long.
import os, pty, re, select, sys, time

limit, steps = float(sys.argv[1]), sys.argv[2:sys.argv.index('--')]
child, terminal = pty.fork()
if child == 0:
    command = sys.argv[sys.argv.index('--') + 1:]
    os.execvp(command[0], command)
seen, end, ended = '', time.monotonic() + limit, False
for number, step in enumerate(steps):
    if number % 2:
        os.write(terminal, step.encode() + b'\n')
        continue
    while not re.search(step, seen):
        ready, _, _ = select.select([terminal], [], [], max(0, end - time.monotonic()))
        try:
            more = os.read(terminal, 4096) if ready else b''
        except OSError:
            more = b''
        if not more:
            print('\nNO %r' % step)
            os.close(terminal)
            sys.exit(1)
        sys.stdout.buffer.write(more)
        sys.stdout.flush()
        seen += more.decode(errors='replace')
    seen = seen[re.search(step, seen).end():]
try:
    while os.read(terminal, 4096):
        pass
except OSError:
    pass
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
