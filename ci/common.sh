# What the scripts here share; sourced by them. Sets `top` and changes there.

set -u
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$top" || exit 1
# cargo is often only in a login shell's PATH.
[ -d "${CARGO_HOME:-$HOME/.cargo}/bin" ] && PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"
target=${CARGO_TARGET_DIR:-$top/target}
case $target in /*) ;; *) target=$top/$target ;; esac
export CARGO_TARGET_DIR=$target CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-never}

# Packages by the program that they bring.
packages='memcached:memcached redis-server:redis-server lua5.4:lua5.4 perl:perl sqlite3:sqlite3 xz:xz-utils
python3:python3 cc:gcc readelf:binutils musl-gcc:musl-tools'

# Prints the packages that are missing.
missing_packages() {
    local pair
    for pair in $packages; do
        command -v "${pair%%:*}" >/dev/null || [ -x "/usr/sbin/${pair%%:*}" ] || echo "${pair##*:}"
    done
    [ -e /usr/include/stdio.h ] || echo libc6-dev
}

# Installs what is missing where that is possible, without starting a server; says what stays missing.
provide_packages() {
    local missing policy=/usr/sbin/policy-rc.d ours=
    missing=$(missing_packages | tr '\n' ' ')
    [ -z "${missing// /}" ] && return 0
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "installing: $missing"
        if [ ! -e $policy ]; then
            printf '#!/bin/sh\nexit 101\n' >$policy && chmod 755 $policy && ours=1
        fi
        # shellcheck disable=SC2086 # a list of words
        { apt-get -q update && DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
            apt-get -q install -y --no-install-recommends $missing; } >/tmp/zhuque-apt-$$.log 2>&1 ||
            tail -n 20 /tmp/zhuque-apt-$$.log
        rm -f /tmp/zhuque-apt-$$.log
        [ -n "$ours" ] && rm -f $policy
    fi
    missing=$(missing_packages | tr '\n' ' ')
    [ -z "${missing// /}" ] && return 0
    echo "missing, please install: $missing"
    return 1
}

# Cargo of a version that can build this (Cargo.toml, rust-version).
provide_cargo() {
    local wanted have
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    if ! have=$(cargo --version 2>/dev/null | cut -d' ' -f2); then
        echo "missing: cargo (https://rustup.rs, or the packages rustc and cargo, $wanted or newer)"
        return 1
    fi
    if [ "$(printf '%s\n' "$wanted" "$have" | sort -V | head -n 1)" != "$wanted" ]; then
        echo "cargo is $have, $wanted or newer is needed (https://rustup.rs)"
        return 1
    fi
}

# A directory for stores that is emptied at the end, whatever happens: a program that aborts cannot clean up.
clean_stores() {
    local store region owner command as
    for store in "$ZHUQUE_TEST_DIR"/*/store; do
        [ -d "$store" ] || continue
        owner=$(stat -c %u "$store") command=$zhuque as=
        # Regions are their user's: root does not touch those of others by mistake.
        [ "$(id -u)" = 0 ] && as="setpriv --reuid $owner --regid $owner --clear-groups"
        [ -x "${store%/store}/zhuque" ] && command=${store%/store}/zhuque
        for region in "$store"/*/; do
            [ -e "$region/control" ] && $as "$command" rm -s "$store" "$(basename "$region")" >/dev/null 2>&1
        done
    done
    rm -rf "$ZHUQUE_TEST_DIR"
}
provide_stores() {
    local base=${ZHUQUE_TEST_DIR:-/dev/shm}
    zhuque=${ZHUQUE_BIN:-$target/release/zhuque}
    # Docker's /dev/shm has 64 MiB and cannot execute.
    if [ ! -w "$base" ] || findmnt -no OPTIONS -T "$base" 2>/dev/null | grep -qw noexec ||
        [ "$(df -Pk "$base" | awk 'NR == 2 {print int($4 / 1024)}')" -lt 3000 ]; then
        base=${TMPDIR:-/tmp}
    fi
    ZHUQUE_TEST_DIR=$(mktemp -d "$base/zq-XXXXXX") || exit 1
    chmod 755 "$ZHUQUE_TEST_DIR"
    export ZHUQUE_TEST_DIR ZHUQUE_BIN=$zhuque
    trap clean_stores EXIT
    trap 'exit 130' INT TERM
}
