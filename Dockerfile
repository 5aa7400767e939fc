# The image of one evenkv node. Builds with BuildKit and with the builder before it.
FROM rust:1.95-slim-bookworm AS build
WORKDIR /src

# The dependencies first, with an empty program in the place of ours: this layer is built again only
# when Cargo.toml or Cargo.lock changes.
COPY Cargo.toml Cargo.lock ./
RUN mkdir src \
    && echo 'fn main() {}' > src/main.rs \
    && touch src/lib.rs \
    && cargo build --release --locked --bin evenkv \
    && rm -r src

# Cargo compares modification times, and a copied file keeps its own, which is older than the empty
# program just built: without the touch our sources would be taken for built already.
COPY src src
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
