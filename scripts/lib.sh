# shellcheck shell=bash
# What scripts/fwp, scripts/test and scripts/python-env share: look at the machine, make libtorch and
# the release build ready. Sourced, never run. Everything that is said goes to stderr.
#
# Heeded: LIBTORCH (a libtorch 2.11.0 of the user's), FWP_LIBTORCH=cpu|cuda (which set to fetch),
# CARGO_TARGET_DIR and everything else that cargo reads.

# The repository, wherever the caller is, also through a symbolic link.
root=$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")
# The name in front of every message.
task=$(basename "$0")

# What cargo would take as relative to where it runs is meant relative to where the user is.
if [[ -n ${CARGO_TARGET_DIR:-} ]]; then
    CARGO_TARGET_DIR=$(realpath -m "$CARGO_TARGET_DIR")
fi

# Set-up failed and nothing was run: told apart from every exit code of fwp-host.
readonly SETUP_FAILED=125

# CUDA 13 needs this major version of the NVIDIA driver.
readonly DRIVER_NEEDED=580

# Free disk in MiB, with room to spare: measured peaks of the download with what is unpacked from it,
# and of a release build from nothing.
readonly DISK_LIBTORCH_CPU=2200
readonly DISK_LIBTORCH_CUDA=8000
readonly DISK_BUILD=2500

say() {
    printf '%s: %s\n' "$task" "$*" >&2
}

die() {
    say "$*"
    exit "$SETUP_FAILED"
}

# ---- what the machine must have -----------------------------------------------------------------

problems=0

# Says one thing that is missing; stop_on_problems ends the run after all of them were said.
problem() {
    say "$*"
    problems=$((problems + 1))
}

stop_on_problems() {
    ((problems == 0)) || exit "$SETUP_FAILED"
}

# at_least HAVE WANTED: compares dotted versions.
at_least() {
    [[ $(printf '%s\n' "$2" "$1" | sort -V | head -n 1) == "$2" ]]
}

have() {
    command -v "$1" >/dev/null 2>&1
}

check_platform() {
    local system glibc
    system="$(uname -s) $(uname -m)"
    [[ $system == "Linux x86_64" ]] ||
        problem "this machine is $system, but the pinned libtorch is for Linux x86_64: set LIBTORCH to a libtorch 2.11.0 of your own"
    glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null) || glibc="glibc 0"
    at_least "${glibc#glibc }" 2.28 ||
        problem "libtorch needs glibc 2.28 or newer, this system has ${glibc/glibc 0/none}: use a newer distribution"
}

check_python() {
    if ! have python3; then
        problem "python3 is missing: install Python 3.8 or newer"
    elif ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 8))' 2>/dev/null; then
        problem "python3 is older than 3.8 or does not start: install Python 3.8 or newer"
    fi
}

check_rust() {
    local needed found
    needed=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$root/Cargo.toml")
    if ! have cargo; then
        problem "cargo is missing: install Rust $needed or newer with rustup (or put its bin folder on PATH)"
        return
    fi
    if ! found=$(cd "$root" && cargo --version 2>/dev/null); then
        problem "cargo does not start: run 'cargo --version' in $root to see why"
        return
    fi
    found=${found#cargo }
    at_least "${found%% *}" "$needed" ||
        problem "Rust ${found%% *} is too old, $needed or newer is needed: run 'rustup update'"
}

# The C++ parts are built by what CXX names, else by c++; rustc links with cc.
check_compiler() {
    local compiler
    if [[ -z ${CXX:-} ]] && ! have c++; then
        for compiler in g++ clang++; do
            if have "$compiler"; then
                export CXX=$compiler
                break
            fi
        done
    fi
    if ! have cc && have gcc; then
        export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER=gcc
    elif ! have cc && have clang; then
        export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER=clang
    elif ! have cc; then
        problem "no C compiler to link with: install one (Debian, Ubuntu: apt install build-essential)"
    fi
    # CXX may hold options or a launcher ("ccache g++"), hence no quotes.
    # shellcheck disable=SC2086
    if ! echo '#include <vector>' | ${CXX:-c++} -std=c++17 -fsyntax-only -x c++ - >/dev/null 2>&1; then
        problem "no working C++17 compiler (tried '${CXX:-c++}'): install one (Debian, Ubuntu: apt install g++) or set CXX"
    fi
}

# check_disk FOLDER MIB WHAT: the folder may not exist yet.
check_disk() {
    local folder=$1 free
    while [[ ! -d $folder ]]; do
        folder=$(dirname "$folder")
    done
    free=$(df -Pm "$folder" | awk 'NR == 2 { print $4 }')
    [[ $free =~ ^[0-9]+$ ]] || return 0
    ((free >= $2)) ||
        problem "$3 needs $2 MiB of free disk and $folder has $free MiB: make room, or move the repository${CARGO_TARGET_DIR:+ or CARGO_TARGET_DIR}"
}

# ---- libtorch -----------------------------------------------------------------------------------

# Whether CUDA 13 can run here; also says when only the driver is too old.
has_usable_gpu() {
    local version
    if [[ -r /proc/driver/nvidia/version ]]; then
        version=$(grep -oE '[0-9]+\.[0-9]+(\.[0-9]+)?' /proc/driver/nvidia/version | head -n 1) || true
        [[ ${version%%.*} -lt $DRIVER_NEEDED ]] || return 0
        [[ -f $root/.libtorch/cpu.ready ]] ||
            say "the NVIDIA driver $version is older than CUDA 13 needs ($DRIVER_NEEDED): taking libtorch without GPU"
        return 1
    fi
    # WSL has no such file.
    have nvidia-smi && timeout 20 nvidia-smi -L 2>/dev/null | grep -q '^GPU'
}

wanted_set() {
    case "${FWP_LIBTORCH:-}" in
    cpu | cuda) echo "$FWP_LIBTORCH" ;;
    "") if has_usable_gpu; then echo cuda; else echo cpu; fi ;;
    *) die "FWP_LIBTORCH is '$FWP_LIBTORCH': set it to cpu or cuda, or unset it" ;;
    esac
}

