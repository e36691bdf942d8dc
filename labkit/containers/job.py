"""A Job on a cluster, from its pod's first moment to the word of the Job itself.

``kubectl logs --follow`` fails at once while a container is being created (its image is pulled, say), whatever
``--pod-running-timeout`` is: that waits only until the pod has a node. So the pod is asked until it runs.
"""

from __future__ import annotations

import json
import time
from typing import Any

from labkit.containers.shell import CommandFailed, Shell
from labkit.errors import LabkitError

__all__ = ["JobNotFinished", "JobWatch"]

_ASK_S = 2.0
_PATIENCE_S = 900.0  # for a node that is made for the pod, and an image of 1.7 GB
_GRACE_S = 120.0  # beyond the Job's own deadline: its controller is not prompt
_TRIES = 5  # an API server may be away for a moment, in an hour
# The kubelet's words for what does not get better by waiting.
_HOPELESS = ("ErrImageNeverPull", "InvalidImageName")


class JobNotFinished(LabkitError):
    """A Job's pod did not begin, or the Job came to no end, in time."""


class JobWatch:
    """Follows one Job. In a dry run each question is shown once and counts as answered well.

    :param patience_s: how long its pod may take to begin.
    """

    def __init__(
        self,
        shell: Shell,
        name: str,
        namespace: str,
        *,
        patience_s: float = _PATIENCE_S,
        grace_s: float = _GRACE_S,
        ask_s: float = _ASK_S,
    ) -> None:
        self._shell, self._name, self._namespace = shell, name, namespace
        self._patience_s, self._grace_s, self._ask_s = patience_s, grace_s, ask_s

    def _get(self, *what: str) -> dict[str, Any]:
        argv = ("kubectl", "--namespace", self._namespace, "get", *what, "-o", "json")
        for left in reversed(range(_TRIES)):
            try:
                found: dict[str, Any] = json.loads(self._shell.read(*argv))
                break
            except CommandFailed as error:
                if not left:
                    raise
                self._shell.say(f"asking once more: {error.why}")
                time.sleep(self._ask_s)
        return found

    def wait_until_it_runs(self) -> None:
        """Until its pod runs, or has ended already; says what it waits for, once for each reason.

        :raises JobNotFinished: if it does not begin in time, or cannot.
        """
        question = ("pods", "--selector", f"job-name={self._name}")
        self._shell.say(f"+ kubectl --namespace {self._namespace} get {' '.join(question)}   # until it runs")
        if self._shell.dry:
            return
        deadline = time.monotonic() + self._patience_s
        told = ""
        while True:
            pods = self._get(*question).get("items", [])
            phase, why = _state(pods[-1]) if pods else ("", "the Job has no pod yet")
            if phase in ("Running", "Succeeded", "Failed"):
                return
            if why != told:
                self._shell.say(f"waiting: {why}")
                told = why
            late = time.monotonic() >= deadline
            if late or why.startswith(_HOPELESS):
                raise JobNotFinished(
                    f"the pod of {self._name} does not begin",
                    why=f"{why}, for {self._patience_s:.0f} s" if late else why,
                    remedy=f"kubectl -n {self._namespace} describe pods --selector job-name={self._name}",
                )
            time.sleep(self._ask_s)

    def follow_its_log(self) -> None:
        """Show the log until it ends. A connection that breaks is not the Job's end, and not a failure of it."""
        try:
            self._shell.run(
                *("kubectl", "--namespace", self._namespace, "logs", "--follow", f"job/{self._name}")
            )
        except CommandFailed as error:
            self._shell.say(f"the log ended early: {error.why}")

    def wait_for_its_end(self) -> str:
        """Until the Job says itself that it is complete, or has failed.

        :returns: why it failed, in its own words; empty if it is complete.
        :raises JobNotFinished: if it says neither by its own deadline (``activeDeadlineSeconds``, of which it is told when
            it began), and some grace.
        """
        self._shell.say(
            f"+ kubectl --namespace {self._namespace} get job {self._name}   # until it is complete or failed"
        )
        if self._shell.dry:
            return ""
        asked = time.monotonic()
        while True:
            job = self._get("job", self._name)
            for condition in job.get("status", {}).get("conditions", []):
                if condition.get("status") != "True":
                    continue
                if condition["type"] == "Complete":
                    return ""
                if condition["type"] == "Failed":
                    words = [condition.get(key, "") for key in ("reason", "message")]
                    return ": ".join(filter(None, words)) or "it gives no reason"
            limit = float(job.get("spec", {}).get("activeDeadlineSeconds", 3600)) + self._grace_s
            if time.monotonic() - asked >= limit:
                raise JobNotFinished(
                    f"the Job {self._name} says neither that it is complete nor that it has failed",
                    why=f"asked for {limit:.0f} s",
                    remedy=f"kubectl -n {self._namespace} describe job {self._name}",
                )
            time.sleep(self._ask_s)


def _state(pod: dict[str, Any]) -> tuple[str, str]:
    """A pod's phase, and why it does not run yet: its container's reason, else what the scheduler says."""
    status = pod.get("status", {})
    phase = str(status.get("phase", ""))
    for container in (*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])):
        if waiting := container.get("state", {}).get("waiting"):
            words = [waiting.get("reason", ""), waiting.get("message", "")]
            return phase, ": ".join(filter(None, words)) or "its container waits"
    for condition in status.get("conditions", []):
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            words = [condition.get("reason", ""), condition.get("message", "")]
            return phase, ": ".join(filter(None, words))
    return phase, f"the pod is {phase.lower() or 'not known yet'}"
