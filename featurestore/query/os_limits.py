"""The fences an operating system can put around the calling process, one function each.

A fence can't be taken down again by the process it holds. Each function says what it really put up: it returns the name
of the fence for the operator's log, or an empty string where this kernel or container does not grant it, so that nobody
believes in a fence that isn't there. Everything but the resource limits is Linux only.

    fence                        needs                                holds
    forbid_new_privileges        Linux 3.5                            setuid programs give nothing
    leave_network                root, or user namespaces             an empty network of one's own
    drop_capabilities            Linux                                root's powers, apart from reading files
    forbid_system_calls          Linux, x86-64 or aarch64             no socket of any kind, no program, no signal
    forbid_writes                Landlock (Linux 5.13; TCP 6.7)       writing outside one directory, TCP, exec
    forbid_reads                 Landlock (Linux 5.13)                reading anything but a list of files
    die_with_parent              Linux                                (the kernel's kill when the parent's thread ends)
    limit_resources              POSIX                                memory, CPU time, file size, open files

Landlock, seccomp and a user namespace bind the calling thread and what it starts later: call them while the process
has one thread, see `threads_running`.

Sources: landlock(7), seccomp(2), prctl(2), capabilities(7), getrlimit(2), `include/uapi/linux/landlock.h`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import sys
from collections.abc import Iterable, Sequence
from typing import Final

LINUX: Final = sys.platform.startswith("linux")

PR_SET_PDEATHSIG: Final = 1
PR_SET_SECCOMP: Final = 22
PR_SET_NO_NEW_PRIVS: Final = 38
SIGKILL: Final = 9

CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWNET: Final = 0x40000000

CAPABILITY_VERSION_3: Final = 0x20080522
CAP_DAC_READ_SEARCH: Final = 1 << 2
"""Kept where held: root reads data files that belong to another user. Landlock still bounds which."""

_libc = ctypes.CDLL(None, use_errno=True) if LINUX else None


def _call(name: str, *arguments: object) -> int:
    """One libc function; its result, or `-errno`."""
    result = int(getattr(_libc, name)(*arguments))
    return result if result >= 0 else -ctypes.get_errno()


def _prctl(option: int, *arguments: int) -> int:
    return _call("prctl", option, *(ctypes.c_ulong(argument) for argument in (*arguments, 0, 0, 0, 0)[:4]))


def threads_running() -> int:
    """Threads of this process as the kernel counts them; 1 where it doesn't say."""
    return len(os.listdir("/proc/self/task")) if LINUX else 1


def forbid_new_privileges() -> str:
    return "no new privileges" if LINUX and _prctl(PR_SET_NO_NEW_PRIVS, 1) == 0 else ""


def die_with_parent() -> str:
    """The kernel kills this process when the thread that started it ends.

    Cleared by the kernel whenever credentials change, so call it after `leave_network` and `drop_capabilities`.
    """
    return "killed with the parent" if LINUX and _prctl(PR_SET_PDEATHSIG, SIGKILL) == 0 else ""


def leave_network() -> str:
    """Move to a network namespace without any interface, not even a working loopback."""
    if not LINUX:
        return ""
    if _call("unshare", CLONE_NEWNET) == 0 or _call("unshare", CLONE_NEWUSER | CLONE_NEWNET) == 0:
        return "network namespace"
    return ""


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapabilitySet(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def drop_capabilities() -> str:
    """Give up every capability except CAP_DAC_READ_SEARCH, where held."""
    if not LINUX:
        return ""
    header = _CapabilityHeader(CAPABILITY_VERSION_3, 0)
    held = (_CapabilitySet * 2)()
    if _call("capget", ctypes.byref(header), held) != 0:
        return ""
    kept = held[0].permitted & CAP_DAC_READ_SEARCH
    wanted = (_CapabilitySet * 2)(_CapabilitySet(kept, kept, 0), _CapabilitySet(0, 0, 0))
    return "no capabilities" if _call("capset", ctypes.byref(header), wanted) == 0 else ""


# seccomp ----------------------------------------------------------------------------------------------------------------

_BPF_LOAD_WORD: Final = 0x20
_BPF_JUMP_EQUAL: Final = 0x15
_BPF_JUMP_GREATER_EQUAL: Final = 0x35
_BPF_RETURN: Final = 0x06
_DATA_NUMBER: Final = 0
_DATA_ARCHITECTURE: Final = 4
_SECCOMP_MODE_FILTER: Final = 2
_SECCOMP_ALLOW: Final = 0x7FFF0000
_SECCOMP_EPERM: Final = 0x00050000 | errno.EPERM
_SECCOMP_KILL: Final = 0x80000000
_X32_CALLS: Final = 0x40000000
"""x86-64 kernels accept the x32 numbering of the same calls from this number on."""

_ARCHITECTURES: Final[dict[str, tuple[int, dict[str, int]]]] = {
    "x86_64": (
        0xC000003E,
        {
            "socket": 41,
            "socketpair": 53,
            "execve": 59,
            "kill": 62,
            "ptrace": 101,
            "process_vm_readv": 310,
            "process_vm_writev": 311,
            "execveat": 322,
            "pidfd_send_signal": 424,
            "io_uring_setup": 425,
        },
    ),
    "aarch64": (
        0xC00000B7,
        {
            "ptrace": 117,
            "kill": 129,
            "socket": 198,
            "socketpair": 199,
            "execve": 221,
            "process_vm_readv": 270,
            "process_vm_writev": 271,
            "execveat": 281,
            "pidfd_send_signal": 424,
            "io_uring_setup": 425,
        },
    ),
}


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint16), ("jt", ctypes.c_uint8), ("jf", ctypes.c_uint8), ("k", ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("instructions", ctypes.POINTER(_Instruction)))


