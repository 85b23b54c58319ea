"""Images that stand in the place of trees: mounted, after a restart too, and unmounted."""

from __future__ import annotations

import os
from pathlib import Path

from envferry import process
from envferry.base.files import mounts_in, write_bytes
from envferry.errors import HostError, TargetOccupied, ToolFailed

SYSTEMD_RUNS = Path("/run/systemd/system")
"""There where systemd is the init system (sd_booted(3))."""
UNITS = Path("/etc/systemd/system")
# What root mounts could hold set-user-ID programs and devices.
OPTIONS = "ro,nosuid,nodev"
# local-fs.target is reached before services start, so these find the environment mounted.
UNIT = """\
[Unit]
Description=Environment {name}, mounted by envferry

[Mount]
What={image}
Where={tree}
Type=squashfs
Options=loop,{options}

[Install]
WantedBy=local-fs.target
"""


def require_right_to_mount() -> None:
    """Raise HostError unless this is root: before an image is made that could not be mounted."""
    if os.geteuid() != 0:
        message = "only root can mount an image"
        hint = "install it unpacked, or use apptainer or squashfuse: docs/images.md"
        raise HostError(message, hint=hint)


def mount(image: Path, tree: Path) -> None:
    """Mount an image at the directory `tree`, by systemd where it runs, so that it comes back.

    Raises HostError where that cannot be done; nothing is mounted then.
    """
    if tree.is_mount():
        return
    tree.mkdir(exist_ok=True)
    try:
        if SYSTEMD_RUNS.is_dir():
            _mount_by_systemd(image, tree)
        else:
            process.run(["mount", "-t", "squashfs", "-o", f"loop,{OPTIONS}", image, tree])
    except (ToolFailed, OSError) as error:
        # Else systemd would try to mount it at each start.
        forget_unit(tree)
        tree.rmdir()
        message = f"cannot mount {image}: {error}"
        hint = "mounting needs root and loop devices: install it unpacked, or see docs/images.md"
        raise HostError(message, hint=hint) from error


def _mount_by_systemd(image: Path, tree: Path) -> None:
    # In unit files `%` begins a specifier (systemd.unit(5)).
    where, what = (str(path).replace("%", "%%") for path in (tree, image))
    text = UNIT.format(name=tree.parent.name, image=what, tree=where, options=OPTIONS)
    write_bytes(UNITS / unit_name(tree), text.encode())
    process.run(["systemctl", "daemon-reload"])
    process.run(["systemctl", "enable", "--now", unit_name(tree)])


def unmount(tree: Path) -> None:
    """Unmount what is mounted at `tree`, for good; raise TargetOccupied when it is in use."""
    if tree.is_mount():
        try:
            process.run(["umount", tree])
        except ToolFailed as error:
            message = f"cannot unmount {tree}: {error.message}"
            raise TargetOccupied(message, hint="end the processes that use it first") from error
    forget_unit(tree)


def refuse_mounts(tree: Path, image: Path) -> None:
    """Raise TargetOccupied when something is mounted in a tree that is to be removed or replaced.

    On it, its own image may be.
    """
    own = os.path.realpath(tree) if image.exists() else ""
    mounted = [place for place in mounts_in(tree) if place != own]
    if mounted:
        message = f"{tree} is in use: something is mounted on {mounted[0]}"
        raise TargetOccupied(message, hint=f"unmount it (`umount {mounted[0]}`), then run it again")


def forget_unit(tree: Path) -> None:
    """Remove the unit that mounts a tree after a restart, if there is one."""
    unit = UNITS / unit_name(tree)
    if unit.is_file():
        process.run(["systemctl", "disable", unit.name], check=False)
        unit.unlink(missing_ok=True)
        process.run(["systemctl", "daemon-reload"], check=False)


def unit_name(tree: Path) -> str:
    """Return what systemd calls the mount unit of a path (systemd.unit(5), string escaping)."""
    path = os.fsencode(tree).strip(b"/")
    escaped = ""
    for number, byte in enumerate(path):
        character = chr(byte)
        is_plain = character.isascii() and (character.isalnum() or character in ":_.")
        if character == "/":
            escaped += "-"
        elif is_plain and not (character == "." and number == 0):
            escaped += character
        else:
            escaped += f"\\x{byte:02x}"
    return f"{escaped}.mount"
