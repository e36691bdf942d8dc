#!/bin/sh
# Makes any Debian or Ubuntu machine ready for the lab, as root: a virtual machine of Lima's (lima/ebpf-lab.yaml), one of
# your own, or a container image. It brings what `./task` needs to begin, makes the Python environment outside of the
# clone, and leaves the rest to `labkit setup`, the same code as `./task setup`.
#
# It can be run again at any time: what is there is left alone, and then it needs no network.
#
#   sudo lima/provision.sh [--user NAME] [--venv FOLDER] [--with gcloud --gcloud-archive URL] [--without containers]
#   lima/provision.sh --image [--parts bcc,headers]      in a Dockerfile
#
#   --user NAME       who will work here (default: who called sudo, else root)
#   --venv FOLDER     where the Python environment goes (default: /opt/labkit/venv)
#   --parts LIST      only these of: bcc headers kmod bpftool stress-ng containers gcloud
#   --with LIST       these as well; the default is all but gcloud, for an image bcc, headers and kmod
#   --without LIST    but not these
#   --gcloud-archive URL  where Google's apt archive is, as https://cloud.google.com/sdk/docs/install#deb says
#   --kernel RELEASE  the kernel that will run, if it is not the one that does (in a chroot)
#   --image           the file system of a container image: no mounts, no rights, and no archive lists or caches stay
#   --no-environment  no Python environment: only the packages named by --packages
#   --packages LIST   Debian packages to install as they are
#
# Without bcc, headers and kmod there is no live measurement, and it ends with 1. The other parts are conveniences: what of
# them cannot be had is named, asked for again at the next run, and not a failure. An image is whole or not made.
set -eu

say() { printf 'provision: %s\n' "$*" >&2; }
die() { say "$@"; exit 1; }

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)
user=${SUDO_USER:-root}
venv=/opt/labkit/venv
parts=
with=
without=
gcloud_archive=
kernel=
image=
environment=yes
packages=

words() { printf '%s' "$1" | tr ',' ' '; }
value() { [ "$#" -ge 2 ] || die "$1 needs a value"; }

while [ "$#" -gt 0 ]; do
    case $1 in
        --user) value "$@"; user=$2; shift ;;
        --venv) value "$@"; venv=$2; shift ;;
        --parts) value "$@"; parts=$2; shift ;;
        --with) value "$@"; with=$2; shift ;;
        --without) value "$@"; without=$2; shift ;;
        --gcloud-archive) value "$@"; gcloud_archive=$2; shift ;;
        --kernel) value "$@"; kernel=$2; shift ;;
        --packages) value "$@"; packages=$2; shift ;;
        --image) image=yes ;;
        --no-environment) environment= ;;
        -h | --help) sed -n '2,/^set -eu/{/^set/d;s/^# \{0,1\}//;p;}' "$0"; exit 0 ;;
        *) die "unknown option $1 (--help lists them)" ;;
    esac
    shift
done

[ "$(id -u)" -eq 0 ] || die "this needs root: sudo $0"
command -v apt-get >/dev/null || die "this system has no apt-get; ./task setup says what to install by other means"
id -u "$user" >/dev/null 2>&1 || die "there is no user $user"

# Archives, mirrors and locks fail in passing, most of all in the first minutes of a machine.
again() {
    for pause in 5 15 30; do
        "$@" && return 0
        say "\`$1 ${2:-}\` failed; once more in $pause s"
        sleep "$pause"
    done
    "$@"
}

apt() {
    DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 APT_LISTCHANGES_FRONTEND=none \
        apt-get -q -y -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 "$@" >&2
}

refreshed=
# Without recommendations; lists are fetched once, and only when something is to be installed.
install() {
    if [ -z "$refreshed" ]; then
        again apt -o APT::Update::Error-Mode=any update
        refreshed=yes
    fi
    again apt install --no-install-recommends "$@"
}

