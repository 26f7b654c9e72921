#!/usr/bin/env bash
# What a release has for this machine's platform, in dist/: the programs with the function, packed and as a wheel, the
# function for each kind of host, lists of all that is compiled in (CycloneDX), and the checksums of these files.
#   deploy/dist.sh            from programs that are optimised as far as they can be (cargo's profile release)
#   DIST_PROFILE=dev deploy/dist.sh   from those of `make build`, to try the packages
set -euo pipefail
cd "$(dirname "$0")/.."

profile=${DIST_PROFILE:-release}
target_dir=${CARGO_TARGET_DIR:-target}
cache=${EMBERLINE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/emberline}
programs=(emberline emberline-host emberline-worker)
target=$(rustc -vV | sed -n 's/^host: //p')
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
name=emberline-$version-$target

# SPIR-V where Vulkan drives GPUs; without one, the worker computes on the CPU. Tests have WGSL alone.
case $profile,$target in
  dev,* | *-apple-*) gpu=emberline-worker/gpu ;;
  *) gpu=emberline-worker/vulkan ;;
esac

say() { printf '%s\n' "$*" >&2; }

compile() {
  say "compiling with the profile $profile"
  cargo build --locked --profile "$profile" --features "$gpu" -p emberline-cli -p emberline-host -p emberline-worker
  deploy/setup.sh wasm wasi
}

# The folders bin and share of an installation, at $1.
stage() {
  local from=$target_dir/$profile program
  [ "$profile" != dev ] || from=$target_dir/debug
  rm -rf "$1"
  mkdir -p "$1/bin" "$1/share/emberline/build" "$1/share/emberline/deploy"
  for program in "${programs[@]}"; do
    install -m 755 "$from/$program" "$1/bin/"
    # The profile release has done so.
    [ "$profile" = release ] || strip "$1/bin/$program"
  done
  install -m 644 spin.toml "$1/share/emberline/"
  install -m 644 build/function.wasm "$1/share/emberline/build/"
  install -m 644 deploy/nats.conf "$1/share/emberline/deploy/"
}

archive() {
  say "packing $name.tar.gz"
  stage "build/$name"
  cp README.md LICENSE CHANGELOG.md "build/$name/"
  tar -czf "dist/$name.tar.gz" -C build "$name"
}

# What is compiled in, of each program and of the function.
bills_of_material() {
  cargo cyclonedx --version >/dev/null 2>&1 || cargo install --locked cargo-cyclonedx
  bills worker "$target" "${gpu#*/}" cli host worker
  bills function wasm32-wasip2 spin function
}

# bills CRATE TARGET FEATURE FOLDER...: those of the crates in FOLDER, with CRATE's feature. It writes one for each crate
# of the workspace, beside its manifest, and names the folder in which that is.
bills() {
  local crate=$1 platform=$2 feature=$3 folder
  shift 3
  cargo cyclonedx --quiet --format json --spec-version 1.5 --override-filename bom \
    --manifest-path "$crate/Cargo.toml" --target "$platform" --features "$feature"
  for folder in "$@"; do
    sed "s#path+file://$PWD#path+file:///emberline#g" "$folder/bom.json" >"dist/emberline-$folder-$version.cdx.json"
  done
  find cli examples function host shared tests worker workspace-hack -name bom.json -delete
}

# pip puts `scripts` on PATH and `data` into the environment's top folder.
wheel() {
  deploy/setup.sh dist_tools
  rm -rf build/wheel
  mkdir -p build/wheel/scripts build/wheel/data
  cp -r "build/$name/share" build/wheel/data/
  cp "build/$name/bin/emberline-host" "build/$name/bin/emberline-worker" build/wheel/scripts/
  PATH=$cache/tools/maturin/bin:$PATH maturin build --quiet --profile "$profile" --manifest-path cli/Cargo.toml --out dist \
    --sbom-include "$PWD"/dist/emberline-{host,worker,function}-"$version".cdx.json
}

checksums() {
  local sum=(sha256sum)
  command -v sha256sum >/dev/null || sum=(shasum -a 256)
  (cd dist && "${sum[@]}" -- * >../build/SHA256SUMS && mv ../build/SHA256SUMS .)
}

rm -rf dist
mkdir -p dist build
compile
archive
cp build/function.wasm "dist/emberline-function-$version.wasm"
cp build/function-wasi.wasm "dist/emberline-function-wasi-$version.wasm"
bills_of_material
wheel
checksums
say "in dist/:"
cat dist/SHA256SUMS
