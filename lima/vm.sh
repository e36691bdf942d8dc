#!/bin/sh
# The lima-* tasks of Taskfile.yml: vm.sh start|stop|delete|shell|notebook|lab|test|build-push [ARGUMENTS]
# LABKIT_LIMA names another instance than ebpf-lab.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)
name=${LABKIT_LIMA:-ebpf-lab}
verb=${1:-}
[ "$#" -eq 0 ] || shift
[ "${1:-}" != -- ] || shift

say() { printf 'lima: %s\n' "$*" >&2; }

if ! command -v limactl >/dev/null; then
    say "limactl is not installed, so there is no virtual machine to talk to. Get it:"
    case $(uname -s) in
        Darwin) say "  brew install lima" ;;
        *) say "  brew install lima, or the archive for Linux of https://lima-vm.io/docs/installation/ and QEMU (qemu-system-x86 or -arm)" ;;
    esac
    [ "$(uname -s)" = Darwin ] || say "This machine runs Linux itself: ./task lab needs no virtual machine."
    exit 2
fi

exists() { limactl list --quiet 2>/dev/null | grep -qxF -e "$name"; }
status() { limactl list --format '{{.Status}}' "$name" 2>/dev/null || :; }

# The first start provisions, which can take longer than limactl's own patience of ten minutes.
start() {
    [ "$(status)" = Running ] && return
    if exists; then
        limactl start --tty=false --timeout 30m "$name"
    else
        say "making $name: an image of 300 MB or so, then packages; ten minutes on a slow line"
        # --set is yq, in which a string is as in JSON; limactl has --param only since 2.2.
        quoted=$(printf '%s' "$root" | sed 's/["\\]/\\&/g')
        limactl start --tty=false --timeout 30m --name "$name" --set ".param.lab = \"$quoted\"" "$@" \
            "$root/lima/ebpf-lab.yaml"
    fi
}

# A command in the clone, as the guest sees it, with the environment that is in the machine.
inside() { limactl shell --workdir /lab "$name" env LABKIT_VENV=/opt/labkit/venv "$@"; }

case $verb in
    start) start "$@" ;;
    stop) ! exists || limactl stop "$@" "$name" ;;
    delete) ! exists || limactl delete --force "$@" "$name" ;;
    shell) start && if [ "$#" -eq 0 ]; then limactl shell --workdir /lab "$name"; else inside "$@"; fi ;;
    notebook)
        start
        say "JupyterLab runs in the machine; the URL below, with its token, works on this computer as well. Ctrl-C ends it."
        inside ./task notebook -- "$@"
        ;;
    lab) start && inside ./task lab -- "$@" && say "the outcomes are in $root/outcomes/latest" ;;
    test) start && inside sudo -E env LABKIT_VENV=/opt/labkit/venv ./task test -- "$@" ;;
    build-push)
        start
        # Its settings come as variables (Taskfile.yml), and go on as such; empty ones mean nothing there either.
        inside env "PROJECT=${PROJECT:-}" "REGION=${REGION:-}" "REPOSITORY=${REPOSITORY:-}" "TAG=${TAG:-}" \
            "IMAGES=${IMAGES:-}" "BUILDER=${BUILDER:-}" "BUILD_ARGS=${BUILD_ARGS:-}" ./task local-build-push -- "$@"
        ;;
    *)
        say "unknown: $verb"
        sed -n '2,3s/^# //p' "$0" >&2
        exit 2
        ;;
esac
