//! Imports point down: each room knows only the rooms below it, and the pure ones know no executor, socket, clock or
//! random source. The map in ARCHITECTURE.md is this table; change both, or neither.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Every room with the rooms that it may import, lowest first: a room may only name rooms above its own line.
const ROOMS: &[(&str, &[&str])] = &[
    ("address", &[]),
    ("ids", &[]),
    ("payload", &[]),
    ("jws", &[]),
    ("config", &["address", "jws"]),
    ("logging", &["config"]),
    ("auth", &["config", "ids", "jws"]),
    ("wire", &["address", "auth", "ids", "jws"]),
    ("router", &["ids"]),
    ("admin", &["ids", "wire"]),
    ("tls", &["config", "payload"]),
    ("session", &["auth", "ids", "payload", "wire", "router", "tls"]),
    ("settings", &["address", "auth", "config", "ids", "jws", "wire", "tls"]),
    ("metrics", &["wire"]),
    ("engine", &["ids", "payload"]),
    (
        "lanes",
        &[
            "admin", "auth", "engine", "ids", "wire", "router", "session", "settings", "tls",
        ],
    ),
    ("shared", &["ids", "lanes", "metrics", "settings"]),
    (
        "cluster",
        &["engine", "ids", "lanes", "metrics", "wire", "router", "shared"],
    ),
    ("redis", &["cluster", "config", "metrics"]),
    (
        "http",
        &["admin", "ids", "logging", "metrics", "wire", "settings", "shared"],
    ),
    (
        "shard",
        &[
            "address", "admin", "auth", "engine", "http", "ids", "lanes", "metrics", "payload", "wire", "router",
            "session", "settings", "tls", "shared",
        ],
    ),
    ("runtime", &["config", "engine", "ids", "settings", "tls"]),
    (
        "control",
        &[
            "admin", "redis", "cluster", "config", "engine", "http", "ids", "jws", "lanes", "metrics", "wire",
            "router", "runtime", "session", "settings", "shard", "tls", "shared",
        ],
    ),
];

/// Rooms where everything that happens follows from the arguments.
const PURE: &[&str] = &[
    "address", "ids", "payload", "jws", "auth", "wire", "router", "session", "admin", "cluster",
];

/// Files of other rooms that are as pure.
const PURE_FILES: &[&str] = &[
    "shard/addresses.rs",
    "shard/admin.rs",
    "shard/core.rs",
    "shard/credentials.rs",
    "shard/deliver.rs",
    "shard/devices.rs",
    "shard/frames.rs",
    "shard/handshake.rs",
    "shard/overload.rs",
    "shard/pending.rs",
    "shard/remote.rs",
    "shard/rights.rs",
    "shard/timers.rs",
    "shard/tls.rs",
    "shard/wheel.rs",
];

/// What pure code does not name.
const IMPURE: &[&str] = &[
    "glommio",
    "io_uring",
    "redis::",
    "libc::",
    "rustix",
    "socket2",
    "std::net",
    "std::fs",
    "std::io::Read",
    "std::thread",
    "std::env",
    "Instant",
    "SystemTime",
    "RandomState",
    "getrandom",
    "Rng::new",
    "fastrand::u",
    "Uuid::now",
    "Uuid::new",
    ".clock",
];

/// Rooms that may name the executor.
const EXECUTOR: &[&str] = &["control", "engine", "runtime", "shard"];

fn source_files(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "tests") {
                source_files(&path, into);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs")
            && path.file_name().is_some_and(|name| name != "tests.rs")
        {
            into.push(path);
        }
    }
}

/// The code of a file: no comments, no unit tests (which are at the foot).
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    code.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n")
}

/// File paths from `src/` with their room and code.
fn tree() -> Vec<(String, String, String)> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    source_files(&src, &mut files);
    files
        .iter()
        .map(|path| {
            let name = path.strip_prefix(&src).unwrap().to_str().unwrap().to_owned();
            let room = name.split('/').next().unwrap().trim_end_matches(".rs").to_owned();
            (name, room, code(path))
        })
        .filter(|(_, room, _)| room != "lib" && room != "main")
        .collect()
}

/// Rooms that code names as `crate::room`.
fn named_rooms(code: &str) -> Vec<&str> {
    code.match_indices("crate::")
        .filter(|(at, _)| !code[..*at].ends_with('$'))
        .map(|(at, word)| {
            let rest = &code[at + word.len()..];
            let end = rest
                .find(|c: char| !c.is_alphanumeric() && c != '_')
                .unwrap_or(rest.len());
            &rest[..end]
        })
        .collect()
}

#[test]
fn the_table_has_every_room_and_points_down() {
    let mut below: Vec<&str> = Vec::new();
    for (room, imports) in ROOMS {
        for import in *imports {
            assert!(
                below.contains(import),
                "{room} may not import {import}, which is not below it"
            );
        }
        below.push(room);
    }
    for (file, room, _) in tree() {
        assert!(below.contains(&room.as_str()), "src/{file} is in no room of the table");
    }
}

#[test]
fn every_import_is_in_the_table() {
    let allowed: BTreeMap<&str, &[&str]> = ROOMS.iter().copied().collect();
    let mut wrong = Vec::new();
    for (file, room, code) in tree() {
        for named in named_rooms(&code) {
            if named != room && !allowed.get(room.as_str()).is_some_and(|rooms| rooms.contains(&named)) {
                wrong.push(format!("src/{file} names crate::{named}"));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "imports that point the wrong way:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn pure_code_names_nothing_impure() {
    let mut wrong = Vec::new();
    for (file, room, code) in tree() {
        let pure = PURE.contains(&room.as_str()) || PURE_FILES.contains(&file.as_str());
        for word in IMPURE {
            if pure && code.contains(word) {
                wrong.push(format!("src/{file} is pure and names {word}"));
            }
        }
        if !EXECUTOR.contains(&room.as_str()) && code.contains("glommio") {
            wrong.push(format!("src/{file} names the executor"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn pure_files_exist() {
    for file in PURE_FILES {
        assert!(
            tree().iter().any(|(name, ..)| name == file),
            "{file} has moved: correct the list"
        );
    }
}
