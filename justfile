# What people type here; `just` lists it. Each recipe is one plain command, so it can be typed without just as it stands.
# tests/documents/recipes.rs tries every one of them.

# What there is
default:
    @just --list

# The gateway on 127.0.0.1:8080, in development mode
run *FLAGS:
    cargo run --release -- {{ FLAGS }}

# Load on it: `just load direct --users 100 --url ws://127.0.0.1:8080/ws`
load *WORDS:
    cargo run --release --bin shardgate-load -- {{ WORDS }}

# Everything that a change has to pass
ci:
    .ci/run

# All tests, or some: rust, python, node, browser
test *PARTS:
    tests/run {{ PARTS }}

# What the compiler and clippy have to say
lint:
    cargo clippy --locked --workspace --all-targets -- -D warnings

# The code as rustfmt writes it
format:
    cargo fmt --all

# The API's documents, in target/doc
docs:
    cargo doc --locked --workspace --no-deps

# What the pure rooms cost, or those of them whose names have the word
bench *WORD:
    cargo bench --bench rooms -- {{ WORD }}

# Fuzz one target: `ls fuzz/seeds` has their names
fuzz TARGET SECONDS="60":
    fuzz/run {{ TARGET }} {{ SECONDS }}
