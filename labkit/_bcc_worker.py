"""The compiler's own process: the one place that imports bcc.

Run as a script. Reads a JSON request on standard input, writes the artifact as JSON to the file the request names.
clang's messages go to standard error, which the parent keeps. It exits 0 when it compiled, 1 when clang refused.

The request: ``{"bcc": folder of the bcc package, "source": C text, "cflags": [...], "debug": int, "out": file}``.
"""

import base64
import ctypes
import json
import os
import sys
import tempfile

_LD_IMM64 = 0x18
_PSEUDO_MAP_FD = 1


def import_bcc(package):
    """Import bcc from the distribution without exposing all of its dist-packages: through a folder with one link."""
    room = tempfile.mkdtemp(prefix="labkit-bcc-")
    try:
        link = os.path.join(room, "bcc")
        os.symlink(package, link)
        sys.path.insert(0, room)
        import bcc

        return bcc
    finally:
        os.unlink(link)
        os.rmdir(room)


def _declare(lib):
    """Signatures of libbcc functions that bcc's own bindings leave out (``bcc_common.h``)."""
    module, index = ctypes.c_void_p, ctypes.c_size_t
    lib.bpf_num_functions.argtypes, lib.bpf_num_functions.restype = [module], ctypes.c_size_t
    lib.bpf_num_tables.argtypes, lib.bpf_num_tables.restype = [module], ctypes.c_size_t
    lib.bpf_table_name.argtypes, lib.bpf_table_name.restype = [module, index], ctypes.c_char_p
    for name in ("bpf_table_key_size_id", "bpf_table_leaf_size_id"):
        getattr(lib, name).argtypes, getattr(lib, name).restype = [module, index], ctypes.c_size_t


def _maps(lib, module):
    found, by_fd = [], {}
    for index in range(lib.bpf_num_tables(module)):
        name = lib.bpf_table_name(module, index)
        by_fd[lib.bpf_table_fd(module, name)] = name.decode()
        found.append(
            {
                "name": name.decode(),
                "kind": lib.bpf_table_type_id(module, index),
                "key_size": lib.bpf_table_key_size_id(module, index),
                "value_size": lib.bpf_table_leaf_size_id(module, index),
                "max_entries": lib.bpf_table_max_entries_id(module, index),
                "flags": lib.bpf_table_flags_id(module, index),
                "key_desc": (lib.bpf_table_key_desc(module, name) or b"").decode(),
                "value_desc": (lib.bpf_table_leaf_desc(module, name) or b"").decode(),
            }
        )
    return found, by_fd


def _functions(lib, module, by_fd):
    """Instructions of each function; map file descriptors, which only live in this process, become names."""
    found = []
    for index in range(lib.bpf_num_functions(module)):
        name = lib.bpf_function_name(module, index)
        start, size = lib.bpf_function_start(module, name), lib.bpf_function_size(module, name)
        code = bytearray(ctypes.string_at(start, size))
        maps = []
        for at in range(0, size, 8):
            if code[at] == _LD_IMM64 and code[at + 1] >> 4 == _PSEUDO_MAP_FD:
                fd = int.from_bytes(code[at + 4 : at + 8], "little", signed=True)
                maps.append([at // 8, by_fd[fd]])
                code[at + 4 : at + 8] = b"\0\0\0\0"
        found.append({"name": name.decode(), "code": base64.b64encode(bytes(code)).decode(), "maps": maps})
    return found


def main():
    request = json.load(sys.stdin)
    bcc = import_bcc(request["bcc"])
    _declare(bcc.lib)
    try:
        program = bcc.BPF(text=request["source"].encode(), cflags=request["cflags"], debug=request["debug"])
    except Exception as error:  # bcc raises plain Exception; clang's reasons are on standard error
        print(f"bcc: {error}", file=sys.stderr)
        return 1
    maps, by_fd = _maps(bcc.lib, program.module)
    artifact = {"maps": maps, "functions": _functions(bcc.lib, program.module, by_fd)}
    with open(request["out"], "w") as file:
        json.dump(artifact, file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
