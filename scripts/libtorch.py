"""Makes .libtorch/ hold the libtorch of libtorch.pins: fetches its wheels, checks them, unpacks them.

    python3 libtorch.py cpu|cuda FOLDER

FOLDER is complete if and only if FOLDER/cpu.ready or FOLDER/cuda.ready equals the pins of that set.
That stamp is written last, so an interrupted run leaves no folder that looks complete, and the next
run takes up what was already fetched. Runs that overlap wait for each other.

In FOLDER:
    torch/, nvidia/     lib and include of each wheel, in the places their run paths expect
    licenses/           the licence of each wheel
    wheels/             wheels that the user supplies; they are used before anything is fetched
    download/, new/, old/   work in progress; gone when it is done

Needs Python 3.8 and nothing else. Exit status: 0 done, 1 failed with one line on stderr.
"""

import fcntl
import hashlib
import html.parser
import os
import pathlib
import re
import shutil
import subprocess
import sys
import urllib.parse
import urllib.request
import zipfile
from typing import List, NamedTuple, Optional, Sequence

HERE = pathlib.Path(__file__).resolve().parent
PINS = HERE / "libtorch.pins"
PIP_PIN = HERE / "pip.txt"

# Of torch, the libraries and headers; not Python, and not what only Python or the tests of torch use.
TORCH = re.compile(r"torch/(include/.+|lib/[^/]+\.so(\.\d+)*)$")
TORCH_UNUSED = re.compile(r"torch/lib/lib(torch_python|shm)\.so$")
# Without a GPU half of torch is dead weight.
TORCH_GPU = re.compile(r"torch/lib/lib(torch_cuda\w*|torch_nvshmem|c10_cuda|caffe2_nvrtc)\.so$")
NVIDIA = re.compile(r"nvidia/\w+/(include/.+|lib/[^/]+\.so(\.\d+)*)$")
# What libtorch_cpu.so itself is linked to.
NVIDIA_CPU = re.compile(r"nvidia/cu13/lib/lib(cudart|cupti)\.so[.\d]*$")
LICENCE = re.compile(r"([^/]+)\.dist-info/licenses/(.+)$")


class Failure(Exception):
    """What went wrong and what to do about it, in one line."""


class Wheel(NamedTuple):
    """One pinned wheel."""

    sha256: str
    file: str

    @property
    def requirement(self) -> str:
        """`NAME==VERSION`, as pip takes it."""
        name, version = self.file.split("-")[:2]
        return f"{name.replace('_', '-')}=={version}"

    @property
    def platform(self) -> str:
        """The platform tag to ask an index for; a wheel of several tags answers to any of them."""
        return self.file[: -len(".whl")].split("-")[-1].split(".")[0]


def say(text: str) -> None:
    print(f"libtorch: {text}", file=sys.stderr, flush=True)


def pins_of(which: str) -> List[str]:
    """The lines of the pin table that belong to a set, as its stamp holds them."""
    kinds = ("layout", "both") if which == "cpu" else ("layout", "both", "cuda")
    lines = PINS.read_text().splitlines()
    return [line for line in lines if line.split(" ")[0] in kinds]


def wheels_of(which: str) -> List[Wheel]:
    rows = (line.split(" ") for line in pins_of(which))
    return [Wheel(row[1], row[2]) for row in rows if row[0] != "layout"]


def is_ready(folder: pathlib.Path, which: str) -> bool:
    """Whether the folder holds the set; the cuda set has all of the cpu set in it."""
    for kind in {which, "cuda"}:
        try:
            if (folder / f"{kind}.ready").read_text().splitlines() == pins_of(kind):
                return True
        except OSError:
            pass
    return False


