//! Reads the imports between the modules of a crate, and finds circles.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The path of a module from the crate root: `["tls", "stream"]`. The path of the root is empty.
type Module = Vec<String>;

/// The modules of a crate, and the modules that each module imports. Tests are left out.
pub(crate) struct Imports(BTreeMap<Module, BTreeSet<Module>>);

impl Imports {
    /// Reads every file below a crate's `src` folder.
    pub(crate) fn read(src: &Path) -> Self {
        let mut sources = BTreeMap::new();
        collect(src, &mut Vec::new(), &mut sources);
        let modules: BTreeSet<_> = sources.keys().cloned().collect();
        let imports = sources.iter().map(|(module, text)| {
            let imported = imported(module, text, &modules);
            (module.clone(), imported)
        });
        Self(imports.collect())
    }

    /// Every import between different modules.
    pub(crate) fn edges(&self) -> impl Iterator<Item = (&Module, &Module)> {
        let edges = self.0.iter();
        edges.flat_map(|(from, imported)| imported.iter().map(move |to| (from, to)))
    }

    /// A shortest circle of imports, if the crate has a circle.
    pub(crate) fn circle(&self) -> Option<Vec<String>> {
        let circles = self.0.keys().filter_map(|module| self.way_back(module));
        let shortest = circles.min_by_key(Vec::len)?;
        Some(shortest.iter().map(|module| module.join("::")).collect())
    }

    /// The modules of a shortest circle through a module, the last module first.
    fn way_back(&self, start: &Module) -> Option<Vec<Module>> {
        let mut reached_from: BTreeMap<&Module, &Module> = BTreeMap::new();
        let mut queue = vec![start];
        let mut next = 0;
        while let Some(&module) = queue.get(next) {
            next += 1;
            for imported in &self.0[module] {
                if imported == start {
                    let before = |module: &&Module| reached_from.get(*module).copied();
                    let way = std::iter::successors(Some(module), before);
                    return Some(way.cloned().collect());
                }
                if !reached_from.contains_key(imported) {
                    reached_from.insert(imported, module);
                    queue.push(imported);
                }
            }
        }
        None
    }
}

fn collect(folder: &Path, module: &mut Module, sources: &mut BTreeMap<Module, String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if stem != "tests" && stem != "testdata" {
                module.push(stem);
                collect(&path, module, sources);
                module.pop();
            }
        } else if path.extension().is_some_and(|ending| ending == "rs") && stem != "tests" {
            let mut this = module.clone();
            if !["mod", "lib", "main"].contains(&stem.as_str()) {
                this.push(stem);
            }
            let text = fs::read_to_string(&path).unwrap();
            sources
                .entry(this)
                .or_default()
                .push_str(&without_tests(&text));
        }
    }
}

/// The code of a file without comments and without its module of unit tests.
fn without_tests(text: &str) -> String {
    let code = text
        .split("#[cfg(test)]\nmod tests {")
        .next()
        .unwrap_or(text);
    let lines = code
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    lines.map(|line| format!("{line}\n")).collect()
}

fn imported(module: &Module, text: &str, modules: &BTreeSet<Module>) -> BTreeSet<Module> {
    let mut imported = BTreeSet::new();
    let mut rest = String::new();
    for statement in text.split_inclusive(';') {
        match use_tree(statement) {
            Some((before, tree, is_public)) => {
                rest.push_str(before);
                for path in expand(tree) {
                    let resolved = resolve(module, &path, modules);
                    // A `pub use` of a child module re-exports an item. It does not count as an import.
                    let is_face = |found: &Module| is_public && found.starts_with(module);
                    imported.extend(resolved.filter(|found| !is_face(found)));
                }
            }
            None => rest.push_str(statement),
        }
    }
    let found = paths(&rest);
    imported.extend(
        found
            .iter()
            .filter_map(|path| resolve(module, path, modules)),
    );
    imported.remove(module);
    imported
}

/// Splits a statement that ends with a `use` declaration.
///
/// Returns the code before the declaration, the `use` tree, and true if the declaration is public.
fn use_tree(statement: &str) -> Option<(&str, &str, bool)> {
    let start = statement
        .match_indices("use ")
        .map(|(at, _)| at)
        .find(|at| {
            let line = statement[..*at].rsplit('\n').next().unwrap_or_default();
            let line = line.trim();
            line.is_empty() || line.starts_with("pub")
        })?;
    let tree = statement[start + 4..].strip_suffix(';')?;
    let line_start = statement[..start].rfind('\n').map_or(0, |at| at + 1);
    let is_public = statement[line_start..start].contains("pub");
    Some((&statement[..line_start], tree, is_public))
}

