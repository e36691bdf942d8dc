"""lima/ebpf-lab.yaml, held against limactl's own rules (lima_rules.py) and against what the lab promises of it."""

from __future__ import annotations

import copy
import inspect
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from lima_rules import forwarded, problems

from labkit.metrics.server import MetricsServer

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "lima/ebpf-lab.yaml").read_text()
TEMPLATE: dict[str, Any] = yaml.safe_load(TEXT)


def changed(change: Callable[[dict[str, Any]], Any]) -> list[str]:
    template = copy.deepcopy(TEMPLATE)
    change(template)
    return problems(template)


def test_the_template_breaks_no_rule() -> None:
    assert problems(TEMPLATE) == []


# Each rule is broken once: a rule that cannot fail holds nothing.
BROKEN: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a misspelt key at the top": (lambda t: t.update(portforwards=[]), "template.portforwards is unknown"),
    "a misspelt key of a probe": (
        lambda t: t["probes"][0].update(scripts="x"),
        r"probes\[0\].scripts is unknown",
    ),
    "a probe without an interpreter": (
        lambda t: t["probes"][0].update(script="true"),
        "must start with a '#!'",
    ),
    "a script without an interpreter": (
        lambda t: t["provision"][0].update(script="true"),
        "must start with a '#!'",
    ),
    "an empty script": (lambda t: t["provision"][0].update(script=""), "must not be empty"),
    "a mode that is none": (lambda t: t["provision"][0].update(mode="root"), "mode must be one of"),
    "data without a path": (
        lambda t: t["provision"].append({"mode": "data", "content": "x"}),
        "path must be set",
    ),
    "data without octal permissions": (
        lambda t: t["provision"].append({"mode": "data", "content": "x", "path": "/x", "permissions": "rw"}),
        "must be octal",
    ),
    "an owner of a script": (
        lambda t: t["provision"][0].update(owner="root"),
        "owner is not for mode system",
    ),
    "a relative mount": (lambda t: t["mounts"][0].update(location="lab"), "must be an absolute path"),
    "a mount over the system": (
        lambda t: t["mounts"][0].update(mountPoint="/opt"),
        "must not be a system path",
    ),
    "a home of somebody else": (lambda t: t["param"].update(lab="~other/lab"), "must be an absolute path"),
    "an unused parameter": (lambda t: t["param"].update(more="x"), "param.more is not used"),
    "an undeclared parameter": (lambda t: t["param"].pop("with"), "param.with is used and not declared"),
    "a parameter with a line break": (lambda t: t["param"].update(lab="/a\nb"), "unprintable"),
    "a template field that is none": (
        lambda t: t["probes"][0].update(script="#!/bin/sh\n{{.LimaHome}}"),
        "LimaHome",
    ),
    "a port for ssh": (lambda t: t["portForwards"][1].update(guestPort=22), "other than 22"),
    "unequal ranges": (lambda t: t["portForwards"][0].update(hostPortRange=[1, 2]), "equally many ports"),
    "a range backwards": (lambda t: t["portForwards"][0].update(guestPortRange=[9, 8]), "backwards"),
    "an address that is none": (lambda t: t["portForwards"][0].update(hostIP="localhost"), "IP address"),
    "a size that is none": (lambda t: t.update(memory="four"), "must be a size"),
    "no CPUs": (lambda t: t.update(cpus=0), "number of CPUs"),
    "a version that is none": (lambda t: t.update(minimumLimaVersion="2.x"), "semantic version"),
    "text for a switch": (lambda t: t["containerd"].update(user="no"), "true or false"),
    "no image": (lambda t: t.pop("base"), "base or images"),
}


@pytest.mark.parametrize("case", list(BROKEN))
def test_each_rule_finds_what_breaks_it(case: str) -> None:
    change, message = BROKEN[case]
    found = changed(change)
    assert any(re.search(message, line) for line in found), found


# --- what the lab promises -----------------------------------------------------------------------------------


