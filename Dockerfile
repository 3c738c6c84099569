# The sidecar image: tapd joins the network namespace of a pod or container to layer-2 networks.
# It needs the capability NET_ADMIN and the device /dev/net/tun, nothing else; docs/operations.md
# shows how to run it.
#
#   docker build -t tapd .
#
# Other images can be named for places without a registry: a builder needs cargo and a C compiler,
# the runtime only the C library of the builder's Debian release.
ARG RUST_IMAGE=rust:1.95-bookworm
ARG BASE_IMAGE=debian:bookworm-slim

FROM ${RUST_IMAGE} AS builder
WORKDIR /src
COPY . .
RUN cargo build --locked --release -p tapd && strip target/release/tapd

FROM ${BASE_IMAGE} AS runtime
COPY --from=builder /src/target/release/tapd /usr/local/bin/tapd
ENTRYPOINT ["/usr/local/bin/tapd"]
CMD ["run", "--config", "/etc/tapd/cluster.toml"]
