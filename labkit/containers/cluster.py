"""What the tasks do on a cluster: deploy, take away, run the lab there, and answer for one slow pod."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from labkit.containers.images import Registry
from labkit.containers.job import JobWatch
from labkit.containers.manifests import Rendering, apply, overlay
from labkit.containers.shell import Shell
from labkit.errors import LabkitError, ParameterError
from labkit.paths import outcomes_dir

__all__ = ["DEMO", "NAMESPACE", "Cluster", "PodName"]

NAMESPACE = "labkit"
DEMO = "labkit-demo"
_EXPORTER = "app.kubernetes.io/name=labkit-exporter"
_DNS = r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?"  # RFC 1123, as the API server asks for


@dataclass(frozen=True)
class PodName:
    """A pod: ``namespace/name``."""

    namespace: str
    name: str

    @classmethod
    def parse(cls, text: str) -> PodName:
        """
        :raises ParameterError: if the text is none.
        """
        match = re.fullmatch(rf"(?:(?P<namespace>{_DNS})/)?(?P<name>{_DNS})", text)
        if match is None:
            raise ParameterError(
                f"{text!r} names no pod" if text else "which pod?",
                remedy="POD=namespace/name, as `kubectl get pods -A` lists them",
            )
        return cls(match["namespace"] or "default", match["name"])

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class Cluster:
    """The cluster that kubectl talks to.

    :param settings: OVERLAY, PRIVILEGED, NODE, CPUS, WORKERS and those of :meth:`Registry.of`; by default the environment.
    """

    def __init__(self, shell: Shell, settings: Mapping[str, str] | None = None) -> None:
        self._shell = shell
        self._settings = os.environ if settings is None else settings
        self._registry = Registry.of(self._settings)

    def _setting(self, name: str, default: str = "") -> str:
        return self._settings.get(name) or default

    def _kubectl(self, *arguments: str, namespace: str = NAMESPACE) -> None:
        self._shell.run("kubectl", "--namespace", namespace, *arguments)

    def _ask(self, *arguments: str, namespace: str = NAMESPACE, unknown: str = "") -> str:
        return self._shell.read("kubectl", "--namespace", namespace, *arguments, unknown=unknown)

    def _where(self, *, images: bool = True) -> None:
        """Say which cluster this is about, and refuse images that its nodes cannot have."""
        if images and self._registry.local and self._setting("OVERLAY", "gke") != "kind":
            raise ParameterError(
                f"a cluster's nodes cannot pull {self._registry.image('exporter')}",
                why="that name means the node itself, and no registry was named",
                remedy="PROJECT=my-project REGION=..., or IMAGES=host/folder; on kind, with images "
                "loaded by `kind load docker-image`: OVERLAY=kind",
            )
        context = self._shell.read("kubectl", "config", "current-context", unknown="CLUSTER")
        self._shell.say(f"cluster: {context}")

    def _wait_for(self, workload: str, namespace: str = NAMESPACE) -> None:
        self._kubectl("rollout", "status", workload, "--timeout=300s", namespace=namespace)

    def deploy(self) -> None:
        """The exporter on every node."""
        chosen = overlay(self._setting("OVERLAY", "gke"))
        self._where()
        components = ["components/privileged"] if self._setting("PRIVILEGED") not in ("", "0", "no") else []
        apply(self._shell, Rendering.with_images(self._registry, chosen, components=components))
        self._wait_for("daemonset/labkit-exporter")

    def deploy_bpftool(self) -> None:
        """bpftool on every node, from the lab's image, or Debian's where images are this machine's own."""
        self._where(images=False)
        wanted = {} if self._registry.local else {"debian": self._registry.image("tools")}
        apply(self._shell, Rendering(("bpftool-daemonset.yaml",), images=wanted))
        self._wait_for("daemonset/labkit-bpftool")

    def deploy_monitoring(self) -> None:
        """Let Google's managed Prometheus scrape the exporter."""
        self._where(images=False)
        apply(self._shell, Rendering(("pod-monitoring.yaml",)))

    def deploy_ballast(self) -> None:
        """Pods that hold ``CPUS`` CPUs of each labelled node and do nothing."""
        self._where()
        cpus = self._number("CPUS")
        patches = [
            {
                "target": {"kind": "DaemonSet", "name": "ballast"},
                "patch": "\n".join(
                    f"- {{op: replace, path: /spec/template/spec/containers/0/resources/{part}/cpu, value: '{cpus}'}}"
                    for part in ("requests", "limits")
                ),
            }
        ]
        apply(
            self._shell,
            Rendering.with_images(self._registry, "ballast.yaml", patches=patches if cpus else []),
        )
        self._wait_for("daemonset/ballast", DEMO)

    def deploy_stressor(self) -> None:
        """A victim, a throttled one and a noisy neighbour with ``WORKERS`` busy loops, on one node."""
        self._where()
        workers = self._number("WORKERS")
        path = "/spec/template/spec/containers/0"
        patches = [
            {
                "target": {"kind": "Deployment", "name": "cpu-stressor"},
                "patch": f"- {{op: replace, path: {path}/env/0/value, value: '{workers}'}}\n"
                f"- {{op: replace, path: {path}/resources/limits/cpu, value: '{workers}'}}",
            }
        ]
        apply(
            self._shell,
            Rendering.with_images(self._registry, "cpu-stressor.yaml", patches=patches if workers else []),
        )
        for name in ("victim", "cpu-stressor"):
            self._wait_for(f"deployment/{name}", DEMO)
        self._shell.say("what the victim sees:")
        self._shell.say(f"  kubectl -n {DEMO} logs -f deployment/victim")

    def _number(self, name: str) -> int:
        text = self._setting(name)
        if text and not re.fullmatch(r"[1-9]\d{0,3}", text):
            raise ParameterError(f"{name}={text!r} is no number of CPUs", remedy=f"{name}=4")
        return int(text or 0)

    def undeploy(self) -> None:
        """Take away all that these tasks brought; programs leave the kernels with their processes."""
        self._where(images=False)
        delete = ("kubectl", "delete", "--ignore-not-found")
        # The measuring first, and without waiting for the rest.
        self._shell.run(*delete, "--namespace", NAMESPACE, "daemonset", "labkit-exporter", "labkit-bpftool")
        self._shell.run(*delete, "namespace", NAMESPACE, DEMO)
        self._shell.run(*delete, "clusterrolebinding,clusterrole", "labkit-exporter")

    def notebook(self) -> None:
        """JupyterLab on a node; prints how to reach it."""
        self._where()
        apply(self._shell, Rendering.with_images(self._registry, "base/namespace.yaml", "notebook-pod.yaml"))
        self._kubectl("wait", "--for=condition=ready", "pod/labkit-notebook", "--timeout=300s")
        self._kubectl("logs", "labkit-notebook")
        self._shell.say(f"then: kubectl -n {NAMESPACE} port-forward pod/labkit-notebook 8888")

    def lab(self) -> None:
        """The whole lab on a node; its outcomes land in ``outcomes/k8s``."""
        self._where()
        patches = []
        if node := self._setting("NODE"):
            path = "/spec/template/spec/nodeSelector/kubernetes.io~1hostname"
            value = PodName.parse(node).name  # a node is named as a pod is
            patch = f"- {{op: add, path: {path}, value: '{value}'}}"
            patches = [{"target": {"kind": "Job", "name": "labkit-lab"}, "patch": patch}]
        self._kubectl("delete", "--ignore-not-found", "job/labkit-lab", "pod/labkit-outcomes-reader")
        wanted = ("base/namespace.yaml", "lab-job.yaml")
        apply(self._shell, Rendering.with_images(self._registry, *wanted, patches=patches))
        job = JobWatch(self._shell, "labkit-lab", NAMESPACE)
        job.wait_until_it_runs()
        job.follow_its_log()
        failed = job.wait_for_its_end()
        self._fetch_outcomes()
        if failed:
            raise LabkitError(
                "the lab failed on the cluster",
                why=failed,
                remedy=f"read {outcomes_dir() / 'k8s/latest/README.md'}",
            )

    def _fetch_outcomes(self) -> None:
        apply(self._shell, Rendering.with_images(self._registry, "outcomes-reader.yaml"))
        try:
            self._kubectl("wait", "--for=condition=ready", "pod/labkit-outcomes-reader", "--timeout=120s")
            self._kubectl("cp", "labkit-outcomes-reader:/outcomes/.", str(outcomes_dir() / "k8s"))
        finally:
            self._kubectl("delete", "--ignore-not-found", "--wait=false", "pod/labkit-outcomes-reader")

    def noisy(self, pod: PodName, seconds: float, *arguments: str) -> None:
        """Who slows this pod down: the answer of the exporter on its node.

        :param arguments: handed on to ``labkit noisy`` (``--json``).
        :raises LabkitError: if the pod runs nowhere, or its node has no exporter.
        """
        if not 0 < seconds <= 3600:
            raise ParameterError(f"SECONDS={seconds:g}", remedy="more than 0, at most 3600")
        node = self._ask(
            *("get", "pod", pod.name, "-o", "jsonpath={.spec.nodeName}"),
            namespace=pod.namespace,
            unknown="NODE",
        )
        if not node:
            raise LabkitError(
                f"{pod} runs on no node yet", remedy=f"kubectl -n {pod.namespace} describe pod {pod.name}"
            )
        exporter = self._exporter_on(node)
        self._kubectl(
            *("exec", exporter, "--container", "exporter", "--"),
            *("labkit", "noisy", "--pod", str(pod), "--seconds", f"{seconds:g}", *arguments),
        )

    def _exporter_on(self, node: str) -> str:
        running = f"spec.nodeName={node},status.phase=Running"
        names = self._ask(
            *("get", "pods", "--selector", _EXPORTER, "--field-selector", running),
            *("-o", "jsonpath={.items[*].metadata.name}"),
            unknown="EXPORTER",
        ).split()
        if not names:
            raise LabkitError(
                f"no exporter runs on {node}",
                why=f"no running pod with {_EXPORTER} in the namespace {NAMESPACE} there",
                remedy=f"./task deploy-k8s, or if it was switched off there: kubectl label node {node} labkit-off-",
            )
        return names[0]
