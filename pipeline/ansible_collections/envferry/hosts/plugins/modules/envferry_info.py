#!/usr/bin/python
# SPDX-License-Identifier: BSD-3-Clause
"""Ansible module: the facts of what envferry installed."""

from __future__ import annotations

DOCUMENTATION = r"""
module: envferry_info
short_description: Gather what environments a host has
version_added: 0.1.0
description:
  - Returns every installation of a host, and sets the fact C(envferry_environments), which has
    what is current by name.
author:
  - The envferry developers (@envferry)
options:
  envs_dir:
    description: The directory of the host's environments. Default is what its settings say.
    type: path
  executable:
    description: The command, or the path of C(envferry.run).
    type: path
    default: envferry
attributes:
  check_mode:
    support: full
    description: It changes nothing.
  diff_mode:
    support: none
    description: There is no difference to show.
"""

EXAMPLES = r"""
- name: What is on the hosts
  envferry.hosts.envferry_info:

- name: Stop where it is too old
  ansible.builtin.assert:
    that: envferry_environments.torch.version is version('2.8', '>=')
"""

RETURN = r"""
installations:
  description: As C(envferry list --json) has them; see its documentation.
  returned: always
  type: list
  elements: dict
ansible_facts:
  description: Facts of the host.
  returned: always
  type: dict
  contains:
    envferry_environments:
      description: For each name, id, version, prefix, platform and origin of what is current.
      returned: always
      type: dict
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.envferry.hosts.plugins.module_utils.envferry_command import (
    COMMON_ARGUMENTS,
    EnvferryCommand,
)


def main():
    """Run the module."""
    module = AnsibleModule(argument_spec=dict(COMMON_ARGUMENTS), supports_check_mode=True)
    found = EnvferryCommand(module).call("list")
    keys = ("id", "version", "prefix", "platform", "origin")
    current = {
        one["name"]: {key: one.get(key) for key in keys} for one in found if one["is_current"]
    }
    module.exit_json(
        changed=False,
        installations=found,
        ansible_facts={"envferry_environments": current},
    )


if __name__ == "__main__":
    main()
