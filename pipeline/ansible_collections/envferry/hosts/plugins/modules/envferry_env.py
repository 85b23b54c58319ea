#!/usr/bin/python
# SPDX-License-Identifier: BSD-3-Clause
"""Ansible module: an environment is installed, at an earlier installation, or not there."""

from __future__ import annotations

DOCUMENTATION = r"""
module: envferry_env
short_description: Install, update, roll back or remove a training environment
version_added: 0.1.0
description:
  - Installs environments that envferry packed, whole or not at all. What is current stays so until
    the new one is complete and its own checks have passed.
  - The command C(envferry) must be on the host. The role P(envferry.hosts.host#role) puts it there.
author:
  - The envferry developers (@envferry)
options:
  name:
    description: The name of the environment on the host.
    type: str
    required: true
  ref:
    description:
      - What to install, C(NAME), C(NAME@TAG), C(NAME@ID), or the path of an archive on the host.
      - Default is the O(name), which means its tag C(latest).
    type: str
  registry:
    description:
      - Where artifacts are, a directory on the host, C(s3://…), C(oci://…) or C(https://…).
      - Default is what the host's settings say.
    type: str
  state:
    description:
      - V(present) installs what O(ref) means and makes it current.
      - V(rolled_back) makes the installation O(id), which the host has, current again.
      - V(absent) removes the environment with all its installations, unless it is in use.
    type: str
    choices: [present, rolled_back, absent]
    default: present
  id:
    description: The installation to go back to. RV(before) of the task that left it has its id.
    type: str
  envs_dir:
    description: The directory of the host's environments. Default is what its settings say.
    type: path
  prefix:
    description: The path at which the environment is used, where that is another than on the host.
    type: str
  executable:
    description: The command, or the path of C(envferry.run).
    type: path
    default: envferry
  trusted_keys:
    description: Public keys on the host to trust besides those of its settings.
    type: list
    elements: path
    default: []
  require_signature:
    description: Reject what is not signed, whatever the settings say.
    type: bool
    default: false
  allow_downgrade:
    description: Accept a tag that was moved back.
    type: bool
    default: false
  run_checks:
    description: Run the environment's own checks before it becomes current.
    type: bool
    default: true
  replace:
    description: Move aside what is in the way and was not made by envferry.
    type: bool
    default: false
  force:
    description: Findings of the host check to live with.
    type: list
    elements: str
    default: []
  keep:
    description: How many installations stay, at most. Those in use stay as well. Default is all.
    type: int
attributes:
  check_mode:
    support: full
    description: Says what would change. All that can refuse an installation is looked at.
  diff_mode:
    support: full
    description: Shows the installation before and after.
notes:
  - Idempotent. Where what O(ref) means is current and whole, the tag, its manifest and the index
    of the archive are all that is read.
"""

EXAMPLES = r"""
- name: The environment is what the tag stable means
  envferry.hosts.envferry_env:
    name: torch
    ref: torch@stable
    registry: https://rack-mirror.example/envs
    require_signature: true
    keep: 2
  register: torch

- name: Go back to what was current before
  envferry.hosts.envferry_env:
    name: torch
    state: rolled_back
    id: "{{ torch.before.id }}"
  when: torch.before.id
"""

