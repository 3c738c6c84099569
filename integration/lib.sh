# What integration/run and its helpers share; to be sourced in bash from the repository's root.

# Debian packages by the program, or the file, that shows their presence; a pattern is for any of them.
PACKAGES="
    cc:build-essential
    ip:iproute2
    ping:iputils-ping
    iperf3:iperf3
    tcpdump:tcpdump
    ethtool:ethtool
    rsync:rsync
    nft:nftables
    ps:procps
    python3:python3
    pkg-config:pkg-config
    /usr/include/dpdk/rte_ethdev.h:libdpdk-dev
"

# What other people's software is tested with; it has services, which are not wanted.
SERVICE_PACKAGES="
    redis-server:redis-server
    /usr/lib/postgresql/*/bin/postgres:postgresql
"

# The same for tests with guests.
GUEST_PACKAGES="
    qemu-system-x86_64:qemu-system-x86
    dpdk-testpmd:dpdk-dev
"

# Programs that tests with --all use as users do.
USER_PACKAGES="
    corosync:corosync
    nsenter:util-linux
"

passed=0
failed=0
failures=()

die() {
    echo "integration/run: $*" >&2
    exit 1
}

# Root, a Rust toolchain, the packages.
prepare() {
    [ "$(id -u)" = 0 ] || die "needs root: it makes network namespaces and taps"
    command -v cargo >/dev/null || die "needs a Rust toolchain (cargo), see https://rustup.rs"
    [ -e /dev/net/tun ] || die "needs /dev/net/tun: load the kernel's tun module"
    # shellcheck disable=SC2086
    install_packages $PACKAGES
}

# Whether a program is there, or a file that the pattern fits.
is_there() {
    compgen -G "$1" >/dev/null || command -v "$1" >/dev/null
}

# Installs those of PROGRAM:PACKAGE... whose program is missing.
install_packages() {
    local pair missing=()
    for pair in "$@"; do
        is_there "${pair%%:*}" || missing+=("${pair#*:}")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null || die "lacks ${missing[*]}, and there is no apt-get here"
    echo "== installing ${missing[*]} =="
    apt-get update -qq
    apt_install "${missing[@]}"
}

# Installs Debian packages; debconf must not ask.
apt_install() {
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" \
        </dev/null >/dev/null
}

# install_packages for packages with services: none of them is started, now or at the next boot.
# Where there is no policy for that yet there is one while this runs.
install_without_services() {
    local policy=/usr/sbin/policy-rc.d made=no status=0
    if [ ! -e $policy ]; then
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod 755 $policy
        made=yes
    fi
    # Services that somebody has already stay as they are.
    local pair service before=()
    for pair in "$@"; do
        is_there "${pair%%:*}" || before+=("${pair#*:}")
    done
    install_packages "$@" || status=$?
    if command -v systemctl >/dev/null; then
        for service in "${before[@]}"; do
            systemctl disable --quiet "$service" >/dev/null 2>&1 || true
        done
    fi
    if [ $made = yes ]; then rm -f $policy; fi
    return $status
}

# Reads lines of `bench --list-needs` and brings what is missing: Debian packages, and crates into
# the folder of the builds. What cannot be had is no failure: the bench skips it aloud.
install_needs() {
    local kind proof package version rivals updated=no
    rivals=$(dirname "$TAPD_BIN_DIR")/rivals
    while read -r kind proof package version; do
        case $kind in
        debian)
            if [ -e "$proof" ] || command -v "$proof" >/dev/null; then continue; fi
            echo "== installing $package =="
            [ "$updated" = yes ] || apt-get update -qq || true
            updated=yes
            apt_install "$package" || echo "*** $package cannot be installed" >&2
            ;;
        crate)
            if grep -qs "\"$package $version " "$rivals/.crates.toml"; then continue; fi
            echo "== installing $package $version =="
            cargo install --quiet --locked --root "$rivals" --target-dir "$rivals/build" \
                "$package@$version" || echo "*** $package cannot be built" >&2
            ;;
        folder)
            echo "== building $proof =="
            cargo install --quiet --locked --force --root "$rivals" --target-dir "$rivals/build" \
                --path "$package" || echo "*** $proof cannot be built" >&2
            ;;
        script)
            if [ -e "$rivals/bin/$proof" ]; then continue; fi
            echo "== building $proof =="
            "$package" "$rivals" || echo "*** $proof cannot be built" >&2
            ;;
        esac
    done
}

build_release() {
    cargo build --locked --release --workspace || return
    TAPD_BIN_DIR=$(release_dir) || return
    export TAPD_BIN_DIR
    # Beside the programs, where tapd looks first; and beside what tests are built from.
    fastpath/dpdk-sys/build-shim "$TAPD_BIN_DIR" >/dev/null &&
        fastpath/dpdk-sys/build-shim "$(dirname "$TAPD_BIN_DIR")/debug" >/dev/null
}

# Where cargo puts release builds.
release_dir() {
    cargo metadata --locked --format-version 1 --no-deps |
        python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"] + "/release")'
}

check_dependencies() {
    if cargo deny --version >/dev/null 2>&1; then
        cargo deny --workspace check licenses sources
    else
        integration/check-dependencies
    fi
}

# Runs a command as one test.
step() {
    local name=$1
    shift
    echo "== $name =="
    local begin=$SECONDS
    if "$@"; then
        passed=$((passed + 1))
        echo "== $name: passed ($((SECONDS - begin)) s) =="
    else
        failed=$((failed + 1))
        failures+=("$name")
        echo "== $name: FAILED ($((SECONDS - begin)) s) =="
    fi
}

# Runs cargo test and adds up what its result lines say.
cargo_tests() {
    local name=$1 log status=0 begin=$SECONDS
    shift
    log=$(mktemp)
    echo "== $name =="
    cargo test --locked --no-fail-fast "$@" 2>&1 | tee "$log" || status=$?
    local good bad
    good=$(sed -n 's/^test result: .* \([0-9]*\) passed; .*/\1/p' "$log" | paste -sd+ | sum_up)
    bad=$(sed -n 's/^test result: .* \([0-9]*\) failed; .*/\1/p' "$log" | paste -sd+ | sum_up)
    passed=$((passed + good))
    failed=$((failed + bad))
    if [ "$status" != 0 ] || [ "$bad" != 0 ]; then
        # A test binary that does not build or crashes has no result line.
        [ "$bad" != 0 ] || failed=$((failed + 1))
        failures+=("$name: $(sed -n 's/^test \(.*\) \.\.\. FAILED$/\1/p' "$log" | paste -sd' ')")
    fi
    rm -f "$log"
    echo "== $name: $good passed, $bad failed ($((SECONDS - begin)) s) =="
}

# Evaluates "1+2+3"; nothing is 0.
sum_up() {
    local sum
    read -r sum || true
    echo $((${sum:-0}))
}

# The closing lines; the exit code says whether all is well.
summary() {
    local skipped=0
    if [ -s "$TAPD_SKIP_FILE" ]; then
        skipped=$(wc -l <"$TAPD_SKIP_FILE")
        echo "*** SKIPPED: "
        cat "$TAPD_SKIP_FILE"
    fi
    local failure
    for failure in "${failures[@]}"; do
        echo "FAILED: $failure"
    done
    [ $((passed + failed)) -gt 0 ] || { echo "no test ran" >&2; failed=1; }
    if [ "$skipped" != 0 ]; then
        echo "$passed passed, $failed failed, $skipped skipped"
    else
        echo "$passed passed, $failed failed"
    fi
    [ "$failed" = 0 ]
}
