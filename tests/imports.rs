//! The map of rooms in `ARCHITECTURE.md` is true: it names every module of `lib.rs`, imports point
//! up in it, and each row lists exactly the rooms that the code imports. Pure files reach pure
//! files only.
//!
//! To change an import, change the row. A failure prints the row as the code has it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/circles.rs"]
#[allow(unreachable_pub, missing_docs, reason = "a test's own")]
mod circles;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use circles::Files;

/// Rooms in which no file names one that names it back, directly or through others.
const NO_CIRCLES: &[&str] = &["cluster", "config", "control", "metrics", "redis", "shard", "wire"];

/// One row of the map.
#[derive(Debug, PartialEq, Eq)]
struct Room {
    name: String,
    pure: Pure,
    imports: Vec<String>,
}

/// Which files of a room follow from their arguments alone.
#[derive(Debug, PartialEq, Eq)]
enum Pure {
    None,
    /// All but these, which are named by their paths in the room.
    AllBut(Vec<String>),
}

/// The rows of the table that follows the heading `## Map`: `` | `room` | duty | pure | rooms, by
/// commas | ``. Pure is `yes`, is `` but `file.rs` `` with several files by commas, or is empty.
fn parse(text: &str) -> Vec<Room> {
    let section = text.split_once("\n## Map\n").expect("the heading ## Map").1;
    let section = section.split("\n## ").next().unwrap();
    let mut rooms = Vec::new();
    for line in section.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [name, _duty, pure, imports] = cells[..] else {
            panic!("a row of the map has four cells: {line}");
        };
        let list = |text: &str| -> Vec<String> {
            let names = text.split(',').map(|name| name.trim().trim_matches('`'));
            names.filter(|name| !name.is_empty()).map(str::to_owned).collect()
        };
        let pure = match (pure, pure.strip_prefix("but ")) {
            ("", _) => Pure::None,
            ("yes", _) => Pure::AllBut(Vec::new()),
            (_, Some(files)) => Pure::AllBut(list(files)),
            _ => panic!("pure is yes, is but `file.rs`, or is empty: {line}"),
        };
        rooms.push(Room {
            name: name.trim_matches('`').to_owned(),
            pure,
            imports: list(imports),
        });
    }
    rooms
}

