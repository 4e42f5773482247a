# shellcheck shell=bash
# What the developers' scripts share: where things are, how to find Rust, how to say what is wrong. Source it; it runs nothing.

repo=$(cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
programs=(sheep-images sheep-overlay sheep-ns sheep-run)

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

die() {
    say "$*"
    exit 1
}

need_root() {
    [ "$(id -u)" = 0 ] || die "needs root: sudo scripts/${0##*/}"
}

# Puts cargo on PATH. sudo resets PATH, so the Rust of the user who called it is looked for as well. That user's own target/
# is then left alone: files of root in it would break their next build.
find_cargo() {
    local home
    if ! command -v cargo >/dev/null && [ -n "${SUDO_USER-}" ]; then
        home=$(getent passwd "$SUDO_USER" | cut -d: -f6)
        if [ -x "$home/.cargo/bin/cargo" ]; then
            PATH=$home/.cargo/bin:$PATH
            export RUSTUP_HOME=${RUSTUP_HOME:-$home/.rustup}
            export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$repo/target-root}
        fi
    fi
    command -v cargo >/dev/null || die "cargo is not on PATH: install Rust first (https://rustup.rs), 1.89 or newer"
}

# rustup as the user who owns the toolchain.
rustup_as_owner() {
    if [ -n "${SUDO_USER-}" ] && [ "$(id -u)" = 0 ] && [ "${RUSTUP_HOME-}" = "$(getent passwd "$SUDO_USER" | cut -d: -f6)/.rustup" ]; then
        runuser -u "$SUDO_USER" -- env -u RUSTUP_HOME HOME="${RUSTUP_HOME%/.rustup}" PATH="$PATH" rustup "$@"
    else
        rustup "$@"
    fi
}

# The static target for this machine's processor, and whether it can be built for: Rust's part and a C compiler (for zstd).
static_target() { printf '%s-unknown-linux-musl' "$(uname -m)"; }

can_build_static() {
    command -v musl-gcc >/dev/null && [ -d "$(rustc --print sysroot)/lib/rustlib/$(static_target)/lib" ]
}

# Builds the four programs for use: static where possible, else plain. Sets and exports $bin: the directory they
# are in. A $SHEEP_BIN_DIR given from outside is taken as it is.
build_release() {
    local target args
    if [ -n "${SHEEP_BIN_DIR-}" ]; then
        bin=$SHEEP_BIN_DIR
        return
    fi
    find_cargo
    target=${CARGO_TARGET_DIR:-$repo/target}
    args=(build --release --locked --manifest-path "$repo/Cargo.toml")
    for program in "${programs[@]}"; do
        args+=(-p "$program")
    done
    if can_build_static; then
        say "building static binaries ($(static_target))"
        args+=(--target "$(static_target)")
        bin=$target/$(static_target)/release
    else
        say "building; static binaries start faster: they need 'rustup target add $(static_target)' and Debian's musl-tools"
        bin=$target/release
    fi
    export bin
    cargo "${args[@]}" >&2 || die "the build failed"
}
