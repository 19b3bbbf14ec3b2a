//! Circles of files inside a room: a file that names another one, which names the first, directly
//! or through others.
//!
//! Paths count in `use` and in the code: `super::x`, `self::x`, `crate::room::x`, and `x::` of a
//! child. A path leads to the file of its last module. Over the re-export of a module that only has
//! children it leads to the file behind that.

use std::collections::{BTreeMap, BTreeSet};

/// The path of a module: of `src/redis/driver/slots.rs` it is redis, driver, slots.
type Module = Vec<String>;

/// The modules of one room and their code.
pub struct Files {
    code: BTreeMap<Module, String>,
    /// By module: names that it re-exports, and where they lead.
    exports: BTreeMap<Module, BTreeMap<String, Module>>,
}

fn module_of(file: &str) -> Module {
    let mut module: Module = file.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
    if module.len() > 1 && module.last().is_some_and(|last| last == "mod") {
        module.pop();
    }
    module
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The paths that begin here: more than one where they end in braces.
pub fn paths(code: &str) -> Vec<Vec<String>> {
    let code = code.trim_start();
    if let Some(rest) = code.strip_prefix('{') {
        let (mut depth, mut begin, mut found) = (0, 0, Vec::new());
        for (at, c) in rest.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => {
                    found.extend(paths(&rest[begin..at]));
                    return found;
                }
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    found.extend(paths(&rest[begin..at]));
                    begin = at + 1;
                }
                _ => {}
            }
        }
        return found;
    }
    let end = code.find(|c| !is_word(c)).unwrap_or(code.len());
    if end == 0 {
        // A star, or the comma before a closing brace.
        return if code.starts_with('*') {
            vec![Vec::new()]
        } else {
            Vec::new()
        };
    }
    let word = code[..end].to_owned();
    match code[end..].trim_start().strip_prefix("::") {
        Some(rest) => paths(rest)
            .into_iter()
            .map(|path| [vec![word.clone()], path].concat())
            .collect(),
        None => vec![vec![word]],
    }
}

/// Code without its re-exports.
fn without_exports(code: &str) -> String {
    let mut left = String::new();
    let mut in_export = false;
    for line in code.lines() {
        let begin = line.trim_start();
        in_export |= begin.starts_with("pub") && begin.contains(" use ") && !begin.contains("fn ");
        if !in_export {
            left.push_str(line);
            left.push('\n');
        }
        in_export &= !line.contains(';');
    }
    left
}

impl Files {
    /// Of these files of a room, with their code without comments and unit tests.
    pub fn new<'a>(files: impl Iterator<Item = (&'a str, &'a str)>) -> Self {
        let code = files.map(|(file, code)| (module_of(file), code.to_owned())).collect();
        let mut files = Files {
            code,
            exports: BTreeMap::new(),
        };
        for (module, code) in &files.code {
            let mut exports = BTreeMap::new();
            for (at, word) in code.match_indices("use ") {
                let line = code[..at].rsplit('\n').next().unwrap_or_default();
                if !line.trim_start().starts_with("pub") {
                    continue;
                }
                for path in paths(&code[at + word.len()..]) {
                    let inner = path.strip_prefix(&["self".to_owned()][..]).unwrap_or(&path);
                    if let [.., name] = inner {
                        let behind = &inner[..inner.len() - 1];
                        let behind = match behind.strip_prefix(&["crate".to_owned()][..]) {
                            Some(behind) => behind.to_vec(),
                            None => [&module[..], behind].concat(),
                        };
                        exports.insert(name.clone(), behind);
                    }
                }
            }
            files.exports.insert(module.clone(), exports);
        }
        files
    }

    /// The file that a path of this module leads to, if it is one of the room.
    fn resolve(&self, from: &Module, path: &[String]) -> Option<Module> {
        let mut at = from.clone();
        let mut rest = path;
        while let [first, behind @ ..] = rest {
            match first.as_str() {
                "super" => {
                    at.pop()?;
                }
                "self" => {}
                "crate" => at.clear(),
                _ => break,
            }
            rest = behind;
        }
        for name in rest {
            let child = [&at[..], std::slice::from_ref(name)].concat();
            if self.code.contains_key(&child) || at.is_empty() {
                at = child;
                continue;
            }
            if let Some(behind) = self.exports.get(&at).and_then(|exports| exports.get(name))
                && self.code.contains_key(behind)
            {
                at = behind.clone();
            }
            break;
        }
        self.code.contains_key(&at).then_some(at)
    }

    /// The files that a file names.
    fn named(&self, module: &Module) -> BTreeSet<Module> {
        self.named_in(module, &self.code[module])
    }

    fn named_in(&self, module: &Module, code: &str) -> BTreeSet<Module> {
        let children = self
            .code
            .keys()
            .filter(|other| other.len() == module.len() + 1 && other.starts_with(module))
            .filter_map(|other| other.last().map(String::as_str));
        let mut named = BTreeSet::new();
        for word in children.chain(["super", "self", "crate"]) {
            let begin = format!("{word}::");
            for (at, _) in code.match_indices(&begin) {
                let before = &code[..at];
                let is_visibility = before.ends_with("pub(in ");
                if is_visibility || before.ends_with(is_word) || before.ends_with("::") || before.ends_with('$') {
                    continue;
                }
                let found = paths(&code[at..]);
                named.extend(found.iter().filter_map(|path| self.resolve(module, path)));
            }
        }
        named.remove(module);
        named
    }

    /// The files that a file names, by their modules. A re-export is followed and names nothing
    /// itself.
    pub fn names(&self, file: &str) -> BTreeSet<String> {
        let module = module_of(file);
        let code = without_exports(&self.code[&module]);
        let named = self.named_in(&module, &code);
        named.into_iter().map(|module| module.join("/")).collect()
    }

    /// A circle, as the names of its files; the first one stands at the end once more.
    pub fn circle(&self) -> Option<Vec<String>> {
        let named: BTreeMap<&Module, BTreeSet<Module>> =
            self.code.keys().map(|module| (module, self.named(module))).collect();
        let mut done = BTreeSet::new();
        for module in self.code.keys() {
            let mut way = Vec::new();
            if let Some(circle) = walk(module, &named, &mut way, &mut done) {
                return Some(circle.iter().map(|module| module.join("/")).collect());
            }
        }
        None
    }
}

fn walk<'a>(
    module: &'a Module,
    named: &'a BTreeMap<&Module, BTreeSet<Module>>,
    way: &mut Vec<&'a Module>,
    done: &mut BTreeSet<&'a Module>,
) -> Option<Vec<&'a Module>> {
    if let Some(at) = way.iter().position(|earlier| *earlier == module) {
        return Some([&way[at..], &[module]].concat());
    }
    if done.contains(module) {
        return None;
    }
    way.push(module);
    for next in &named[module] {
        if let Some(circle) = walk(next, named, way, done) {
            return Some(circle);
        }
    }
    way.pop();
    done.insert(module);
    None
}
