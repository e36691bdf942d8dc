"""The rules that ship, as custom resources of clusters: made from dashboards/rules.yml, and held equal to it by a test.

python tests/unit/rules_for_clusters.py --write
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
OPERATOR = ROOT / "k8s/monitoring/prometheus-operator.yaml"
MANAGED = ROOT / "k8s/monitoring/managed-rules.yaml"

_OPERATOR = """\
# For the Prometheus operator (kube-prometheus-stack): scrape the exporter's pods, with the rules of dashboards/rules.yml.
# If your Prometheus selects by label, give both its label, often `release: ...`.
#
#   kubectl apply -f k8s/monitoring/prometheus-operator.yaml
apiVersion: monitoring.coreos.com/v1
kind: PodMonitor
metadata:
  name: labkit-exporter
  namespace: labkit
  labels: {app.kubernetes.io/name: labkit-exporter, app.kubernetes.io/part-of: labkit}
spec:
  selector:
    matchLabels: {app.kubernetes.io/name: labkit-exporter}
  podMetricsEndpoints:
    - port: metrics
      path: /metrics
      interval: 30s
      # namespace, pod and container are those of the victims, not the exporter's own.
      honorLabels: true
      relabelings:
        - sourceLabels: [__meta_kubernetes_pod_node_name]
          targetLabel: node
---
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: labkit
  namespace: labkit
  labels: {app.kubernetes.io/name: labkit-exporter, app.kubernetes.io/part-of: labkit}
spec:
"""
_MANAGED = """\
# The rules of dashboards/rules.yml for Google Cloud Managed Service for Prometheus, beside k8s/pod-monitoring.yaml. There
# the victim's namespace is called exported_namespace, since `namespace` is the exporter's. If the exporter is elsewhere
# than in the namespace labkit, make it ClusterRules, without a namespace.
# https://cloud.google.com/stackdriver/docs/managed-prometheus/rules-managed
#
#   kubectl apply -f k8s/monitoring/managed-rules.yaml
apiVersion: monitoring.googleapis.com/v1
kind: Rules
metadata:
  name: labkit
  namespace: labkit
  labels: {app.kubernetes.io/name: labkit-exporter, app.kubernetes.io/part-of: labkit}
spec:
"""


def groups(*, managed: bool) -> list[dict[str, Any]]:
    """The groups of rules; for the managed service with the victim's namespace by its name there."""
    text = (ROOT / "dashboards/rules.yml").read_text()
    if managed:
        text = re.sub(r"\bnamespace\b(?=, pod, container)", "exported_namespace", text)
    found: list[dict[str, Any]] = yaml.safe_load(text)["groups"]
    return [{"name": one["name"], "interval": "30s", "rules": one["rules"]} for one in found]


def written(head: str, *, managed: bool) -> str:
    """The whole file."""
    body = yaml.safe_dump(
        {"groups": groups(managed=managed)}, sort_keys=False, width=4096, allow_unicode=True
    )
    return head + "".join(f"  {line}\n" for line in body.splitlines())


def files() -> dict[Path, str]:
    """What each file should hold."""
    return {OPERATOR: written(_OPERATOR, managed=False), MANAGED: written(_MANAGED, managed=True)}


if __name__ == "__main__" and "--write" in sys.argv:
    for path, text in files().items():
        path.write_text(text)