/// The paths of a `use` tree: `a::{b, c::d}` is `a::b` and `a::c::d`.
fn expand(tree: &str) -> Vec<Vec<String>> {
    let tree = tree.trim();
    let Some((head, inner)) = tree.split_once('{') else {
        let path = tree.split(" as ").next().unwrap_or(tree);
        return vec![segments(path)];
    };
    let inner = inner.strip_suffix('}').unwrap_or(inner);
    let head = segments(head);
    let mut depth = 0;
    let items = inner.split(|char| {
        match char {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        char == ',' && depth == 0
    });
    items
        .filter(|item| !item.trim().is_empty())
        .flat_map(expand)
        .map(|path| [head.clone(), path].concat())
        .collect()
}

fn segments(path: &str) -> Vec<String> {
    let segments = path.split("::").map(str::trim);
    let named = segments.filter(|segment| !segment.is_empty());
    named.map(str::to_owned).collect()
}

/// The paths in code that begin with `crate` or `super`.
fn paths(code: &str) -> Vec<Vec<String>> {
    let is_path = |char: char| char.is_alphanumeric() || char == '_' || char == ':';
    let mut found = Vec::new();
    for begin in ["crate::", "super::"] {
        for (at, _) in code.match_indices(begin) {
            let (before, from) = code.split_at(at);
            // The path in `pub(in crate::x)` is a visibility, not an import.
            let is_scope = before.ends_with("(in ");
            if !before.ends_with(is_path) && !is_scope {
                let end = from.find(|char| !is_path(char)).unwrap_or(from.len());
                found.push(segments(&from[..end]));
            }
        }
    }
    found
}

/// Resolves a path in `module` to a module; `None` if the path leaves the crate.
fn resolve(module: &Module, path: &[String], modules: &BTreeSet<Module>) -> Option<Module> {
    let (first, mut rest) = path.split_first()?;
    let mut full = match first.as_str() {
        "crate" => Vec::new(),
        "self" => module.clone(),
        "super" => {
            let mut parent = module.clone();
            parent.pop();
            while let Some((next, after)) = rest.split_first()
                && next == "super"
            {
                parent.pop();
                rest = after;
            }
            parent
        }
        child => {
            let mut full = module.clone();
            full.push(child.to_owned());
            if !modules.contains(&full) {
                return None;
            }
            full
        }
    };
    full.extend(rest.iter().cloned());
    while !full.is_empty() && !modules.contains(&full) {
        full.pop();
    }
    // Otherwise, the path names an item of the crate root.
    (!full.is_empty()).then_some(full)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(path: &str) -> Module {
        segments(path)
    }

    #[test]
    fn uses_and_paths_are_found_in_every_form() {
        let all = ["a", "a::b", "a::b::c", "d", "d::e"].map(module);
        let modules = BTreeSet::from(all);
        let text = "pub use b::Thing;\nuse std::io;\nuse crate::d::{self, e::{Deep, Other}};\n\
                    fn f() -> super::d::Item { crate::a::b::c::g() }\npub(in crate::d::e) fn h();";
        let found = imported(&module("a"), text, &modules);
        let expected = ["a::b::c", "d", "d::e"].map(module);
        assert_eq!(found, BTreeSet::from(expected));
        let found = imported(&module("a::b"), "use super::X;\nuse c::Y;", &modules);
        assert_eq!(found, BTreeSet::from(["a", "a::b::c"].map(module)));
    }

    #[test]
    fn a_circle_is_named_by_its_modules() {
        let imports = [
            ("a", &["b"][..]),
            ("b", &["c"]),
            ("c", &["a", "d"]),
            ("d", &[]),
        ];
        let imports = imports.map(|(from, to)| {
            let to = to.iter().map(|name| module(name));
            (module(from), to.collect())
        });
        let circle = Imports(BTreeMap::from(imports)).circle().unwrap();
        assert_eq!(circle, ["c", "b", "a"]);
        assert!(Imports(BTreeMap::new()).circle().is_none());
    }
}
