"""Runs a command where ptrace(2) is refused (EPERM), as by old seccomp profiles of containers.

    without_ptrace.py PROGRAM [ARGUMENT...]
"""

import ctypes
import os
import struct
import sys

PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 22, 38
SECCOMP_MODE_FILTER = 2
PTRACE = 101


def instruction(code, constant, if_true=0, if_false=0):
    return struct.pack("HBBI", code, if_true, if_false, constant)


class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


code = [
    instruction(0x20, 0),  # load the call's number
    instruction(0x15, PTRACE, 0, 1),
    instruction(0x06, 0x00050000 | 1),  # SECCOMP_RET_ERRNO, EPERM
    instruction(0x06, 0x7FFF0000),  # SECCOMP_RET_ALLOW
]
memory = ctypes.create_string_buffer(b"".join(code))
program = Program(len(code), ctypes.addressof(memory))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
    PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0
):
    sys.exit(f"cannot install the filter: {os.strerror(ctypes.get_errno())}")
os.execv(sys.argv[1], sys.argv[1:])
