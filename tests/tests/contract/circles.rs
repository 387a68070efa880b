//! No file imports another in a circle: a crate is read from the files that import nothing upwards.

use std::{collections::BTreeMap, fs, path::Path};

use ami_share_tests::engine::checkout;

use crate::Set;

#[test]
fn no_file_imports_another_in_a_circle() {
    let (mut crates, mut circles) = (0, Vec::new());
    for folder in ["functions", "functions/lib"] {
        for entry in fs::read_dir(checkout().join(folder)).unwrap() {
            let sources = entry.unwrap().path().join("src");
            if sources.exists() {
                let circle = in_a_circle(imports(&sources));
                if !circle.is_empty() {
                    circles.push(format!("{}: {circle:?}", sources.display()));
                }
                crates += 1;
            }
        }
    }
    assert!(circles.is_empty(), "{circles:#?}");
    assert!(crates > 30, "only {crates} crates were read");
}

#[test]
fn a_circle_is_found_and_what_only_leads_to_it_is_not_in_it() {
    let of = |imports: &[(&str, &str)]| {
        let files = imports.iter().flat_map(|(from, to)| [*from, *to]);
        let mut all: BTreeMap<String, Set> = files.map(|file| (file.to_owned(), Set::new())).collect();
        for (from, to) in imports {
            all.get_mut(*from).unwrap().insert((*to).to_owned());
        }
        in_a_circle(all).into_iter().collect::<Vec<_>>()
    };
    assert!(of(&[("lib", "a"), ("lib", "b"), ("a", "b")]).is_empty());
    assert_eq!(of(&[("lib", "a"), ("a", "b"), ("b", "a"), ("b", "c")]), ["a", "b"]);
}

#[test]
fn names_at_the_root_are_those_of_the_files_that_they_come_from() {
    let lib = "mod a;\npub mod b;\npub use b::{One, Two};\n\npub fn three() {}\n";
    let names = |text: &str| imported(text, lib, &["a", "b"]).into_iter().collect::<Vec<_>>();
    assert_eq!(names("use crate::{One, a::{self, x}};"), ["a", "b"]);
    assert_eq!(names("use crate::three;\n// crate::a\n"), ["lib"]);
    assert_eq!(names("fn f() { crate::a::x() }\n#[cfg(test)]\nmod tests { use crate::b; }"), ["a"]);
    assert_eq!(names("use super::Two;"), ["b"]);
}

/// The files of a crate, by the name of their module, each with those that it imports.
fn imports(sources: &Path) -> BTreeMap<String, Set> {
    let mut files: BTreeMap<String, String> = BTreeMap::new();
    for entry in fs::read_dir(sources).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if path.is_file() && name != "main" && name != "tests" {
            files.insert(name, fs::read_to_string(path).unwrap());
        }
    }
    let modules: Vec<&str> = files.keys().map(String::as_str).filter(|name| *name != "lib").collect();
    let lib = &files["lib"];
    let of_file = |(name, text): (&String, &String)| {
        let mut imports = if name == "lib" { used_at_the_root(text, &modules) } else { imported(text, lib, &modules) };
        imports.remove(name);
        (name.clone(), imports)
    };
    files.iter().map(of_file).collect()
}

/// What a file's code holds, without comments and tests.
fn code(text: &str) -> String {
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    code.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// The modules that lib.rs uses. What it passes on to other crates it does not use.
fn used_at_the_root(lib: &str, modules: &[&str]) -> Set {
    let code = code(lib);
    let code: Vec<&str> = code.lines().filter(|line| !line.starts_with("pub use ")).collect();
    let code = code.join("\n");
    let starts_a_path = |module: &&&str| {
        code.match_indices(&format!("{module}::")).any(|(at, _)| {
            let before = &code[..at];
            !before.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':') || before.ends_with("self::")
        })
    };
    modules.iter().filter(starts_a_path).map(|module| (*module).to_owned()).collect()
}

/// The files of its crate that a file below lib.rs imports; what lib.rs only passes on is of the file that it is from.
fn imported(text: &str, lib: &str, modules: &[&str]) -> Set {
    let lib = code(lib);
    let from = |name: &str| -> String {
        if modules.contains(&name) {
            return name.to_owned();
        }
        let passed_on = lib.lines().filter_map(|line| line.trim().strip_prefix("pub use ")?.split_once("::"));
        let of = |names: &str| names.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == name);
        passed_on.filter(|(_, names)| of(names)).map(|(module, _)| module.to_owned()).next().unwrap_or("lib".to_owned())
    };
    let code = code(text);
    let paths = ["crate::", "super::"].iter().flat_map(|root| code.split(root).skip(1));
    paths.flat_map(first_names).map(|name| from(&name)).collect()
}

/// `a` of `a::b`; `a` and `c` of `{a::{b}, c}`.
fn first_names(path: &str) -> Vec<String> {
    let word = |text: &str| text.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let Some(group) = path.strip_prefix('{') else { return vec![word(path)] };
    let mut depth = 0_usize;
    let mut names = vec![String::new()];
    for c in group.chars() {
        match c {
            '}' if depth == 0 => break,
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => names.push(String::new()),
            c => names.last_mut().unwrap().push(c),
        }
    }
    names.iter().map(|name| word(name)).filter(|name| !name.is_empty()).collect()
}

/// The files that are left when, again and again, those go that import none of the rest, and those that none of the rest
/// imports.
fn in_a_circle(mut imports: BTreeMap<String, Set>) -> Set {
    loop {
        let all: Set = imports.keys().cloned().collect();
        let imported: Set = imports.values().flatten().cloned().collect();
        let before = imports.len();
        imports.retain(|name, names| imported.contains(name) && !names.is_disjoint(&all));
        if imports.len() == before {
            return all;
        }
    }
}
