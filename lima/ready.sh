#!/bin/sh
# Ends with 0 only if the lab can measure here, now, as the user who asks: bcc compiles a program (nothing out of a
# cache), the kernel loads it, and it counts a program that we start. Lima's readiness probe, and good anywhere.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)
venv=${LABKIT_VENV:-/opt/labkit/venv}
kept=${LABKIT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/labkit}
LABKIT_CACHE=$(mktemp -d)
trap 'rm -rf "$LABKIT_CACHE"' EXIT
# The merged copy of the headers may be an old one; to make it anew each time would prove nothing.
mkdir -p "$kept/headers" 2>/dev/null && ln -s "$kept/headers" "$LABKIT_CACHE/headers"
LABKIT_ROOT=$root
export LABKIT_CACHE LABKIT_ROOT

"$venv/bin/python" -B "$root/labkit/system/launch.py" env LABKIT_CACHE="$LABKIT_CACHE" "$venv/bin/python" -B - <<'PROGRAM'
import subprocess

import labkit

with labkit.load("hello") as program:
    subprocess.run(["true"], check=True)
    program.stop()
    calls = int(program.frame("hello")["calls"].sum())
    if program.cached or not calls:
        raise SystemExit("the program was loaded, and counted nothing")
    print(f"ready: {program.hooks['hook'][0]} counted {calls} calls")
PROGRAM
