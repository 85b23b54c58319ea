"""How often the programs in a container wanted to reach another machine: the kernel counts.

Per network namespace it counts what it has no route for, and unreceived datagrams: without a
resolv.conf, name lookups go to this machine. RFC 4293 and 4113.
"""

from __future__ import annotations

from pathlib import Path

COUNTERS = ("Ip:OutNoRoutes", "Udp:NoPorts", "Ip6OutNoRoutes", "Udp6NoPorts")
FILES = ("/proc/net/snmp", "/proc/net/snmp6")
MARK = "--- envferry: what the kernel counted ---\n"
# The exit status is kept at once, as that of `echo` would replace it.
COUNTED = f"""\
"$@"; code=$?
echo '{MARK.strip()}' >&2
cat {" ".join(FILES)} >&2
exit $code
"""
"""A shell script that runs its arguments and adds the counters to what they said on stderr."""


def network_tries() -> int:
    """Return the number of tries in this container up to now."""
    return count_tries("".join(Path(file).read_text() for file in FILES))


def count_tries(text: str) -> int:
    """Return the number of tries that the kernel's two files tell of."""
    count = 0
    names: list[str] = []
    for line in text.splitlines():
        # snmp6 has a name and a number in each line; snmp a line of names, then one of numbers that
        # begins with the same word.
        first, *words = line.split()
        if not first.endswith(":"):
            count += int(words[0]) if first in COUNTERS else 0
        elif names[:1] != [first]:
            names = [first, *words]
        else:
            pairs = zip(names[1:], words, strict=True)
            count += sum(int(word) for name, word in pairs if f"{first}{name}" in COUNTERS)
            names = []
    return count


def split_counted(stderr: str) -> tuple[str, int]:
    """Take apart what COUNTED left on stderr: what the program said, and the number of tries."""
    said, mark, counters = stderr.rpartition(MARK)
    return (said, count_tries(counters)) if mark else (stderr, 0)