fn map() -> Vec<Room> {
    parse(&fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md")).unwrap())
}

/// Pure files of rooms that are not.
const PURE_FILES: &[&str] = &[
    "config/admin.rs",
    "config/bounds.rs",
    "config/listen.rs",
    "config/origins.rs",
    "config/patterns.rs",
    "config/redis_url.rs",
    "config/secret.rs",
    "config/types.rs",
    "engine/contract.rs",
];

/// What pure code may use of other crates. Whatever is not here is impure, so nothing has to be
/// thought of in advance.
///
/// hyper writes the `Date` field by a clock of its own, and rustls draws random numbers; nothing
/// that a core decides follows from either.
const CRATES: &[&str] = &[
    "arc_swap",
    "async_tungstenite",
    "aws_lc_rs",
    "base64",
    "bytes",
    "crossbeam_channel",
    "fastrand",
    "form_urlencoded",
    "hashbrown",
    "http_body_util",
    "httparse",
    "hyper",
    "itoa",
    "jsonwebtoken",
    "log",
    "rustls",
    "serde",
    "serde_json",
    "siphasher",
    "strsim",
    "subtle",
    "thiserror",
    "toml",
    "uuid",
];

/// The same of the standard library: modules, or single items of them.
const STD: &[&str] = &[
    "borrow",
    "cell",
    "cmp",
    "collections",
    "convert",
    "fmt",
    "future",
    "hash",
    "io::Error",
    "io::ErrorKind",
    "io::IoSlice",
    "io::Result",
    "io::Write",
    "iter",
    "marker",
    "mem",
    "net::IpAddr",
    "net::Ipv4Addr",
    "net::Ipv6Addr",
    "net::SocketAddr",
    "num",
    "ops",
    "os::fd::OwnedFd",
    "path",
    "pin",
    "rc",
    "slice",
    "str",
    "string",
    "sync",
    "task",
    "time::Duration",
    "vec",
    "array",
    "ptr",
];

/// Functions of those crates that look at a clock or draw random numbers.
const NOT_EVEN: &[&str] = &["Uuid::now_", "Uuid::new_v", "Rng::new()", "fastrand::u", "RandomState"];

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
                | `a` | x | yes | |\n| `b` | x | but `c.rs`, `d.rs` | a |\n\n## B\n\n| `c` | x | | |\n";
    let map = parse(text);
    let room = |name: &str, others: &[&str], imports: &[&str]| Room {
        name: name.to_owned(),
        pure: Pure::AllBut(others.iter().map(|other| (*other).to_owned()).collect()),
        imports: imports.iter().map(|import| (*import).to_owned()).collect(),
    };
    assert_eq!(map, [room("a", &[], &[]), room("b", &["c.rs", "d.rs"], &["a"])]);
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
    let upside_down = [room("b", &[], &["a"]), room("a", &[], &[])];
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

/// True if this path of the standard library is allowed: `fs::read`, say, is not.
fn is_allowed(path: &str) -> bool {
    STD.iter().any(|allowed| {
        let rest = path.strip_prefix(allowed);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    })
}

/// What the code of a file uses of other crates that pure code may not use. `crates` are all that
/// there are.
fn foreign(code: &str, crates: &[String]) -> Vec<String> {
    let mut wrong = Vec::new();
    for root in crates.iter().map(String::as_str).chain(["std", "core"]) {
        for (at, _) in code.match_indices(&format!("{root}::")) {
            let before = code[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                continue;
            }
            for path in circles::paths(&code[at..]) {
                let name = path.join("::");
                let allowed = match root {
                    "std" | "core" => is_allowed(path[1..].join("::").trim_end_matches("::self")),
                    _ => CRATES.contains(&root),
                };
                if !allowed {
                    wrong.push(name);
                }
            }
        }
    }
    wrong.extend(
        NOT_EVEN
            .iter()
            .filter(|word| code.contains(**word))
            .map(|word| (*word).to_owned()),
    );
    wrong
}

/// The crates of the gateway, as code names them.
fn crates() -> Vec<String> {
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    let dependencies = manifest.split_once("\n[dependencies]\n").unwrap().1;
    let dependencies = dependencies.split("\n[").next().unwrap();
    let names = dependencies.lines().filter_map(|line| line.split_once(" = "));
    names.map(|(name, _)| name.trim().replace('-', "_")).collect()
}

/// A pure file uses nothing of other crates but what is allowed, and of ours nothing but pure
/// files. So whatever it can reach, through values and their methods as well, is pure: a type that
/// reads a clock is in a file that it cannot name, and neither can any file that it names.
#[test]
fn pure_files_reach_pure_files_only() {
    let (map, tree, crates) = (map(), tree(), crates());
    let files = Files::new(tree.iter().map(|(file, _, code)| (file.as_str(), code.as_str())));
    let is_exception = |file: &str, room: &Room| match &room.pure {
        Pure::None => true,
        Pure::AllBut(others) => others.iter().any(|other| file == format!("{}/{other}", room.name)),
    };
    let is_pure = |file: &str, of: &str| {
        let room = map.iter().find(|room| room.name == of);
        PURE_FILES.contains(&file) || room.is_some_and(|room| !is_exception(file, room))
    };
    let module = |file: &str| file.trim_end_matches(".rs").trim_end_matches("/mod").to_owned();
    let pure: BTreeSet<String> = tree
        .iter()
        .filter(|(file, room, _)| is_pure(file, room))
        .map(|(file, ..)| module(file))
        .collect();
    // What keeps a file from being pure.
    let faults = |file: &str, code: &str| -> Vec<String> {
        let named = files.names(file).into_iter();
        let named = named
            .filter(|named| !pure.contains(named))
            .map(|named| format!("src/{named}"));
        named.chain(foreign(code, &crates)).collect()
    };
    let mut wrong = Vec::new();
    for (file, room, code) in &tree {
        if is_pure(file, room) {
            wrong.extend(
                faults(file, code)
                    .iter()
                    .map(|fault| format!("src/{file} is pure and names {fault}")),
            );
        }
        if !EXECUTOR.contains(&room.as_str()) && code.contains("glommio") {
            wrong.push(format!("src/{file} names the executor"));
        }
    }
    for room in &map {
        let Pure::AllBut(others) = &room.pure else { continue };
        for other in others {
            let path = format!("{}/{other}", room.name);
            let code = tree.iter().find(|(file, ..)| *file == path).map(|(.., code)| code);
            if code.is_none_or(|code| faults(&path, code).is_empty()) {
                wrong.push(format!("src/{path} needs no exception in the map, or is not there"));
            }
        }
    }
    for path in PURE_FILES {
        if !tree.iter().any(|(file, ..)| file == path) {
            wrong.push(format!("src/{path} has moved: correct the list"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn impure_code_is_seen() {
    let crates = ["redis".to_owned(), "bytes".to_owned()];
    let foreign = |code: &str| foreign(code, &crates);
    assert_eq!(foreign("use std::time::{Duration, Instant};"), ["std::time::Instant"]);
    assert_eq!(
        foreign("let now = std::time::SystemTime::now();"),
        ["std::time::SystemTime::now"]
    );
    assert_eq!(
        foreign("use redis::Client; use bytes::Bytes; use crate::redis::X;"),
        ["redis::Client"]
    );
    assert_eq!(foreign("use std::sync::Arc; core::mem::take(x)"), [""; 0]);
    assert_eq!(foreign("let id = Uuid::now_v7();"), ["Uuid::now_"]);
}

#[test]
fn files_import_in_one_direction() {
    let tree = tree();
    for room in NO_CIRCLES {
        let files = tree.iter().filter(|(_, of, _)| of == room);
        let files = Files::new(files.map(|(file, _, code)| (file.as_str(), code.as_str())));
        if let Some(circle) = files.circle() {
            panic!("files of src/{room} import each other: {}", circle.join(" → "));
        }
    }
}

/// The load generator has no rooms: none of its files names one that names it back.
/// What concerns two services of a shard goes through its core.
#[test]
fn services_of_a_shard_name_no_other_service() {
    const SERVICES: &[&str] = &["admission", "channels", "lifecycle", "messages", "presence"];
    let mut seen = BTreeSet::new();
    for (file, _, code) in tree() {
        let Some(service) = SERVICES.iter().find(|service| {
            file.strip_prefix("shard/")
                .and_then(|rest| rest.strip_prefix(**service))
                .is_some_and(|rest| rest.starts_with('/') || rest == ".rs")
        }) else {
            continue;
        };
        seen.insert(*service);
        for other in SERVICES
            .iter()
            .chain(&["core", "dispatch"])
            .filter(|other| *other != service)
        {
            for path in [format!("shard::{other}"), format!("super::{other}::")] {
                assert!(!code.contains(&path), "src/{file} names {path}");
            }
        }
    }
    assert_eq!(seen.len(), SERVICES.len(), "a service has moved: {seen:?}");
}

#[test]
fn files_of_the_load_generator_import_in_one_direction() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/load/src");
    let mut paths = Vec::new();
    source_files(&src, &mut paths);
    let files = paths.iter().map(|path| {
        let name = path.strip_prefix(&src).unwrap().to_str().unwrap();
        (name.to_owned(), code(path))
    });
    let files: Vec<(String, String)> = files.filter(|(name, _)| name != "main.rs").collect();
    assert!(files.len() > 40, "{files:?}");
    let files = Files::new(files.iter().map(|(name, code)| (name.as_str(), code.as_str())));
    if let Some(circle) = files.circle() {
        panic!("files of benches/load/src import each other: {}", circle.join(" → "));
    }
}

#[test]
fn circles_of_files_are_seen() {
    let circle = |files: &[(&str, &str)]| {
        Files::new(files.iter().copied())
            .circle()
            .map(|circle| circle.join(" "))
    };
    let facade = (
        "r/mod.rs",
        "mod a;\nmod b;\npub use a::{A, self as x};\npub(crate) use b::B;\n",
    );
    assert_eq!(circle(&[facade, ("r/a.rs", ""), ("r/b.rs", "use super::a::A;")]), None);
    let visible = [
        facade,
        ("r/a.rs", "use super::b::B;"),
        ("r/b.rs", "pub(in crate::r) fn f() {}"),
    ];
    assert_eq!(circle(&visible), None);
    // Over a re-export, which leads to the file behind it.
    assert_eq!(circle(&[facade, ("r/a.rs", ""), ("r/b.rs", "use super::A;")]), None);
    let both = [
        facade,
        ("r/a.rs", "fn f() { super::b::g() }"),
        ("r/b.rs", "use crate::r::A;"),
    ];
    assert_eq!(circle(&both).as_deref(), Some("r/a r/b r/a"));
    // A type of the parent, which names its child.
    let parent = [
        ("r/mod.rs", "mod a;\nuse a::A;\nstruct S;"),
        ("r/a.rs", "use super::{S, T};"),
    ];
    assert_eq!(circle(&parent).as_deref(), Some("r r/a r"));
    let deep = [
        ("r/d/mod.rs", "mod x;\nmod y;"),
        ("r/d/x.rs", "use super::super::{c, e::{E, F}};"),
        ("r/d/y.rs", "use super::x::X;"),
        ("r/c.rs", ""),
        ("r/e.rs", "use super::d::y;"),
    ];
    assert_eq!(circle(&deep).as_deref(), Some("r/d/x r/e r/d/y r/d/x"));
}
