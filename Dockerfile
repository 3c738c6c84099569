# The sidecar image: tapd joins the network namespace of a pod or container to layer-2 networks.
# It needs the capability NET_ADMIN and the device /dev/net/tun, nothing else; docs/operations.md
# shows how to run it.
#
#   docker build -t tapd .
#
# With DPDK, for machines whose cards or virtual machines tapd drives itself:
#
#   docker build -t tapd-dpdk --target dpdk .
#
# Other images can be named for places without a registry: a builder needs cargo and a C compiler,
# the runtime only the C library of the builder's Debian release.
ARG RUST_IMAGE=rust:1.95-bookworm
ARG BASE_IMAGE=debian:bookworm-slim

FROM ${RUST_IMAGE} AS builder
WORKDIR /src
COPY . .
RUN cargo build --locked --release -p tapd && strip target/release/tapd

# The shim between tapd and DPDK is built with the DPDK of the release that it runs on.
FROM ${BASE_IMAGE} AS shim
RUN apt-get update -qq \
    && apt-get install -y -qq --no-install-recommends gcc libc6-dev pkg-config libdpdk-dev
COPY fastpath/dpdk-sys /src
RUN /src/build-shim /out

FROM ${BASE_IMAGE} AS dpdk
# Drivers for virtual machines, kernel interfaces and the common cards; each is a package.
RUN apt-get update -qq \
    && apt-get install -y -qq --no-install-recommends \
        librte-mempool-ring23 librte-net-vhost23 librte-net-virtio23 librte-net-memif23 \
        librte-net-af-packet23 librte-net-af-xdp23 librte-net-tap23 librte-bus-pci23 \
        librte-net-mlx5-23 librte-net-i40e23 librte-net-ice23 librte-net-iavf23 \
        librte-net-ixgbe23 librte-net-e1000-23 librte-net-ena23 librte-net-bnxt23 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=shim /out/libtapd-dpdk.so.1 /usr/lib/tapd/
COPY --from=builder /src/target/release/tapd /usr/local/bin/tapd
ENTRYPOINT ["/usr/local/bin/tapd"]
CMD ["run", "--config", "/etc/tapd/cluster.toml"]

FROM ${BASE_IMAGE} AS runtime
COPY --from=builder /src/target/release/tapd /usr/local/bin/tapd
ENTRYPOINT ["/usr/local/bin/tapd"]
CMD ["run", "--config", "/etc/tapd/cluster.toml"]