# libtorch_is_ready SET: whether .libtorch/ is complete and as pinned now (see libtorch.py).
libtorch_is_ready() {
    local kind kinds
    for kind in cpu cuda; do
        [[ $kind == cpu && $1 == cuda ]] && continue
        [[ -f $root/.libtorch/$kind.ready ]] || continue
        kinds='layout|both'
        [[ $kind == cpu ]] || kinds+='|cuda'
        [[ $(<"$root/.libtorch/$kind.ready") == "$(grep -E "^($kinds) " "$root/scripts/libtorch.pins")" ]] && return 0
    done
    return 1
}

# A libtorch of the user's is taken as it is, once it looks like one.
check_given_libtorch() {
    local libraries=${LIBTORCH_LIB:-$LIBTORCH} headers=${LIBTORCH_INCLUDE:-$LIBTORCH} version=""
    local hint="point it at the folder of libtorch 2.11.0 that holds lib/ and include/, or unset it and it is fetched"
    [[ -e $libraries/lib/libtorch_cpu.so && -e $libraries/lib/libc10.so ]] ||
        die "LIBTORCH is '$LIBTORCH', but $libraries/lib/libtorch_cpu.so is not there: $hint"
    [[ -e $headers/include/ATen/ATen.h ]] ||
        die "LIBTORCH is '$LIBTORCH', but $headers/include/ATen/ATen.h is not there: $hint"
    if [[ -r $LIBTORCH/build-version ]]; then
        version=$(<"$LIBTORCH/build-version")
    elif [[ -r $LIBTORCH/version.py ]]; then
        version=$(sed -n "s/^__version__ = '\([^']*\)'.*/\1/p" "$LIBTORCH/version.py")
    fi
    case "${LIBTORCH_BYPASS_VERSION_CHECK+bypass}:${version%%+*}" in
    bypass:* | :2.11.0 | :) ;;
    *) die "LIBTORCH is '$LIBTORCH' of version $version, but 2.11.0 is needed: $hint" ;;
    esac
}

# LIBTORCH_USE_PYTORCH asks torch-sys for the PyTorch of python3: its folder serves as LIBTORCH.
take_libtorch_of_python() {
    LIBTORCH=$(python3 -c 'import importlib.util as u; print(u.find_spec("torch").submodule_search_locations[0])' 2>/dev/null) ||
        die "LIBTORCH_USE_PYTORCH is set, but python3 has no torch: install torch 2.11.0 there, or unset it"
    unset LIBTORCH_USE_PYTORCH
    export LIBTORCH
}

