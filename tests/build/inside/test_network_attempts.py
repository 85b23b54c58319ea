"""What the kernel's counters say, and how they are told from what a program says."""

from __future__ import annotations

import subprocess

from envferry.build.inside.network_attempts import (
    COUNTED,
    MARK,
    count_tries,
    network_tries,
    split_counted,
)

SNMP = """\
Ip: Forwarding OutNoRoutes InAddrErrors
Ip: 1 3 5
Icmp: InMsgs
Icmp: 7
Udp: InDatagrams NoPorts
Udp: 0 2
Ip6InReceives                   	9
Ip6OutNoRoutes                  	4
Udp6NoPorts                     	1
"""


def test_counters_are_added() -> None:
    assert count_tries(SNMP) == 3 + 2 + 4 + 1
    assert count_tries("") == 0
    assert network_tries() >= 0


def test_output_and_counters_are_told_apart() -> None:
    argv = ["/bin/sh", "-c", COUNTED, "sh", "/bin/sh", "-c", "echo out; printf err >&2; exit 7"]
    finished = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stdout) == (7, "out\n")
    said, _ = split_counted(finished.stderr)
    assert said == "err"
    assert split_counted(f"a\n{MARK}{SNMP}") == ("a\n", 10)
    assert split_counted("no counters") == ("no counters", 0)
