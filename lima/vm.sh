#!/bin/sh
# The lima-* tasks of Taskfile.yml: vm.sh start|stop|delete|shell|notebook|lab|test|auth|build-push [ARGUMENTS]
# LABKIT_LIMA names another instance than ebpf-lab. auth and build-push with --dry only show what they would run.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)
name=${LABKIT_LIMA:-ebpf-lab}
verb=${1:-}
[ "$#" -eq 0 ] || shift
[ "${1:-}" != -- ] || shift

say() { printf 'lima: %s\n' "$*" >&2; }

dry=
case $verb in
    auth | build-push) for word; do [ "$word" != --dry ] || dry=yes; done ;;
esac

# One word of a command line, in quotes where it needs them.
word() {
    case $1 in
        *[!A-Za-z0-9_./:=@%+,-]* | '') printf "'%s' " "$(printf '%s' "$1" | sed "s/'/'\\\\''/g")" ;;
        *) printf '%s ' "$1" ;;
    esac
}

# limactl itself; in a dry run only the line.
lima() {
    if [ -z "$dry" ]; then
        limactl "$@"
    else
        printf '+ limactl '
        for argument; do word "$argument"; done
        printf '\n'
    fi
}

if [ -z "$dry" ] && ! command -v limactl >/dev/null; then
    say "limactl is not installed, so there is no virtual machine to talk to. Get it:"
    case $(uname -s) in
        Darwin) say "  brew install lima" ;;
        *) say "  brew install lima, or the archive for Linux of https://lima-vm.io/docs/installation/ and QEMU (qemu-system-x86 or -arm)" ;;
    esac
    [ "$(uname -s)" = Darwin ] || say "This machine runs Linux itself: ./task lab needs no virtual machine."
    exit 2
fi

# What limactl says when it does not work is no list of machines.
exists() {
    listed=$(limactl list --quiet 2>&1) || {
        say "limactl is installed and does not work: limactl list says"
        printf '%s\n' "$listed" >&2
        exit 2
    }
    printf '%s\n' "$listed" | grep -qxF -e "$name"
}
status() { limactl list --format '{{.Status}}' "$name"; }

# The first start provisions, which can take longer than limactl's own patience of ten minutes.
start() {
    if [ -z "$dry" ] && exists; then
        if [ "$#" -gt 0 ]; then
            say "$name is there already, and arguments are for the machine that the first start makes. To change it:"
            say "  limactl stop $name && limactl edit $name $* && ./task lima-start"
            say "or ./task lima-delete, and start anew"
            exit 2
        fi
        [ "$(status)" = Running ] || limactl start --tty=false --timeout 30m "$name"
        return
    fi
    if [ -z "$dry" ]; then
        say "making $name: an image of 300 MB or so, then packages; ten minutes on a slow line"
    else
        printf '# if there is no machine %s yet (else limactl start %s):\n' "$name" "$name"
    fi
    # --set is yq, in which a string is as in JSON; limactl has --param only since 2.2.
    quoted=$(printf '%s' "$root" | sed 's/["\\]/\\&/g')
    lima start --tty=false --timeout 30m --name "$name" --set ".param.lab = \"$quoted\"" "$@" "$root/lima/ebpf-lab.yaml"
}

# A command in the clone, as the guest sees it, with the environment that is in the machine.
inside() { lima shell --workdir /lab "$name" env LABKIT_VENV=/opt/labkit/venv "$@"; }

# A task in there with the settings of here. They come as variables (Taskfile.yml); empty ones mean nothing there either.
with_settings() {
    inside env "PROJECT=${PROJECT:-}" "REGION=${REGION:-}" "REPOSITORY=${REPOSITORY:-}" "TAG=${TAG:-}" \
        "IMAGES=${IMAGES:-}" "BUILDER=${BUILDER:-}" "BUILD_ARGS=${BUILD_ARGS:-}" ./task "$@"
}

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
    auth)
        # The login is this computer's; only a token, good for an hour, goes into the machine, on standard input.
        start
        if [ -n "$dry" ]; then
            printf '+ gcloud auth print-access-token | '
            with_settings docker-auth -- --token-stdin | sed 's/^+ //'
            exit
        fi
        if ! command -v gcloud >/dev/null; then
            say "gcloud is not installed here, and it has the login: https://cloud.google.com/sdk/docs/install"
            say "For another registry: ./task lima-shell -- podman login HOST"
            exit 2
        fi
        token=$(gcloud auth print-access-token) || exit
        printf '%s' "$token" | with_settings docker-auth -- --token-stdin "$@"
        ;;
    build-push) start && with_settings local-build-push -- "$@" ;;
    *)
        say "unknown: $verb"
        sed -n '2,3s/^# //p' "$0" >&2
        exit 2
        ;;
esac