def forbid_system_calls() -> str:
    """Refuse (EPERM) sockets, programs, signals to others and the memory of others.

    A network namespace leaves UNIX sockets on the file system reachable and Landlock leaves UDP: this closes both.
    Needs `forbid_new_privileges` first.
    """
    architecture = _ARCHITECTURES.get(os.uname().machine) if LINUX else None
    if architecture is None or ctypes.sizeof(ctypes.c_void_p) != 8:
        return ""
    audit, calls = architecture
    numbers = sorted(calls.values())
    listing = [
        (_BPF_LOAD_WORD, 0, 0, _DATA_ARCHITECTURE),
        (_BPF_JUMP_EQUAL, 1, 0, audit),
        (_BPF_RETURN, 0, 0, _SECCOMP_KILL),
        (_BPF_LOAD_WORD, 0, 0, _DATA_NUMBER),
        (_BPF_JUMP_GREATER_EQUAL, len(numbers) + 1, 0, _X32_CALLS),
        *((_BPF_JUMP_EQUAL, len(numbers) - position, 0, number) for position, number in enumerate(numbers)),
        (_BPF_RETURN, 0, 0, _SECCOMP_ALLOW),
        (_BPF_RETURN, 0, 0, _SECCOMP_EPERM),
    ]
    instructions = (_Instruction * len(listing))(*(_Instruction(*line) for line in listing))
    program = _Program(len(listing), instructions)
    if _call("prctl", PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), ctypes.byref(program), 0, 0) != 0:
        return ""
    return "seccomp: no sockets, no programs"


# Landlock ---------------------------------------------------------------------------------------------------------------

_CREATE_RULESET: Final = 444
_ADD_RULE: Final = 445
_RESTRICT_SELF: Final = 446
"""The same numbers on every architecture that has Landlock."""
_CREATE_RULESET_VERSION: Final = 1
_RULE_PATH_BENEATH: Final = 1

_EXECUTE: Final = 1 << 0
_WRITE_FILE: Final = 1 << 1
_READ_FILE: Final = 1 << 2
_READ_DIR: Final = 1 << 3
_REMOVE_DIR: Final = 1 << 4
_REMOVE_FILE: Final = 1 << 5
_MAKE_DIR: Final = 1 << 7
_MAKE_REG: Final = 1 << 8
_REFER: Final = 1 << 13
_TRUNCATE: Final = 1 << 14
_IOCTL_DEVICE: Final = 1 << 15
_READS: Final = _READ_FILE | _READ_DIR
_WRITES_ABI_1: Final = (1 << 13) - 1 & ~_READS
_WRITES_IN_TEMP: Final = _WRITE_FILE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG

_TCP: Final = 1 << 0 | 1 << 1
"""Bind and connect."""
_SCOPES: Final = 1 << 0 | 1 << 1
"""Abstract UNIX sockets and signals."""


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("tcp", ctypes.c_uint64), ("scopes", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("access", ctypes.c_uint64), ("parent", ctypes.c_int32))


def landlock_version() -> int:
    """The Landlock interface of this kernel, 0 when it has none or it is switched off."""
    if not LINUX:
        return 0
    return max(0, _call("syscall", _CREATE_RULESET, None, ctypes.c_size_t(0), _CREATE_RULESET_VERSION))