RETURN = r"""
before:
  description: What was current. The id is none where nothing was.
  returned: always
  type: dict
  sample: {id: 0a1b2c3d4e5f, version: "2.8", ref: torch@stable}
after:
  description: What is current now, or would be in check mode.
  returned: success
  type: dict
  sample: {id: fa4fa8c4f2e6, version: "2.9", ref: torch@stable}
read_bytes:
  description: How many bytes of the archive an installation reads; the rest is on the host.
  returned: when O(state=present)
  type: int
  sample: 104857600
removed:
  description: The installations that were removed, for O(keep) and O(state=absent).
  returned: success
  type: list
  elements: str
hint:
  description: What envferry says to do about an error.
  returned: failure
  type: str
exit_code:
  description: The exit code of envferry, which tells kinds of errors apart.
  returned: failure
  type: int
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.envferry.hosts.plugins.module_utils.envferry_command import (
    COMMON_ARGUMENTS,
    EnvferryCommand,
)

NOTHING = {"id": None, "version": None, "ref": None}

ARGUMENTS = dict(
    COMMON_ARGUMENTS,
    name={"type": "str", "required": True},
    ref={"type": "str"},
    registry={"type": "str"},
    state={
        "type": "str",
        "choices": ["present", "rolled_back", "absent"],
        "default": "present",
    },
    id={"type": "str"},
    prefix={"type": "str"},
    trusted_keys={"type": "list", "elements": "path", "default": [], "no_log": False},
    require_signature={"type": "bool", "default": False},
    allow_downgrade={"type": "bool", "default": False},
    run_checks={"type": "bool", "default": True},
    replace={"type": "bool", "default": False},
    force={"type": "list", "elements": "str", "default": []},
    keep={"type": "int"},
)


class Environment:
    """One environment of the host that the module runs on."""

    def __init__(self, module):
        self.module = module
        self.name = module.params["name"]
        self.ref = module.params["ref"] or self.name
        self.command = EnvferryCommand(module)
        self.dry = ["--dry-run"] if module.check_mode else []
        self.before = NOTHING

    def look(self):
        """Return what is current."""
        history = self.command.call("history", self.name, none_is_fine=True, before=self.before)
        for one in (history or {}).get("installations", []):
            if one["is_current"]:
                return self.summary(one)
        return NOTHING

    @staticmethod
    def summary(record):
        """Return what the results of the module have of a record."""
        origin = record.get("origin") or {}
        return {"id": record["id"], "version": record.get("version"), "ref": origin.get("ref")}

    def install_words(self):
        """Return the command line of an installation."""
        params = self.module.params
        words = ["install", self.ref, "--name", self.name]
        for option in ("registry", "prefix"):
            if params[option]:
                words += ["--" + option, params[option]]
        flags = ("require_signature", "allow_downgrade", "replace")
        words += ["--" + flag.replace("_", "-") for flag in flags if params[flag]]
        for key in params["trusted_keys"]:
            words += ["--trusted-key", key]
        for finding in params["force"]:
            words += ["--force", finding]
        return words if params["run_checks"] else words + ["--no-check"]

    def install(self):
        """Make current what the ref means."""
        words = self.install_words()
        plan = self.command.call(*words, "--dry-run", before=self.before)
        is_whole = plan["frames"] == 0 and plan["reused"] == plan["files"]
        is_same = plan["id"] == self.before["id"] and is_whole
        after = self.before
        if not is_same and self.module.check_mode:
            after = {"id": plan["id"], "version": None, "ref": self.ref}
        elif not is_same:
            after = self.summary(self.command.call(*words, before=self.before))
        return {
            "after": after,
            "changed": not is_same,
            "read_bytes": 0 if is_same else plan["fetch_bytes"],
        }

    def remove_old(self, will_be):
        """Remove all but the installations that were current last; say which."""
        keep = self.module.params["keep"]
        if not keep or (self.module.check_mode and will_be != self.before["id"]):
            return []  # what a check run would remove after an update is not known yet
        said = self.command.call(
            "remove", self.name, "--keep", str(keep), *self.dry, before=self.before
        )
        return said["removed"]

    def roll_back(self):
        """Make an installation current that is here."""
        wanted = self.module.params["id"]
        if wanted == self.before["id"]:
            return {"after": self.before, "changed": False}
        record = self.command.call("rollback", self.name, wanted, *self.dry, before=self.before)
        return {"after": self.summary(record), "changed": True}

    def remove(self):
        """Remove the environment; fail if a process uses it."""
        words = ["remove", self.name, "--all", "--yes"]
        said = self.command.call(*words, *self.dry, none_is_fine=True)
        if said is None:
            return {"after": NOTHING, "changed": False, "removed": []}
        if said["kept"]:
            why = "; ".join("%s: %s" % item for item in sorted(said["kept"].items()))
            msg = "%s was not removed: %s" % (self.name, why)
            self.module.fail_json(msg=msg, before=self.before, removed=said["removed"])
        return {"after": NOTHING, "changed": bool(said["removed"]), "removed": said["removed"]}

    def as_text(self, state):
        """Return a state for `--diff`."""
        if not state["id"]:
            return ""
        facts = [(name, state[name]) for name in ("version", "ref") if state[name]]
        lines = ["%s@%s" % (self.name, state["id"])] + ["%s: %s" % fact for fact in facts]
        return "".join(line + "\n" for line in lines)


def main():
    """Run the module."""
    module = AnsibleModule(
        argument_spec=ARGUMENTS,
        required_if=[("state", "rolled_back", ["id"])],
        supports_check_mode=True,
    )
    if module.params["keep"] is not None and module.params["keep"] < 1:
        module.fail_json(msg="keep is %d: at least the current one stays" % module.params["keep"])
    environment = Environment(module)
    environment.before = environment.look()
    actions = {
        "present": environment.install,
        "rolled_back": environment.roll_back,
        "absent": environment.remove,
    }
    result = actions[module.params["state"]]()
    if module.params["state"] != "absent":
        result["removed"] = environment.remove_old(will_be=result["after"]["id"])
        result["changed"] = result["changed"] or bool(result["removed"])
    texts = [environment.as_text(state) for state in (environment.before, result["after"])]
    module.exit_json(
        name=environment.name,
        before=environment.before,
        diff={"before": texts[0], "after": texts[1]},
        **result,
    )


if __name__ == "__main__":
    main()