# A Python that ./task can make an environment with. Ubuntu 22.04 has 3.11 beside its own 3.10.
fit_python() {
    for candidate in python3 /usr/bin/python3 python3.14 python3.13 python3.12 python3.11; do
        "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && return 0
    done
    return 1
}

beginnings() {
    fit_python || install python3-venv
    for version in 3.14 3.13 3.12 3.11; do
        fit_python && break
        ! apt-cache show "python$version-venv" >/dev/null 2>&1 || install "python$version-venv"
    done
    fit_python || die "this release has no Python 3.11 or later"
    [ -e /etc/ssl/certs/ca-certificates.crt ] || install ca-certificates
}

as_user() {
    if [ "$user" = root ]; then
        "$@"
    else
        # -l gives HOME and no more of root's; a relative TMPDIR or a cache of root's would be in the way.
        runuser -u "$user" -- env -u XDG_CACHE_HOME -u XDG_RUNTIME_DIR HOME="$(getent passwd "$user" | cut -d: -f6)" "$@"
    fi
}

# ./task makes the environment when it is missing or outdated, whatever it is asked for.
make_environment() {
    if [ ! -d "$venv" ]; then
        mkdir -p "$venv"
        chown "$user:" "$venv"
    fi
    as_user env LABKIT_VENV="$venv" ${image:+PIP_NO_CACHE_DIR=1} "$root/task" --version >/dev/null
}

# What set-up is asked for: the defaults, with and without what was named. $1 chooses needed or optional ones.
chosen_parts() {
    if [ -n "$parts" ]; then
        all=$(words "$parts")
    elif [ -n "$image" ]; then
        all='bcc headers kmod'
    else
        all='bcc headers kmod bpftool stress-ng containers'
    fi
    for part in $all $(words "$with"); do
        kind=needed
        case $part in bpftool | stress-ng | containers | gcloud) kind=${image:+needed} ;; esac
        kind=${kind:-optional}
        case " $(words "$without") " in *" $part "*) ;; *) [ "$kind" != "$1" ] || printf '%s,' "$part" ;; esac
    done
}

# -B: no files of root's in a user's clone. SUDO_USER is how set-up knows for whom it is.
set_up() {
    SUDO_USER=$user LABKIT_VENV=$venv "$venv/bin/python" -B "$venv/bin/labkit" setup --yes "$@" \
        ${kernel:+--kernel "$kernel"} ${image:+--image} ${gcloud_archive:+--gcloud-archive "$gcloud_archive"} >&2
}

# Rights and mounts come with the needed parts, also where none of these is asked for.
set_up_all() {
    needed=$(chosen_parts needed)
    optional=$(chosen_parts optional)
    if [ -n "$needed" ] || [ -z "$optional" ]; then again set_up --parts "$needed"; fi
    [ -z "$optional" ] || again set_up --quiet --parts "$optional" ||
        say "not all of $optional could be had (see above); the lab measures without, and the next run asks again"
}

# Login shells, and with them `limactl shell`, find the environment: ./task would make another one in the clone.
tell_shells() {
    line="export LABKIT_VENV=\"\${LABKIT_VENV:-$venv}\""
    [ "$(cat /etc/profile.d/labkit.sh 2>/dev/null)" = "$line" ] || printf '%s\n' "$line" >/etc/profile.d/labkit.sh
}

tidy() {
    apt-get clean
    rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/log/apt /var/log/dpkg.log
}

if [ -n "$packages" ]; then
    missing=
    for name in $(words "$packages"); do
        dpkg-query -W -f '${db:Status-Abbrev}' "$name" 2>/dev/null | grep -q '^ii' || missing="$missing $name"
    done
    # shellcheck disable=SC2086 # names, one by one
    [ -z "$missing" ] || install $missing
fi
if [ -n "$environment" ]; then
    beginnings
    again make_environment
    set_up_all
    [ -n "$image" ] || tell_shells
fi
[ -z "$image" ] || tidy
say "ready"