def _restrict(ruleset: _Ruleset, size: int, rules: Iterable[tuple[str, int]]) -> None:
    """Put the calling thread under a ruleset that grants each path its accesses.

    Raises:
        OSError: a path can't be opened, or the kernel refuses.
    """
    handle = _call("syscall", _CREATE_RULESET, ctypes.byref(ruleset), ctypes.c_size_t(size), 0)
    if handle < 0:
        raise OSError(-handle, f"landlock_create_ruleset: {os.strerror(-handle)}")
    try:
        for path, access in rules:
            parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
            try:
                rule = _PathBeneath(access, parent)
                failed = _call("syscall", _ADD_RULE, handle, _RULE_PATH_BENEATH, ctypes.byref(rule), 0)
            finally:
                os.close(parent)
            if failed:
                raise OSError(-failed, f"landlock_add_rule: {os.strerror(-failed)}", path)
        failed = _call("syscall", _RESTRICT_SELF, handle, 0)
        if failed:
            raise OSError(-failed, f"landlock_restrict_self: {os.strerror(-failed)}")
    finally:
        os.close(handle)


def forbid_writes(directory: str) -> str:
    """Landlock: write only beneath `directory`, execute nothing; no TCP and no signals where the kernel is new enough.

    Raises:
        OSError: the kernel has Landlock but refused the rules.
    """
    version = landlock_version()
    if version == 0:
        return ""
    handled = _WRITES_ABI_1
    allowed = _WRITES_IN_TEMP
    held = ["files"]
    if version >= 2:
        handled |= _REFER
    if version >= 3:
        handled |= _TRUNCATE
        allowed |= _TRUNCATE
    if version >= 5:
        handled |= _IOCTL_DEVICE
    ruleset = _Ruleset(handled, 0, 0)
    size = 8
    if version >= 4:
        ruleset.tcp = _TCP
        size = 16
        held.append("TCP")
    if version >= 6:
        ruleset.scopes = _SCOPES
        size = 24
        held.append("signals")
    _restrict(ruleset, size, [(directory, allowed)])
    return f"Landlock {version}: {', '.join(held)}"


def forbid_reads(files: Sequence[str], directory: str) -> None:
    """Landlock: from now on open only `files` and what lies beneath `directory`, for reading. Nothing without Landlock.

    Raises:
        OSError: a file is missing or can't be reached, or the kernel refused the rules.
    """
    if landlock_version() == 0:
        return
    rules = [(path, _READ_FILE) for path in files]
    _restrict(_Ruleset(_READS, 0, 0), 8, [*rules, (directory, _READS)])


# resource limits --------------------------------------------------------------------------------------------------------


def address_space_bytes() -> int:
    """Virtual memory this process has mapped now, in bytes; 0 where the kernel doesn't say."""
    if not LINUX:
        return 0
    with open("/proc/self/statm", "rb") as statm:
        return int(statm.read().split()[0]) * resource.getpagesize()


def _lower(limit: int, soft: int, hard: int | None = None) -> None:
    """Set a limit, never above the hard one in force."""
    ceiling = resource.getrlimit(limit)[1]
    wanted = soft if hard is None else hard
    if ceiling != resource.RLIM_INFINITY:
        soft, wanted = min(soft, ceiling), min(wanted, ceiling)
    resource.setrlimit(limit, (soft, wanted))


def limit_resources(*, memory_bytes: int, cpu_s: int, file_bytes: int, files_open: int) -> None:
    """Bound what this process may still take.

    Args:
        memory_bytes: address space on top of what is mapped now. Linux only: macOS accepts RLIMIT_AS and ignores it.
        cpu_s: CPU seconds of all threads since the process started; SIGXCPU then, SIGKILL a second later.
        file_bytes: the longest file it may write (EFBIG beyond it: Python ignores SIGXFSZ).
        files_open: descriptors open at once.
    """
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_CPU, cpu_s, cpu_s + 1)
    _lower(resource.RLIMIT_FSIZE, file_bytes)
    _lower(resource.RLIMIT_NOFILE, files_open)
    if LINUX:
        _lower(resource.RLIMIT_AS, address_space_bytes() + memory_bytes)


def resource_limits() -> str:
    """The name under which `limit_resources` goes in the operator's log."""
    held = ["CPU time", "file size", "open files", "no core dump"]
    return f"resource limits: {', '.join(['address space', *held] if LINUX else held)}"