def sha256_of(path: pathlib.Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


# ---- fetching -----------------------------------------------------------------------------------


class Source:
    """Where wheels come from. `fetch` puts one into a folder; the caller checks its hash."""

    def fetch(self, wheel: Wheel, into: pathlib.Path) -> None:
        raise NotImplementedError


class Pip(Source):
    """pip, whichever Python it runs under: the wheel's tags are named, not taken from that Python."""

    def __init__(self, command: Sequence[str], environment: Optional[dict] = None):
        self.command = list(command)
        self.environment = environment or {}

    def fetch(self, wheel: Wheel, into: pathlib.Path) -> None:
        requirement = into / "requirement.txt"
        requirement.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n")
        # pip keeps an unfinished download in TMPDIR; /tmp is often too small for it.
        temporary = into / "tmp"
        temporary.mkdir(exist_ok=True)
        command = self.command + ["download", "--no-input", "--disable-pip-version-check"]
        command += ["--require-hashes", "--no-deps", "--only-binary=:all:"]
        command += ["--platform", wheel.platform]
        command += ["--python-version", "3.11", "--implementation", "cp", "--abi", "cp311"]
        command += ["--dest", str(into), "--requirement", str(requirement)]
        if not sys.stderr.isatty():
            command.append("--quiet")
        environment = dict(os.environ, TMPDIR=str(temporary), PIP_REQUIRE_VIRTUALENV="0")
        environment.update(self.environment)
        # stdout belongs to the program that is started afterwards.
        done = subprocess.run(command, env=environment, stdout=sys.stderr.fileno())
        if done.returncode != 0:
            raise Failure(f"pip could not fetch {wheel.file} (its reason stands above): {by_hand([wheel])}")


class Links(html.parser.HTMLParser):
    """The addresses on one page of a package index."""

    def __init__(self) -> None:
        super().__init__()
        self.found: List[str] = []

    def handle_starttag(self, tag, attributes) -> None:
        self.found += [value for name, value in attributes if tag == "a" and name == "href" and value]


class Index(Source):
    """A plain download from a package index of the user's, where there is no pip."""

    def __init__(self, url: str):
        self.url = url.rstrip("/")

    def fetch(self, wheel: Wheel, into: pathlib.Path) -> None:
        name = wheel.requirement.split("==")[0]
        page = f"{self.url}/{name}/"
        try:
            with urllib.request.urlopen(page, timeout=60) as answer:
                links = Links()
                links.feed(answer.read().decode("utf-8", "replace"))
            links_here = [urllib.parse.urljoin(page, link) for link in links.found]
            matching = [link for link in links_here if link.split("#")[0].endswith("/" + wheel.file)]
            if not matching:
                raise Failure(f"the index of PIP_INDEX_URL does not list {wheel.file}: {by_hand([wheel])}")
            part = into / (wheel.file + ".part")
            with urllib.request.urlopen(matching[0], timeout=60) as answer, part.open("wb") as file:
                shutil.copyfileobj(answer, file, 1 << 20)
            part.rename(into / wheel.file)
        except (OSError, ValueError) as error:
            raise Failure(f"could not fetch {wheel.file} ({error}): {by_hand([wheel])}") from error


def by_hand(wheels: Sequence[Wheel]) -> str:
    """The way out that always works."""
    files = ", ".join(f"{wheel.file} (sha256 {wheel.sha256})" for wheel in wheels)
    return f"check the network, or fetch by hand into .libtorch/wheels/ and run again: {files}"


def works(command: Sequence[str]) -> bool:
    try:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.run(list(command), timeout=300, **quiet).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def find_source(scratch: pathlib.Path, missing: Sequence[Wheel]) -> Source:
    """pip as it is found; else pip in a throw-away environment; else by uv; else an index by itself."""
    for command in ([sys.executable, "-m", "pip"], ["pip3"], ["pip"]):
        if works(command + ["--version"]):
            return Pip(command)
    own = scratch / "venv"
    if works([sys.executable, "-m", "venv", str(own)]):
        return Pip([str(own / "bin" / "python"), "-m", "pip"])
    target = scratch / "pip"
    uv = ["uv", "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--only-binary", ":all:"]
    if works(uv + ["--python", sys.executable, "--target", str(target), "-r", str(PIP_PIN)]):
        return Pip([sys.executable, "-m", "pip"], {"PYTHONPATH": str(target)})
    index = os.environ.get("PIP_INDEX_URL")
    if index:
        return Index(index)
    raise Failure(
        "neither pip, nor Python's venv, nor uv works here: install pip (Debian, Ubuntu: apt install "
        f"python3-pip), or set PIP_INDEX_URL, or {by_hand(missing).replace('check the network, or ', '')}"
    )


def collect(wheels: Sequence[Wheel], folder: pathlib.Path) -> List[pathlib.Path]:
    """The path of every wheel, each with the pinned hash; fetches those that are not here."""
    download = folder / "download"
    download.mkdir(exist_ok=True)
    paths = {}
    for wheel in wheels:
        supplied, fetched = folder / "wheels" / wheel.file, download / wheel.file
        if supplied.exists():
            if sha256_of(supplied) != wheel.sha256:
                raise Failure(
                    f"{supplied} is not the pinned file (its sha256 must be {wheel.sha256}): remove or replace it"
                )
            paths[wheel] = supplied
        elif fetched.exists() and sha256_of(fetched) == wheel.sha256:
            paths[wheel] = fetched
    missing = [wheel for wheel in wheels if wheel not in paths]
    source = find_source(download, missing) if missing else None
    for number, wheel in enumerate(missing, 1):
        say(f"fetching {wheel.file} ({number} of {len(missing)})")
        path = download / wheel.file
        if path.exists():
            path.unlink()
        source.fetch(wheel, download)
        if not path.exists() or sha256_of(path) != wheel.sha256:
            raise Failure(f"what was fetched for {wheel.file} has another sha256 and is refused: {by_hand([wheel])}")
        paths[wheel] = path
    return [paths[wheel] for wheel in wheels]


# ---- unpacking ----------------------------------------------------------------------------------


def place_of(member: str, which: str) -> Optional[str]:
    """Where a file of a wheel goes, or None where it is not needed."""
    licence = LICENCE.match(member)
    if licence:
        return f"licenses/{licence[1]}/{licence[2]}"
    if TORCH.match(member) and not TORCH_UNUSED.match(member):
        return None if which == "cpu" and TORCH_GPU.match(member) else member
    if NVIDIA.match(member):
        needed = which == "cuda" or "/include/" in member or NVIDIA_CPU.match(member)
        return member if needed else None
    return None


def unpack(wheel: pathlib.Path, into: pathlib.Path, which: str) -> None:
    """Writes the needed files of one wheel. Reading a member to its end checks its CRC."""
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            place = place_of(member.filename, which)
            if place is None or member.is_dir():
                continue
            target = into / place
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as packed, target.open("wb") as file:
                shutil.copyfileobj(packed, file, 1 << 20)


def install(which: str, folder: pathlib.Path) -> None:
    new, old = folder / "new", folder / "old"
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    wheels = wheels_of(which)
    paths = collect(wheels, folder)
    say(f"unpacking the {which} set into {folder}")
    new.mkdir()
    for path in paths:
        unpack(path, new, which)
    version = wheels[0].requirement.split("==")[1]
    # torch-sys compares this file with the version that it was generated for.
    (new / "torch" / "build-version").write_text(version + "\n")

    for stamp in folder.glob("*.ready"):
        stamp.unlink()
    old.mkdir()
    for part in new.iterdir():
        if (folder / part.name).exists():
            (folder / part.name).rename(old / part.name)
        part.rename(folder / part.name)
    # The stamp must not survive a power cut that its files do not survive.
    os.sync()
    stamp = new / "stamp"
    stamp.write_text("\n".join(pins_of(which)) + "\n")
    stamp.rename(folder / f"{which}.ready")
    for leftover in (new, old, folder / "download"):
        shutil.rmtree(leftover, ignore_errors=True)


def locked(folder: pathlib.Path):
    """Holds the folder for this process until the returned file is closed or the process ends."""
    lock = (folder / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        say("waiting for another set-up of the same folder")
        fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 2 or arguments[0] not in ("cpu", "cuda"):
        print("usage: libtorch.py cpu|cuda FOLDER", file=sys.stderr)
        return 2
    which, folder = arguments[0], pathlib.Path(arguments[1])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            if not is_ready(folder, which):
                install(which, folder)
        return 0
    except Failure as failure:
        say(str(failure))
    except (OSError, zipfile.BadZipFile) as error:
        say(f"{error}: free disk space or mend the folder {folder}, then run again")
    except KeyboardInterrupt:
        say("interrupted; the next run goes on from what is already fetched")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
