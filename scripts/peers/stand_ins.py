"""Makes a torch wheel for CUDA importable without the CUDA libraries that only a GPU uses.

    PYTHON stand_ins.py         with the Python that torch is installed in

PyPI's torch for Linux is linked to eleven NVIDIA libraries, 4 GB on disk. On a CPU none of their
functions is ever called, yet Python's loader wants every one of them to exist. So this puts, beside
torch's own libraries, one small library for each that is missing; its functions end the process.

Does nothing where a stand-in or the real library is there. Needs `cc` and `nm`.
Exit status: 0 done, 1 failed with one line on stderr.
"""

import pathlib
import subprocess
import sys
import sysconfig
import tempfile
from typing import Iterator, List, Set, Tuple

# File name, version that its symbols carry (none: empty), and how their names begin.
LIBRARIES = [
    ("libcublas.so.13", "libcublas.so.13", "cublas"),
    ("libcublasLt.so.13", "libcublasLt.so.13", "cublasLt"),
    ("libcudnn.so.9", "libcudnn.so.9", "cudnn"),
    ("libcufft.so.12", "libcufft.so.12", "cufft"),
    ("libcufile.so.0", "", "cuFile"),
    ("libcurand.so.10", "", "curand"),
    ("libcusolver.so.12", "libcusolver.so.12", "cusolver"),
    ("libcusparse.so.12", "libcusparse.so.12", "cusparse"),
    ("libcusparseLt.so.0", "", "cusparseLt"),
    ("libnccl.so.2", "", "nccl"),
    ("libnvshmem_host.so.3", "NVSHMEM", "nvshmem"),
]


def undefined(library: pathlib.Path) -> Iterator[Tuple[str, str]]:
    """Name and version of every symbol that a library takes from others."""
    listed = subprocess.run(["nm", "-D", "--undefined-only", library], check=True, capture_output=True, text=True)
    for line in listed.stdout.splitlines():
        name, _, version = line.split()[-1].partition("@")
        yield name, version.lstrip("@")


def build(target: pathlib.Path, version: str, names: List[str]) -> None:
    """Writes a shared library with these functions, each of which ends the process."""
    with tempfile.TemporaryDirectory() as folder:
        source, script = pathlib.Path(folder, "stand_in.c"), pathlib.Path(folder, "versions")
        source.write_text("".join(f"void {name}(void) {{ __builtin_trap(); }}\n" for name in names))
        script.write_text(f"{version} {{ global: *; }};\n")
        command = ["cc", "-shared", "-fPIC", "-nostdlib", f"-Wl,-soname,{target.name}", "-o", str(target), str(source)]
        if version:
            command.append(f"-Wl,--version-script={script}")
        subprocess.run(command, check=True)


def main() -> None:
    """Makes every stand-in that is missing."""
    packages = pathlib.Path(sysconfig.get_path("purelib"))
    folder = packages / "torch" / "lib"
    present = {path.name for path in packages.glob("nvidia/*/lib/*.so*")} | {path.name for path in folder.iterdir()}
    missing = [row for row in LIBRARIES if row[0] not in present]
    if not missing:
        return
    wanted: Set[Tuple[str, str]] = set()
    for library in folder.glob("*.so"):
        wanted.update(undefined(library))
    for soname, version, prefix in missing:
        build(folder / soname, version, sorted(n for n, v in wanted if v == version and n.startswith(prefix)))


if __name__ == "__main__":
    try:
        main()
    except FileNotFoundError as error:
        sys.exit(f"{error.filename} is missing: install torch in this Python, and binutils and a C compiler")
    except subprocess.CalledProcessError as error:
        sys.exit(f"'{error.cmd[0]}' failed: {error.stderr or 'the reason stands above'}")
