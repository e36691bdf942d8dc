"""A Debian guest with kprobes, under QEMU's software emulation, for tests that this machine's kernel cannot run.

``python -m guest test`` runs the tests marked ``guest`` inside it, ``python -m guest shell`` gives a person a shell
there. Nothing of it is needed to use the lab. From the ground up:

- ``errors``: a guest that cannot be had is infrastructure, never a failing test;
- ``arch``: what differs between processor architectures, as one table;
- ``host``: what this machine must have, and where its Debian packages come from;
- ``release``: which Debian with which kernel; ``root``: a fresh one, made ready by lima/provision.sh;
- ``image``: kernel, initrd and disk, built once and kept in labkit's cache;
- ``janitor``, ``qemu``, ``agent``: one emulator process, its control socket, commands inside;
- ``machine``: a running guest; ``repo``: what is shipped into it;
- ``survey``: what each program does on the running kernel; ``compatibility``: docs/compatibility.md out of such;
- ``start``: boot, snapshot, restore; ``shell``: the terminal.
"""
