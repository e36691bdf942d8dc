# The lab's images. `./task local-build-push -- --dry` shows the commands that build them.
#
#   exporter   `labkit serve` and `labkit noisy`: what runs on every node. Not root; CAP_BPF and CAP_PERFMON by a launcher.
#   lab        everything, notebooks included: headless runs and JupyterLab. Root, for privileged pods.
#   tools      bpftool and stress-ng.
#
# All are made by lima/provision.sh, as a virtual machine is. No image takes anything from the node but its kernel's BTF:
# the compiler's headers are in the image, and any version of them serves (labkit/kernel/headers.py says why).

FROM debian:13-slim AS debian
COPY lima/provision.sh /lab/lima/provision.sh
WORKDIR /lab

# Debian's header packages come with a compiler and a kernel; only the merged tree leaves this stage. Folders that no BPF
# program includes are left out: half of the files.
FROM debian AS headers
RUN lima/provision.sh --image --no-environment --packages "python3,linux-headers-$(dpkg --print-architecture)"
COPY labkit/__init__.py labkit/errors.py labkit/paths.py /lab/labkit/
COPY labkit/kernel/headers.py /lab/labkit/kernel/
RUN LABKIT_CACHE=/tmp/cache PYTHONPATH=/lab python3 -c 'from labkit.kernel import headers; headers.merged_tree()' \
    # The link's target is named by what it was made from: the key of compiled programs holds that name.
    && mkdir /opt/labkit && mv /tmp/cache/headers/* /opt/labkit/ && ln -s "$(ls /opt/labkit)" /opt/labkit/headers \
    && cd /opt/labkit/headers/include && rm -rf config drm dt-bindings kunit media misc net9p rdma rv scsi soc sound \
       target ufs video xen

# The environment, from the lock and before the lab itself: a change of the lab costs seconds.
FROM debian AS packages
RUN lima/provision.sh --image --no-environment --packages python3-venv,ca-certificates,python3-bpfcc
COPY task pyproject.toml requirements.lock LICENSE /lab/
COPY labkit/__init__.py /lab/labkit/
RUN touch README.md && LABKIT_VENV=/opt/labkit/venv PIP_NO_CACHE_DIR=1 ./task --version

# What the exporter does not import goes: notebooks, figures, linters.
FROM packages AS slim
COPY labkit/containers/__init__.py labkit/containers/slim.py /lab/labkit/containers/
RUN /opt/labkit/venv/bin/python -m labkit.containers.slim /opt/labkit/venv

FROM debian AS exporter
RUN lima/provision.sh --image --no-environment --packages python3-bpfcc,libcap2-bin \
    && groupadd --gid 65532 labkit && useradd --uid 65532 --gid 65532 --no-create-home --home-dir /tmp labkit \
    && install -d -o labkit -g labkit -m 0700 /var/cache/labkit \
    # Kubernetes gives capabilities to root only. This copy of setpriv hands two of them on to whoever is in the group
    # (labkit/system/launch.py), as far as the container may have them at all.
    && install -D -o root -g labkit -m 0750 /usr/bin/setpriv /usr/local/lib/labkit/launch \
    && setcap cap_bpf,cap_perfmon+ep /usr/local/lib/labkit/launch
COPY --from=headers /opt/labkit/ /opt/labkit/
COPY --from=slim /opt/labkit/venv /opt/labkit/venv
COPY labkit/ /lab/labkit/
COPY bpf/ /lab/bpf/
ENV PATH=/opt/labkit/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    LABKIT_HEADERS=/opt/labkit/headers \
    LABKIT_CACHE=/var/cache/labkit \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1
RUN python3 -m compileall -q labkit && python3 -c 'import labkit.cli'
USER 65532:65532
EXPOSE 9798
HEALTHCHECK --start-period=60s --interval=20s --timeout=5s \
    CMD ["python3", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:9798/healthz', timeout=4)"]
ENTRYPOINT ["labkit"]
CMD ["serve", "--port", "9798", "--address", "0.0.0.0"]

# With the Prometheus that the chapter on metrics asks: in a pod it cannot be fetched.
FROM packages AS lab
RUN lima/provision.sh --image --no-environment --packages bpftool,stress-ng,prometheus
COPY --from=headers /opt/labkit/ /opt/labkit/
COPY . /lab/
ENV PATH=/opt/labkit/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    LABKIT_VENV=/opt/labkit/venv \
    LABKIT_HEADERS=/opt/labkit/headers \
    LABKIT_CACHE=/var/cache/labkit \
    LABKIT_OUTCOMES=/outcomes \
    HOME=/tmp \
    JUPYTER_PLATFORM_DIRS=1 \
    PYTHONDONTWRITEBYTECODE=1
RUN lima/provision.sh --image --parts bcc,headers \
    && mkdir -p /var/cache/labkit /outcomes \
    && python3 -c 'from labkit.system.kernelspec import wrap_kernelspec; wrap_kernelspec()' \
    && python3 -m compileall -q labkit
HEALTHCHECK --interval=60s --timeout=30s CMD ["labkit", "--version"]
ENTRYPOINT ["labkit"]
CMD ["run"]

FROM debian AS tools
RUN lima/provision.sh --image --no-environment --packages bpftool,stress-ng
USER 65532:65532
HEALTHCHECK --interval=60s CMD ["bpftool", "version"]
CMD ["sleep", "infinity"]
