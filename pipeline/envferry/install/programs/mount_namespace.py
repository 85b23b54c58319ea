"""Run a program that alone sees an environment as the current one.

A script, run as `python -I -S mount_namespace.py ENVS_DIR NAME LINK [PROGRAM …]`: it imports
nothing of envferry and nothing that is not in the standard library. In a mount namespace of its
own it covers ENVS_DIR by a copy that has everything of the real one, and `NAME -> LINK`. Without a
program it only says, by its exit status, whether that can be.
"""

from __future__ import annotations

import ctypes
import os
import sys

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
# As env(1) ends: 125 when it fails itself, 127 when the program cannot be found.
CANNOT = 125
LIBC = ctypes.CDLL(None, use_errno=True)


def main(arguments: list[str]) -> int:
    """Cover the directory, then become the program."""
    envs_dir, name, link, *program = arguments
    before = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        enter_namespace()
        cover(envs_dir, name, link)
        # Covering has left us in the directory below the cover.
        os.fchdir(before)
    except OSError as error:
        sys.stderr.write(f"no view of its own: {error}\n")
        return CANNOT
    if not program:
        return 0
    try:
        os.execvp(program[0], program)
    except OSError as error:
        sys.stderr.write(f"cannot run {program[0]}: {error.strerror}\n")
        return 127


def enter_namespace() -> None:
    """Enter a mount namespace; who is not root does so as the owner of a user namespace."""
    user, group = os.geteuid(), os.getegid()
    try:
        call("unshare", CLONE_NEWNS)
    except PermissionError:
        call("unshare", CLONE_NEWNS | CLONE_NEWUSER)
        # Without it the kernel lets no ordinary user write gid_map (user_namespaces(7)).
        write("/proc/self/setgroups", "deny")
        write("/proc/self/uid_map", f"{user} {user} 1")
        write("/proc/self/gid_map", f"{group} {group} 1")
    # Or the mounts below would show on the host: systemd makes `/` shared (mount_namespaces(7)).
    mount(None, "/", None, MS_REC | MS_PRIVATE)


def cover(envs_dir: str, name: str, link: str) -> None:
    """Mount a directory over another that has the same things in it, but for one link."""
    real = os.open(envs_dir, os.O_RDONLY | os.O_DIRECTORY)
    mode = os.fstat(real).st_mode & 0o777
    mount("tmpfs", envs_dir, "tmpfs", MS_NOSUID | MS_NODEV, f"mode={mode:o}")
    # From here on the names of what is covered are relative to it.
    os.fchdir(real)
    with os.scandir() as found:
        items = [item for item in found if item.name != name]
    for item in items:
        try:
            show(item, os.path.join(envs_dir, item.name))  # noqa: PTH118
        except FileNotFoundError:
            continue  # removed meanwhile, by another command at work in this directory
    os.symlink(link, os.path.join(envs_dir, name))  # noqa: PTH118, PTH211


def show(item: os.DirEntry[str], place: str) -> None:
    """Let a thing of the covered directory be seen at its place; raise FileNotFoundError if gone.

    It is named relative to the current directory.
    """
    if item.is_symlink():
        os.symlink(os.readlink(item.name), place)  # noqa: PTH115, PTH211
        return
    if item.is_dir():
        # A bind mount covers something of its own kind.
        os.mkdir(place)  # noqa: PTH102
    else:
        os.close(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        # With what is mounted in it: trees of images are.
        mount(item.name, place, None, MS_BIND | MS_REC)
    except FileNotFoundError:
        os.rmdir(place) if os.path.isdir(place) else os.unlink(place)  # noqa: PTH106, PTH108, PTH112
        raise


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """Mount as the manual page of the system call says."""
    texts = (source, target, kind)
    encoded = [os.fsencode(text) if text is not None else None for text in texts]
    call("mount", *encoded, flags, options.encode())


def call(name: str, *arguments: object) -> None:
    """Call a function of the C library that returns 0 on success."""
    if getattr(LIBC, name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), name)


def write(path: str, text: str) -> None:
    """Write a file of /proc."""
    with open(path, "w") as stream:  # noqa: PTH123
        stream.write(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
