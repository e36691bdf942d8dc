"""Where the lab runs in containers: images, pods on a cluster, and the workloads of the demonstration there.

``python -m labkit.containers`` is what the tasks of Taskfile.yml call.
"""