# Makes a libtorch ready, either the user's or our own, and leaves LIBTORCH pointing at it.
ensure_libtorch() {
    local own=$root/.libtorch/torch set disk
    [[ -n ${LIBTORCH:-} || -z ${LIBTORCH_USE_PYTORCH:-} ]] || take_libtorch_of_python
    if [[ -n ${LIBTORCH:-} ]]; then
        [[ $LIBTORCH == /* ]] || LIBTORCH=$PWD/$LIBTORCH
        if [[ $LIBTORCH != "$own" ]]; then
            check_given_libtorch
            export LIBTORCH
            return
        fi
    fi
    # These would lead torch-sys elsewhere.
    unset LIBTORCH_LIB LIBTORCH_INCLUDE LIBTORCH_STATIC
    export LIBTORCH=$own

    # The larger set serves every wish, and then no GPU need be looked for.
    if libtorch_is_ready cuda; then
        return
    fi
    set=$(wanted_set) || exit "$SETUP_FAILED"
    if libtorch_is_ready "$set"; then
        return
    fi
    check_platform
    check_python
    # Asked for now, so that nobody waits for the download first.
    check_rust
    check_compiler
    disk=$DISK_LIBTORCH_CPU
    [[ $set == cpu ]] || disk=$DISK_LIBTORCH_CUDA
    check_disk "$root/.libtorch" $((disk + DISK_BUILD)) "libtorch with the build"
    stop_on_problems
    if [[ $set == cpu ]]; then
        say "setting up libtorch 2.11.0 without GPU (550 MB to fetch, once)"
    else
        say "setting up libtorch 2.11.0 with CUDA 13 (2.5 GB to fetch, once; FWP_LIBTORCH=cpu takes 550 MB)"
    fi
    python3 "$root/scripts/libtorch.py" "$set" "$root/.libtorch" ||
        die "libtorch is not ready; what to do stands in the line above"
}

# ---- build --------------------------------------------------------------------------------------

# Whether anything changed since build_release last succeeded. Decides only how much is said: cargo
# itself judges, each time, what must be built.
build_looks_fresh() {
    local stamp=$1 inputs=$2 changed
    [[ -f $stamp && $(<"$stamp") == "$inputs" ]] || return 1
    changed=$(cd "$root" && find Cargo.toml Cargo.lock .cargo sdk host plugins tests -newer "$stamp" -print -quit 2>/dev/null)
    [[ -z $changed ]]
}

# Builds host and plugins; sets host_binary. Nothing stale is left beside it.
build_release() {
    local folder stamp inputs artifacts quiet=()
    folder=${CARGO_TARGET_DIR:-$root/target}/release
    stamp=$folder/.fwp-built
    inputs="$root $LIBTORCH ${RUSTFLAGS:-}"
    if build_looks_fresh "$stamp" "$inputs"; then
        quiet=(--quiet)
    else
        check_rust
        if [[ ! -f $stamp ]]; then
            check_compiler
            check_disk "$folder" "$DISK_BUILD" "the build"
            say "building host and plugins (the first time takes minutes: the binding of libtorch is large)"
        else
            say "building what changed in host and plugins"
        fi
        stop_on_problems
    fi
    # The time of the stamp is when the build began: what changes meanwhile counts as changed.
    if ! mkdir -p "$folder" || ! : >"$stamp.new"; then
        die "cannot write to $folder: mend its permissions or set CARGO_TARGET_DIR"
    fi
    # Cargo marks a target folder for backup programs only where it makes it.
    [[ -e $folder/../CACHEDIR.TAG ]] || echo "Signature: 8a477f597d28d172789f06886806bc55" >"$folder/../CACHEDIR.TAG"
    artifacts=$(cd "$root" && cargo build --release --workspace --locked "${quiet[@]}" \
        --message-format=json-render-diagnostics) ||
        die "the build failed; cargo's reason stands above (out of memory: set CARGO_BUILD_JOBS=1; dependencies changed: run 'cargo metadata >/dev/null' once)"
    host_binary=$(sed -n 's/.*"name":"fwp-host".*"executable":"\([^"]*\)".*/\1/p' <<<"$artifacts" | tail -n 1)
    [[ -x $host_binary ]] || die "cargo built no fwp-host: is $root/host/cli still its package?"
    remove_stale_plugins "$(dirname "$host_binary")" "$artifacts"
    # Written now, the stamp would have the time of now.
    printf '%s' "$inputs" >"$stamp"
    touch -r "$stamp.new" "$stamp"
}

# remove_stale_plugins FOLDER ARTIFACTS: the host finds every libfwp_*.so beside it, so one whose crate
# was renamed or removed would still be found.
remove_stale_plugins() {
    local file
    for file in "$1"/libfwp_*.so; do
        if [[ -e $file && $2 != *"\"$file\""* ]]; then
            say "removing $(basename "$file"), which no crate builds any more"
            rm -f "$file"
        fi
    done
}
