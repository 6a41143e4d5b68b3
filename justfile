# `just check` is what has to pass before a change lands; `.ci/run` runs the same.

fuzz_targets := "client_hello hello_reader server_hello new_session_ticket watch proxy_protocol request_framing frame_budget response_head chunked_body ticket_reader weak_ticket_key clear_replies"

# All checks.
check: fmt clippy test zoo ktls docs deny examples smoke package fuzz-smoke

# Formatting.
fmt:
    cargo fmt --all --check
    cargo fmt --manifest-path fuzz/Cargo.toml --check
    cargo fmt --manifest-path bench/Cargo.toml --check

# Lints, without exceptions.
clippy:
    cargo clippy --workspace --all-targets --locked -- -D warnings
    cargo clippy --package sessile --test zoo --test peers --locked -- -D warnings

# The README's test command.
test:
    .ci/setup && cargo test --workspace --locked

# Suites with many foreign programs: prints the table of client libraries (docs/reference/clients.md).
zoo:
    .ci/setup zoo && cargo test --package sessile --test zoo --locked -- --nocapture

# Kernel TLS on two kernels, in virtual machines (docs/kernel-tls.md).
ktls:
    .ci/setup ktls && .ci/ktls

# A minute of rolling restarts under two hundred connections a second (docs/benchmarks.md); fails where
# the rate was not reached, or a connection failed that no kill had cut off.
soak seconds="60":
    SESSILE_SOAK={{ seconds }} cargo test --release --locked -p sessile --test it -- \
        --exact --nocapture rolling::restarts_cost_no_connection_and_kills_only_those_that_are_open

# Documentation builds without warnings.
docs:
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet

# Licences, bans and sources of every dependency.
deny:
    cargo deny --locked check bans licenses sources

# The commands in the head of every example work.
examples:
    cargo build --quiet --locked
    .ci/examples

# By hand, because Debian stable has no kustomize: the manifests for Kubernetes build, fit the schemas, and have valid configurations.
kubernetes:
    .ci/setup kubernetes
    cargo build --quiet --locked
    target/kubernetes/bin/python .ci/kubernetes

# The README's first command, from the outside: a farm is up and everything resumes.
smoke:
    cargo build --release --quiet --locked
    .ci/smoke

# The Debian package, in target/debian (docs/install.md).
deb:
    .ci/setup package
    cargo build --release --quiet --locked
    contrib/stage target/release/sessile target/package
    rm -f target/debian/sessile_*.deb
    cargo deb --quiet --no-build --locked --package sessile

# Installs, upgrades and purges the Debian package in a folder of its own, and checks its parts. Uses sudo for the folder.
package: deb
    .ci/package

# A static program in an archive, with checksums and notes, in target/dist (docs/install.md).
release:
    .ci/setup release
    contrib/release

# Ten seconds for each parser.
fuzz-smoke:
    just fuzz 10

# Each parser for that many seconds.
fuzz seconds="600":
    #!/usr/bin/env bash
    set -euo pipefail
    export RUSTC_BOOTSTRAP=1
    cargo fuzz build
    for target in {{ fuzz_targets }}; do
        mkdir -p "fuzz/corpus/$target"
        log="fuzz/target/$target.log"
        cargo fuzz run "$target" "fuzz/corpus/$target" proto/src/testdata -- \
            -max_total_time={{ seconds }} >"$log" 2>&1 || { tail -n 60 "$log"; exit 1; }
        echo "$target: clean"
    done

# The session table beside other caches (docs/benchmarks.md).
bench-table:
    cargo run --release --manifest-path bench/Cargo.toml --bin table

# Servers and balancers beside the newest peers (docs/benchmarks.md). Needs root; `options`: as
# `python3 bench/peers --help` lists them.
bench-peers *options:
    cargo build --release --locked
    python3 bench/peers --sessile target/release/sessile {{ options }}

# The newest nginx, HAProxy, Envoy and OpenSSL instead of Debian stable's; in the zoo, also the newest Caddy.
# Needs root. `folder`: where they are, or where they are installed.
peers folder="target/peers":
    test -e {{ folder }}/ready || bench/peers/prepare.sh {{ folder }}
    PATH="$(realpath {{ folder }})/bin:$PATH" cargo test --package sessile --test peers --locked
    PATH="$(realpath {{ folder }})/bin:$PATH" cargo test --package sessile --test it --locked -- \
        key_export return_routing balance_tickets
    .ci/setup zoo
    PATH="$(realpath {{ folder }})/bin:$(realpath {{ folder }})/wheels/bin:$PATH" \
        NGINX_MODULES="$(realpath {{ folder }})/sid/usr/lib/nginx/modules" \
        cargo test --package sessile --test zoo --locked -- probe::

# What a shared store adds to a handshake (docs/benchmarks.md), and what one that fails costs (docs/reference/store.md).
bench-store:
    cargo build --release --locked
    cargo run --release --manifest-path bench/Cargo.toml --bin servers -- store --sessile target/release/sessile
    cargo run --release --manifest-path bench/Cargo.toml --bin servers -- outages --sessile target/release/sessile

# tlsfuzzer's scripts against sessile, rustls alone and nginx (docs/conformance.md). `path`: a checkout of
# tlsfuzzer; `python`: one with tlslite-ng 0.9, ecdsa and kyber-py.
tlsfuzzer path python="python3":
    cargo build --locked
    cargo build --locked --manifest-path bench/Cargo.toml --bin bare_rustls
    {{ python }} bench/tlsfuzzer.py {{ path }} --sessile target/debug/sessile \
        --rustls bench/target/debug/bare_rustls --nginx nginx

# h2spec against sessile (docs/conformance.md). `path`: a checkout of h2spec.
h2spec path:
    cargo build --locked
    python3 bench/h2spec.py {{ path }} --sessile target/debug/sessile

# How many returning clients resume behind which balancer (docs/benchmarks.md). `caddy`: a Caddy of 2.7 or
# later, for one more row.
bench-homecoming caddy="":
    cargo build --release --locked
    cargo run --release --manifest-path bench/Cargo.toml --bin returns -- target/release/sessile {{ caddy }}
