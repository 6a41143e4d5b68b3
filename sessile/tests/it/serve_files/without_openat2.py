"""Runs a command without the system call openat2: without_openat2.py ERRNO COMMAND...

As an old kernel (ENOSYS, 38) or an old sandbox (EPERM, 1) does. The number of the call is the same
on all architectures.
"""

import ctypes
import os
import struct
import sys

OPENAT2 = 437
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 22, 38
SECCOMP_MODE_FILTER = 2
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, ERRNO = 0x7FFF0000, 0x00050000

errno, *command = sys.argv[1:]
instructions = [
    (LOAD, 0, 0, 0),
    (JUMP_IF_EQUAL, 0, 1, OPENAT2),
    (RETURN, 0, 0, ERRNO | int(errno)),
    (RETURN, 0, 0, ALLOW),
]
code = b"".join(struct.pack("<HBBI", *instruction) for instruction in instructions)
buffer = ctypes.create_string_buffer(code, len(code))
program = struct.pack("@HP", len(instructions), ctypes.addressof(buffer))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
    raise OSError(ctypes.get_errno(), "PR_SET_NO_NEW_PRIVS")
if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0) != 0:
    raise OSError(ctypes.get_errno(), "PR_SET_SECCOMP")
os.execvp(command[0], command)
