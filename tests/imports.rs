//! The map of rooms in `ARCHITECTURE.md` is true: it names every module of `lib.rs`, imports point up in it, and each row
//! lists exactly the rooms that the code imports. Pure rooms name no executor, socket, clock or random source.
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
const NO_CIRCLES: &[&str] = &["cluster", "config", "control", "metrics", "redis", "wire"];

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

/// The rows of the table that follows the heading `## Map`: `` | `room` | duty | pure | rooms, by commas | ``. Pure is `yes`, is
/// `` but `file.rs` `` with several files by commas, or is empty.
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
const PURE_FILES: &[&str] = &["control/turn.rs", "redis/pair.rs", "redis/server.rs"];

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

/// Names of impure things that the code of a file has.
fn impure(code: &str) -> Vec<&'static str> {
    IMPURE.iter().copied().filter(|word| code.contains(word)).collect()
}

#[test]
fn pure_code_names_nothing_impure() {
    let mut wrong = Vec::new();
    let map = map();
    let tree = tree();
    for (file, room, code) in &tree {
        let known = map.iter().find(|known| known.name == *room);
        if let Some(Pure::AllBut(others)) = known.map(|known| &known.pure)
            && !others.iter().any(|other| *file == format!("{room}/{other}"))
        {
            let words = impure(code).into_iter();
            wrong.extend(words.map(|word| format!("src/{file} is pure and names {word}")));
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
            if code.is_none_or(|code| impure(code).is_empty()) {
                wrong.push(format!("src/{path} needs no exception in the map, or is not there"));
            }
        }
    }
    for path in PURE_FILES {
        match tree.iter().find(|(file, ..)| file == path) {
            Some((.., code)) => wrong.extend(impure(code).iter().map(|word| format!("src/{path} names {word}"))),
            None => wrong.push(format!("src/{path} has moved: correct the list")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
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
