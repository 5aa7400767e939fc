# The image of one evenkv node. Builds with BuildKit and with the builder before it.
FROM rust:1.95-slim-bookworm AS build
WORKDIR /src

# The allocator, jemalloc, is built by make with the C compiler, which Rust brings along for linking.
RUN apt-get update \
    && apt-get install -y --no-install-recommends make \
    && rm -rf /var/lib/apt/lists/*

# The dependencies first, with an empty program in the place of ours: this layer is built again only
# when Cargo.toml or Cargo.lock changes. The benchmark is named in Cargo.toml, so it has to be there, too.
COPY Cargo.toml Cargo.lock ./
RUN mkdir -p src benches/load \
    && echo 'fn main() {}' > src/main.rs \
    && cp src/main.rs benches/load/main.rs \
    && touch src/lib.rs \
    && cargo build --release --locked --bin evenkv \
    && rm -r src

# Cargo compares modification times, and a copied file keeps its own, which is older than the empty
# program just built: without the touch our sources would be taken for built already.
COPY build.rs ./
COPY src src
# The context has no .git: `make image` says which commit it is.
ARG EVENKV_COMMIT=
RUN find src -name '*.rs' -exec touch {} + \
    && cargo build --release --locked --bin evenkv

FROM debian:bookworm-slim
COPY --from=build /src/target/release/evenkv /usr/local/bin/evenkv
# A number, so that a platform which demands a user other than root can see that it is one.
USER 10001:10001
EXPOSE 13800
HEALTHCHECK --interval=5s --timeout=3s --start-period=10s --retries=3 CMD ["evenkv", "health"]
# Exec form: the node is process 1 itself and receives the SIGTERM of `docker stop`.
ENTRYPOINT ["evenkv"]
