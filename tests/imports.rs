//! The map of rooms in `ARCHITECTURE.md` is true: it names every module of `lib.rs`, imports point up in it, and each row
//! lists exactly the rooms that the code imports. Pure rooms name no executor, socket, clock or random source.
//!
//! To change an import, change the row. A failure prints the row as the code has it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// One row of the map.
#[derive(Debug, PartialEq, Eq)]
struct Room {
    name: String,
    pure: bool,
    imports: Vec<String>,
}

/// The rows of the table that follows the heading `## Map`: `` | `room` | duty | yes or nothing | rooms, by commas | ``.
fn parse(text: &str) -> Vec<Room> {
    let section = text.split_once("\n## Map\n").expect("the heading ## Map").1;
    let section = section.split("\n## ").next().unwrap();
    let mut rooms = Vec::new();
    for line in section.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [name, _duty, pure, imports] = cells[..] else {
            panic!("a row of the map has four cells: {line}");
        };
        assert!(["", "yes"].contains(&pure), "pure is yes or empty: {line}");
        rooms.push(Room {
            name: name.trim_matches('`').to_owned(),
            pure: pure == "yes",
            imports: imports
                .split(',')
                .map(str::trim)
                .filter(|import| !import.is_empty())
                .map(str::to_owned)
                .collect(),
        });
    }
    rooms
}

fn map() -> Vec<Room> {
    parse(&fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md")).unwrap())
}

/// Pure files of other rooms.
const PURE_FILES: &[&str] = &[
    "shard/addresses.rs",
    "shard/admin.rs",
    "shard/core.rs",
    "shard/credentials.rs",
    "shard/deliver.rs",
    "shard/devices.rs",
    "shard/dispatch.rs",
    "shard/frames.rs",
    "shard/handshake.rs",
    "shard/kernel/addresses.rs",
    "shard/kernel/journal.rs",
    "shard/kernel/mod.rs",
    "shard/kernel/peers.rs",
    "shard/kernel/rights.rs",
    "shard/kernel/send.rs",
    "shard/kernel/tally.rs",
    "shard/kernel/wheel.rs",
    "shard/overload.rs",
    "shard/pending.rs",
    "shard/remote.rs",
    "shard/rights.rs",
    "shard/timers.rs",
    "shard/tls.rs",
];

/// Names that pure code does not use.
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
        .filter(|(_, room, _)| room != "lib")
        .collect()
}

/// Rooms that code names as `crate::room`, in the program as `shardgate::room`.
fn named_rooms<'a>(room: &str, code: &'a str) -> Vec<&'a str> {
    let root = if room == "main" { "shardgate::" } else { "crate::" };
    code.match_indices(root)
        .filter(|(at, _)| !code[..*at].ends_with('$'))
        .map(|(at, word)| {
            let rest = &code[at + word.len()..];
            assert!(!rest.starts_with('{'), "{room}: one room for each use: {root}{{…");
            let end = rest
                .find(|c: char| !c.is_alphanumeric() && c != '_')
                .unwrap_or(rest.len());
            &rest[..end]
        })
        .filter(|named| *named != room)
        .collect()
}

/// The faults of the map. `used` has the rooms that each room imports.
fn wrong(map: &[Room], used: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut above: Vec<&str> = Vec::new();
    for room in map {
        for import in &room.imports {
            if !above.contains(&import.as_str()) {
                wrong.push(format!(
                    "`{}` imports `{import}`, which is not above its row",
                    room.name
                ));
            }
        }
        above.push(&room.name);
        let Some(used) = used.get(&room.name) else {
            wrong.push(format!("`{}` is no room of src/", room.name));
            continue;
        };
        let used: Vec<&str> = used.iter().map(String::as_str).collect();
        if used != room.imports {
            wrong.push(format!("the imports of `{}` are: {}", room.name, used.join(", ")));
        }
    }
    for room in used.keys() {
        match above.iter().filter(|known| *known == room).count() {
            0 => wrong.push(format!("`{room}` has no row")),
            1 => {}
            _ => wrong.push(format!("`{room}` has several rows")),
        }
    }
    wrong
}

#[test]
fn the_map_is_what_the_code_imports() {
    let mut used: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (_, room, code) in tree() {
        let named = named_rooms(&room, &code).into_iter().map(str::to_owned);
        used.entry(room.clone()).or_default().extend(named);
    }
    let wrong = wrong(&map(), &used);
    assert!(
        wrong.is_empty(),
        "the table of ## Map in ARCHITECTURE.md:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn the_map_has_every_module_of_the_library() {
    let lib = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let modules = lib
        .lines()
        .filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    let modules: BTreeSet<&str> = modules.chain(["main"]).collect();
    let map = map();
    let rooms: BTreeSet<&str> = map.iter().map(|room| room.name.as_str()).collect();
    assert_eq!(rooms, modules, "rows of the map, and modules of src/lib.rs and main");
}

#[test]
fn a_false_map_is_seen() {
    let text = "# A\n\n## Map\n\n| room | duty | pure | imports |\n| --- | --- | --- | --- |\n\
                | `a` | x | yes | |\n| `b` | x | | a |\n\n## B\n\n| `c` | x | | |\n";
    let map = parse(text);
    let room = |name: &str, pure, imports: &[&str]| Room {
        name: name.to_owned(),
        pure,
        imports: imports.iter().map(|import| (*import).to_owned()).collect(),
    };
    assert_eq!(map, [room("a", true, &[]), room("b", false, &["a"])]);
    let used = |rooms: &[(&str, &[&str])]| -> Vec<String> {
        let rooms = rooms.iter().map(|(name, imports)| {
            let imports = imports.iter().map(|import| (*import).to_owned()).collect();
            ((*name).to_owned(), imports)
        });
        wrong(&map, &rooms.collect())
    };
    assert_eq!(used(&[("a", &[]), ("b", &["a"])]), [""; 0]);
    assert_eq!(used(&[("a", &["b"]), ("b", &["a"])]), ["the imports of `a` are: b"]);
    assert_eq!(used(&[("a", &[]), ("b", &[])]), ["the imports of `b` are: "]);
    assert_eq!(used(&[("a", &[]), ("b", &["a"]), ("c", &[])]), ["`c` has no row"]);
    assert_eq!(used(&[("b", &["a"])]), ["`a` is no room of src/"]);
    let upside_down = [room("b", false, &["a"]), room("a", true, &[])];
    let found = wrong(
        &upside_down,
        &[("a", [].into()), ("b", ["a".to_owned()].into())]
            .map(|(name, imports)| (name.to_owned(), imports))
            .into(),
    );
    assert_eq!(found, ["`b` imports `a`, which is not above its row"]);
    assert_eq!(named_rooms("b", "use crate::a::X; crate::b::y(); $crate::c!()"), ["a"]);
    assert_eq!(named_rooms("main", "use shardgate::a;"), ["a"]);
}

#[test]
fn pure_code_names_nothing_impure() {
    let mut wrong = Vec::new();
    let map = map();
    for (file, room, code) in tree() {
        let pure = map.iter().any(|known| known.name == room && known.pure) || PURE_FILES.contains(&file.as_str());
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
