"""Run the command envferry on a host, and read its JSON."""

from __future__ import annotations

import json
import os

NOT_FOUND = 7
"""What envferry exits with when there is no such environment, tag or artifact."""

COMMON_ARGUMENTS = {
    "executable": {"type": "path", "default": "envferry"},
    "envs_dir": {"type": "path"},
}
"""Options that all modules have."""


class EnvferryCommand:
    """The command of one host, with the options that all its calls share."""

    def __init__(self, module):
        self.module = module
        self.start = self._start(module.params["executable"])
        envs_dir = module.params["envs_dir"]
        self.place = ["--envs-dir", envs_dir] if envs_dir else []

    def _start(self, executable):
        if "/" not in executable:
            usual = ["/usr/local/bin", "/opt/envferry/bin"]
            return [self.module.get_bin_path(executable, required=True, opt_dirs=usual)]
        if not os.path.isfile(executable):
            self.module.fail_json(
                msg="%s does not exist on this host; the role envferry.hosts.host puts it there"
                % executable
            )
        # A disk that is mounted noexec still has a file that sh can read.
        return [executable] if os.access(executable, os.X_OK) else ["/bin/sh", executable]

    def call(self, *words, **failing):
        """Return what a command says; None if it says that there is no such thing and that is fine.

        Fails the module with envferry's own message, hint and exit code, and with `failing`.
        """
        none_is_fine = failing.pop("none_is_fine", False)
        argv = self.start + list(words) + self.place + ["--json"]
        code, out, err = self.module.run_command(argv)
        try:
            said = json.loads(out) if out.strip() else {}
        except ValueError:
            said = {}
        if code == 0 and out.strip():
            return said
        error = said.get("error", {}) if isinstance(said, dict) else {}
        if code == NOT_FOUND and none_is_fine:
            return None
        text = error.get("message") or err.strip() or "it printed nothing"
        hint = error.get("hint") or ""
        self.module.fail_json(
            msg="envferry %s: %s%s" % (words[0], text, " (%s)" % hint if hint else ""),
            hint=hint,
            exit_code=code,
            cmd=argv,
            stderr=err,
            **failing,
        )
        return None