def test_the_clone_is_mounted_writable_and_only_the_clone() -> None:
    assert TEMPLATE["mounts"] == [{"location": "{{.Param.lab}}", "mountPoint": "/lab", "writable": True}]


def test_it_runs_wherever_lima_does_on_debian_13() -> None:
    assert TEMPLATE["base"] == ["template:_images/debian-13"]  # amd64 and arm64, among others
    assert (
        not {"vmType", "arch", "mountType"} & TEMPLATE.keys()
    )  # limactl's choice: vz on a Mac, qemu on Linux


def test_jupyter_is_forwarded_between_loopbacks_and_all_else_is_not() -> None:
    *forwarded, rest = TEMPLATE["portForwards"]
    assert {(rule["guestIP"], rule["hostIP"]) for rule in forwarded} == {("127.0.0.1", "127.0.0.1")}
    assert forwarded[0]["guestPortRange"][0] == 8888 == forwarded[0]["hostPortRange"][0]
    assert rest["ignore"]
    assert rest["guestPortRange"] == [1, 65535]


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "0.0.0.0", "::", "192.168.5.15"])
@pytest.mark.parametrize(
    ("port", "seen"), [(8888, True), (8899, True), (9798, True), (5353, False), (8900, False)]
)
def test_what_is_seen_outside_is_jupyter_and_the_exporter_wherever_they_listen(
    address: str, port: int, seen: bool
) -> None:
    outside = f"127.0.0.1:{port}" if seen and address != "192.168.5.15" else None
    assert forwarded(TEMPLATE, address, port) == outside


def test_a_rule_for_the_loopback_alone_would_let_ports_on_all_addresses_out() -> None:
    template = copy.deepcopy(TEMPLATE)
    template["portForwards"][-1]["guestIP"] = "127.0.0.1"
    assert forwarded(template, "127.0.0.1", 5353) is None
    assert forwarded(template, "0.0.0.0", 5353) == forwarded(template, "::", 5353) == "127.0.0.1:5353"


def test_the_metrics_port_is_the_exporters() -> None:
    default = inspect.signature(MetricsServer).parameters["port"].default
    assert TEMPLATE["portForwards"][1]["guestPort"] == default


def test_provisioning_is_the_one_script_and_its_failure_is_seen_by_a_probe() -> None:
    (entry,) = TEMPLATE["provision"]
    assert entry["mode"] == "system"
    assert 'sh /lab/lima/provision.sh --user "{{.User}}"' in entry["script"]
    assert '--with "${PARAM_with:-}"' in entry["script"]
    assert '--gcloud-archive "${PARAM_gcloud_archive:-}"' in entry["script"]
    assert entry["script"].count("touch /run/labkit/failed") == 2
    assert "/run/labkit/failed" in TEMPLATE["probes"][0]["script"]


def test_the_last_probe_is_the_script_that_loads_a_program() -> None:
    assert TEMPLATE["probes"][-1]["script"].splitlines()[-1] == "exec sh /lab/lima/ready.sh"


def scripts() -> list[str]:
    return [entry["script"] for entry in (*TEMPLATE["provision"], *TEMPLATE["probes"])]


@pytest.mark.parametrize("script", scripts())
def test_its_scripts_can_be_parsed(script: str) -> None:
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_has_nothing_to_say() -> None:
    subprocess.run(["shellcheck", *sorted((ROOT / "lima").glob("*.sh"))], check=True)
    for script in scripts():
        subprocess.run(["shellcheck", "--shell=bash", "-"], input=script, text=True, check=True)


def test_every_task_that_it_names_exists() -> None:
    tasks = yaml.safe_load((ROOT / "Taskfile.yml").read_text())["tasks"]
    texts = [TEXT, *(path.read_text() for path in (ROOT / "lima").glob("*.*"))]
    named = set(re.findall(r"\./task ((?:lima|local)-[a-z-]+)", "\n".join(texts)))
    assert {"lima-lab", "lima-notebook", "lima-shell", "lima-auth"} <= named
    assert named <= tasks.keys()
