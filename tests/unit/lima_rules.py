"""limactl's own rules for templates, as far as a template like ours can break them, and stricter: unknown keys are errors.

Keys are those of ``pkg/limatype/lima_yaml.go`` and rules those of ``pkg/limayaml/validate.go`` in Lima 2.2 (limactl itself
only warns of unknown keys, which is how a misspelt `probe:` becomes a machine without one).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from typing import Any

Rule = Callable[[str, Any], Iterator[str]]

_SIZE = re.compile(r"\d+(\.\d+)?\s*([KMGTP]i?B?|B)?", re.IGNORECASE)
_SYSTEM_PATHS = {"/", "/bin", "/dev", "/etc", "/home", "/opt", "/sbin", "/tmp", "/usr", "/var"}
_GUEST_FIELDS = {"Home", "Name", "Hostname", "UID", "User"}
_HOST_FIELDS = {"Dir", "Name", "UID", "User", "Home", "GlobalTempDir", "TempDir"}


def _string(where: str, value: Any) -> Iterator[str]:
    if not isinstance(value, str):
        yield f"{where} must be a string, is {value!r}"


def _boolean(where: str, value: Any) -> Iterator[str]:
    if not isinstance(value, bool):
        yield f"{where} must be true or false, is {value!r}"


def _cpus(where: str, value: Any) -> Iterator[str]:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        yield f"{where} must be a number of CPUs, is {value!r}"


def _size(where: str, value: Any) -> Iterator[str]:
    if not isinstance(value, str) or not _SIZE.fullmatch(value):
        yield f"{where} must be a size such as 4GiB, is {value!r}"


def _version(where: str, value: Any) -> Iterator[str]:
    if not re.fullmatch(r"\d+\.\d+\.\d+", str(value)):
        yield f"{where} must be a semantic version, is {value!r}"


def _address(where: str, value: Any) -> Iterator[str]:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        yield f"{where} must be an IP address, is {value!r}"


def _port(where: str, value: Any) -> Iterator[str]:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 65536 or value == 22:
        yield f"{where} must be a port other than 22, is {value!r}"


def _port_range(where: str, value: Any) -> Iterator[str]:
    if not isinstance(value, list) or len(value) != 2:
        yield f"{where} must be two ports, is {value!r}"
        return
    for number, port in enumerate(value):
        yield from _port(f"{where}[{number}]", port)
    if not any(isinstance(port, str) for port in value) and value[0] > value[1]:
        yield f"{where} must not go backwards"


def _one_of(*allowed: str) -> Rule:
    def rule(where: str, value: Any) -> Iterator[str]:
        if value not in allowed:
            yield f"{where} must be one of {', '.join(allowed)}, is {value!r}"

    return rule


def _texts(where: str, value: Any) -> Iterator[str]:
    if not isinstance(value, dict) or not all(
        isinstance(item, str) for pair in value.items() for item in pair
    ):
        yield f"{where} must map strings to strings"


def _base(where: str, value: Any) -> Iterator[str]:
    for number, locator in enumerate(value if isinstance(value, list) else [value]):
        if not isinstance(locator, str) or not re.match(r"(template:|https?://|\./|/)", locator):
            yield f"{where}[{number}] must be a locator, is {locator!r}"


def _probe_script(where: str, value: Any) -> Iterator[str]:
    yield from _string(where, value)
    if isinstance(value, str) and not value.startswith("#!"):
        yield f"{where} must start with a '#!' line"


def _mount_point(where: str, value: Any) -> Iterator[str]:
    if not isinstance(value, str) or not value.startswith("/"):
        yield f"{where} must be an absolute path, is {value!r}"
    elif value in _SYSTEM_PATHS:
        yield f"{where} must not be a system path, is {value}"


MOUNT: dict[str, Rule] = {"location": _string, "mountPoint": _mount_point, "writable": _boolean}
PROVISION: dict[str, Rule] = {
    "mode": _one_of("system", "user", "boot", "dependency", "data", "yq"),
    **dict.fromkeys(("script", "content", "path", "permissions", "owner", "expression", "format"), _string),
    **dict.fromkeys(("overwrite", "skipDefaultDependencyResolution"), _boolean),
}
PROBE: dict[str, Rule] = {
    "mode": _one_of("readiness"), "description": _string, "script": _probe_script, "hint": _string,
}  # fmt: skip
PORT_FORWARD: dict[str, Rule] = {
    **dict.fromkeys(("guestIP", "hostIP"), _address),
    **dict.fromkeys(("guestPort", "hostPort"), _port),
    **dict.fromkeys(("guestPortRange", "hostPortRange"), _port_range),
    **dict.fromkeys(("guestSocket", "hostSocket"), _string),
    **dict.fromkeys(("guestIPMustBeZero", "reverse", "ignore", "static"), _boolean),
    "proto": _one_of("tcp", "udp", "any"),
}
TOP: dict[str, Rule] = {
    "minimumLimaVersion": _version,
    "base": _base,
    "vmType": _one_of("qemu", "vz", "wsl2"),
    "arch": _one_of("x86_64", "aarch64", "armv7l", "ppc64le", "riscv64", "s390x"),
    "cpus": _cpus,
    "memory": _size,
    "disk": _size,
    "mountType": _one_of("reverse-sshfs", "9p", "virtiofs", "wsl2"),
    "upgradePackages": _boolean,
    "message": _string,
    "param": _texts,
    "env": _texts,
    "plain": _boolean,
}
CONTAINERD: dict[str, Rule] = {"system": _boolean, "user": _boolean}
LISTS = {"mounts": MOUNT, "provision": PROVISION, "probes": PROBE, "portForwards": PORT_FORWARD}


def problems(template: dict[str, Any]) -> list[str]:
    """What limactl would refuse or only warn of, one line each; empty for a good template."""
    return [
        *_keys(template),
        *_provision(template),
        *_forwards(template),
        *_locations(template),
        *_params(template),
    ]


def _fields(where: str, entry: Any, rules: dict[str, Rule]) -> Iterator[str]:
    if not isinstance(entry, dict):
        yield f"{where} must be a mapping"
        return
    for key, value in entry.items():
        if key not in rules:
            yield f"{where}.{key} is unknown"
        else:
            yield from rules[key](f"{where}.{key}", value)


def _keys(template: dict[str, Any]) -> Iterator[str]:
    top = {key: value for key, value in template.items() if key not in {*LISTS, "containerd"}}
    yield from _fields("template", top, TOP)
    yield from _fields("containerd", template.get("containerd", {}), CONTAINERD)
    for name, rules in LISTS.items():
        for number, entry in enumerate(template.get(name, [])):
            yield from _fields(f"{name}[{number}]", entry, rules)
    if "base" not in template and "images" not in template:
        yield "base or images must be set"


def _provision(template: dict[str, Any]) -> Iterator[str]:
    for number, entry in enumerate(template.get("provision", [])):
        where, mode = f"provision[{number}]", entry.get("mode", "system")
        if mode in ("data", "yq"):
            needed = ("path", "content") if mode == "data" else ("path", "expression")
            yield from (f"{where}.{key} must be set in mode {mode}" for key in needed if not entry.get(key))
            if not str(entry.get("path", "/")).startswith("/"):
                yield f"{where}.path must be absolute"
            if not re.fullmatch(r"[0-7]+", entry.get("permissions", "644")):
                yield f"{where}.permissions must be octal"
            continue
        script = entry.get("script", "")
        if not script:
            yield f"{where}.script must not be empty"
        elif not script.startswith("#!"):
            yield f"{where}.script must start with a '#!' line"  # limactl: only of probes; the kernel runs both
        if "LIMA_CIDATA" in script:
            yield f"{where}.script should not use LIMA_CIDATA variables"
        only_data = ("content", "overwrite", "owner", "path", "permissions", "expression", "format")
        yield from (f"{where}.{key} is not for mode {mode}" for key in only_data if key in entry)


def _forwards(template: dict[str, Any]) -> Iterator[str]:
    for number, rule in enumerate(template.get("portForwards", [])):
        where = f"portForwards[{number}]"
        for side in ("guest", "host"):
            if (
                f"{side}Port" in rule
                and f"{side}PortRange" in rule
                and rule[f"{side}Port"] != rule[f"{side}PortRange"][0]
            ):
                yield f"{where}: {side}Port and {side}PortRange contradict each other"
        guest, host = (_range(rule, side) for side in ("guest", "host"))
        if "hostSocket" not in rule and guest[1] - guest[0] != host[1] - host[0]:
            yield f"{where}: guest and host must have equally many ports"
        if rule.get("reverse") and not {"guestSocket", "hostSocket"} <= rule.keys():
            yield f"{where}.reverse is only for sockets"


def forwarded(template: dict[str, Any], guest_ip: str, port: int) -> str | None:
    """Where a TCP port that something in the guest listens on appears on the host; None if nowhere.

    As ``forwardingAddresses()`` of ``pkg/hostagent/port.go`` decides it: the first rule that matches, and after the
    template's own the default, which is about the loopbacks, and about ports that listen on all addresses.
    """
    listens = ipaddress.ip_address(guest_ip)
    for rule in (*template.get("portForwards", []), {}):
        if "guestSocket" in rule or rule.get("proto", "tcp") == "udp":
            continue
        about = ipaddress.ip_address(
            rule.get("guestIP", "0.0.0.0" if rule.get("guestIPMustBeZero") else "127.0.0.1")
        )
        first, last = _range(rule, "guest")
        if not first <= port <= last:
            continue
        matches = (
            listens.is_unspecified
            or listens == about
            or (str(listens) == "::1" and str(about) == "127.0.0.1")
            or (about.is_unspecified and not rule.get("guestIPMustBeZero"))
        )
        if not matches:
            continue
        if rule.get("ignore"):
            if listens.is_unspecified and not about.is_unspecified:
                continue
            return None
        return f"{rule.get('hostIP', '127.0.0.1')}:{_range(rule, 'host')[0] + port - first}"
    return None


def _range(rule: dict[str, Any], side: str) -> tuple[int, int]:
    if f"{side}PortRange" in rule:
        first, last = rule[f"{side}PortRange"]
        return int(first), int(last)
    if f"{side}Port" in rule:
        return rule[f"{side}Port"], rule[f"{side}Port"]
    return (
        (1, 65535) if side == "guest" or "guestPort" not in rule else (rule["guestPort"], rule["guestPort"])
    )


def _locations(template: dict[str, Any]) -> Iterator[str]:
    for number, mount in enumerate(template.get("mounts", [])):
        location = _expand(str(mount.get("location", "")), template.get("param", {}))
        if not location.startswith(("/", "~")) or re.match(r"~[^/]", location):
            yield f"mounts[{number}].location must be an absolute path, is {location!r}"


def _expand(text: str, param: dict[str, str]) -> str:
    return re.sub(r"{{\s*\.Param\.(\w+)\s*}}", lambda match: param.get(match[1], match[0]), text)


def _params(template: dict[str, Any]) -> Iterator[str]:
    """Each parameter is used, each one that is used is declared, and so are the other names in braces."""
    param = template.get("param", {})
    guest = [str(entry.get(key, "")) for entry in template.get("provision", []) for key in PROVISION]
    guest += [str(entry.get("script", "")) for entry in template.get("probes", [])]
    host = [str(mount.get("location", "")) for mount in template.get("mounts", [])]
    everything = "\n".join([*guest, *host])
    for name, value in param.items():
        if not re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_]*", name):
            yield f"param.{name}: not a name"
        if not value.isprintable():
            yield f"param.{name} has unprintable characters"
        if not re.search(rf"{{{{[^}}]*\.Param\.{name}[^}}]*}}}}|\bPARAM_{name}\b", everything):
            yield f"param.{name} is not used"
    for name in set(re.findall(r"\.Param\.(\w+)|\bPARAM_(\w+)", everything)):
        if (name[0] or name[1]) not in param:
            yield f"param.{name[0] or name[1]} is used and not declared"
    for texts, known in ((guest, _GUEST_FIELDS), (host, _HOST_FIELDS)):
        for field in re.findall(r"{{\s*\.(\w+)", "\n".join(texts)):
            if field not in {*known, "Param"}:
                yield f"{{{{.{field}}}}} is not known there"
