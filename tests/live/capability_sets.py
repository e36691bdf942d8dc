"""Which rights the exporter was tried with: user, capabilities, the runtime's seccomp profile, and what came of it.

``tests/live/test_containers.py`` tries them; ``tests/unit/test_k8s_manifests.py`` holds the table of docs/kubernetes.md
equal to them.
"""

CAPABILITY_SETS = {
    "as-deployed": ("65532", "BPF,PERFMON", "containerd", "works"),
    "root-with-two": ("0", "BPF,PERFMON", "containerd", "works"),
    "without-perfmon": ("65532", "BPF", "containerd", "refused"),
    "without-bpf": ("65532", "PERFMON", "containerd", "refused"),
    "none": ("65532", "", "containerd", "refused"),
    "root-with-none": ("0", "", "containerd", "refused"),
    "sys-admin-alone": ("0", "SYS_ADMIN", "containerd", "works, with its cost"),
    "with-cost": ("0", "BPF,PERFMON,SYS_ADMIN", "containerd", "works, with its cost"),
    "old-seccomp-profile": ("0", "BPF,PERFMON", "before 1.7", "refused"),
    "privileged": ("0", "privileged", "before 1.7", "works, with its cost"),
}
