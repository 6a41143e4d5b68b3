"""A file system that stops answering: stalled_fs.py MOUNTPOINT PIDFILE COMMAND...

Mounts itself, then runs COMMAND. Needs /dev/fuse, and a mount namespace of its own.

/open   its OPEN is not answered
/read1, /read2
        the content from the middle on is not answered
/good   always answered
/page   a small file; after SIGUSR2, its OPEN is not answered

SIGUSR1 ends the stall: everything is answered, also the requests from before.
"""

import ctypes
import os
import signal
import stat
import struct
import sys

CONTENT = b"x" * (2 << 20)
PAGE = CONTENT[:3000]
ROOT = 1
NAMES = {b"open": 2, b"read1": 3, b"read2": 4, b"good": 5, b"page": 6}
LOOKUP, FORGET, GETATTR, OPEN, READ, RELEASE, FLUSH, INIT = 1, 2, 3, 14, 15, 18, 25, 26
INTERRUPT, BATCH_FORGET = 36, 42
ENOENT, ENOSYS = 2, 38
PR_SET_PDEATHSIG = 1

libc = ctypes.CDLL(None, use_errno=True)
stalled = True
page_stalled = False
waiting = []


def content(node):
    return PAGE if node == NAMES[b"page"] else CONTENT


def attributes(node):
    if node == ROOT:
        mode, size = stat.S_IFDIR | 0o755, 0
    else:
        mode, size = stat.S_IFREG | 0o644, len(content(node))
    return struct.pack("<6Q10I", node, size, 0, 1, 1, 1, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def reply(fuse, unique, payload=b"", error=0):
    os.write(fuse, struct.pack("<IiQ", 16 + len(payload), -error, unique) + payload)


def stalls(opcode, node, offset):
    if opcode == OPEN:
        return node == NAMES[b"open"] or (page_stalled and node == NAMES[b"page"])
    return opcode == READ and node in (NAMES[b"read1"], NAMES[b"read2"]) and offset >= len(CONTENT) // 2


def answer(fuse, request):
    _, opcode, unique, node = struct.unpack_from("<IIQQ", request)
    body = request[40:]
    offset, size = struct.unpack_from("<QI", body, 8) if opcode == READ else (0, 0)
    if stalled and stalls(opcode, node, offset):
        waiting.append(request)
    elif opcode == INIT:
        reply(fuse, unique, struct.pack("<4I2H2I2H8I", 7, 31, 1 << 17, 0, 64, 48, 1 << 17, 1, *[0] * 10))
    elif opcode == LOOKUP:
        node = NAMES.get(body.split(b"\0")[0])
        if node is None:
            reply(fuse, unique, error=ENOENT)
        else:
            reply(fuse, unique, struct.pack("<4Q2I", node, 0, 1, 1, 0, 0) + attributes(node))
    elif opcode == GETATTR:
        reply(fuse, unique, struct.pack("<QII", 1, 0, 0) + attributes(node))
    elif opcode == OPEN:
        reply(fuse, unique, struct.pack("<QII", 0, 0, 0))
    elif opcode == READ:
        reply(fuse, unique, content(node)[offset : offset + size])
    elif opcode in (RELEASE, FLUSH):
        reply(fuse, unique)
    elif opcode not in (FORGET, BATCH_FORGET, INTERRUPT):
        reply(fuse, unique, error=ENOSYS)


def serve(fuse):
    def end_stall(*_):
        global stalled
        stalled = False
        for request in waiting:
            answer(fuse, request)
        waiting.clear()

    def stall_page(*_):
        global page_stalled
        page_stalled = True

    signal.signal(signal.SIGUSR1, end_stall)
    signal.signal(signal.SIGUSR2, stall_page)
    while True:
        answer(fuse, os.read(fuse, 1 << 20))


def main():
    mountpoint, pidfile, *command = sys.argv[1:]
    fuse = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0"
    if libc.mount(b"stalled", mountpoint.encode(), b"fuse", 0, options.encode()) != 0:
        raise OSError(ctypes.get_errno(), "cannot mount")
    child = os.fork()
    if child == 0:
        # Requests in the kernel end when this process does, and with them the threads of the command.
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        null = os.open("/dev/null", os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        serve(fuse)
    with open(pidfile, "w") as file:
        file.write(str(child))
    os.execvp(command[0], command)


main()
