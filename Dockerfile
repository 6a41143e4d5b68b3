# A small image: the static program and the authorities of Debian, without a shell. docs/install.md says how to
# run it.
FROM rust:1.95-bookworm AS build
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates musl-tools python3 \
    && rm -rf /var/lib/apt/lists/*
RUN rustup target add "$(uname -m)-unknown-linux-musl"
WORKDIR /src
COPY . .
# The sources in the image have no git.
ARG SESSILE_COMMIT=unknown
RUN SESSILE_COMMIT="$SESSILE_COMMIT" \
        cargo build --release --locked --package sessile --target "$(uname -m)-unknown-linux-musl" \
    && install -D --strip "target/$(uname -m)-unknown-linux-musl/release/sessile" /image/usr/bin/sessile \
    && install -D --mode 644 /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ca-certificates.crt \
    && install -D --mode 644 --target-directory /image/usr/share/doc/sessile LICENSE-APACHE LICENSE-MIT \
    && contrib/licences "$(uname -m)-unknown-linux-musl" >/image/usr/share/doc/sessile/THIRD-PARTY-LICENCES \
    && install --directory --owner 65532 --group 65532 --mode 700 /image/var/lib/sessile

FROM scratch
COPY --from=build /image /
USER 65532:65532
ENV STATE_DIRECTORY=/var/lib/sessile
VOLUME ["/var/lib/sessile"]
ENTRYPOINT ["/usr/bin/sessile"]
CMD ["serve", "--config", "/etc/sessile/serve.toml"]
