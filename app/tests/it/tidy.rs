//! The rules of the house, held against the source: DESIGN's layout and ARCHITECTURE.md's table.
//!
//! Each test is one rule and names every place that breaks it. Nothing here runs the programs.

use crate::harness::{output, root};
use homing_protocol::Step;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Folders that are not ours, or are made by tools.
const NOT_OURS: [&str; 5] = ["target", "node_modules", ".git", "testdata", "vendor"];
/// Longer than this, a file holds more than one thing.
const LINES_AT_MOST: usize = 800;
/// What is a program on the picture, and so must not depend on another one.
const ROLES: [&str; 6] = ["agent", "dispatcher", "tunnel", "recording", "management", "camera"];

// ---------------------------------------------------------------------------------------------
// Layout

#[test]
fn protocol_and_media_are_pure() {
    let mut faults = Faults::default();
    for package in ["homing-protocol", "homing-media"] {
        for name in dependencies_of(package) {
            if ["tokio", "async-std", "smol", "mio"].contains(&name.as_str()) {
                faults.add(package, &format!("depends on {name}; see `cargo tree -p {package} -i {name}`"));
            }
        }
    }
    faults.none("protocol and media have no runtime, even transitively");
}

#[test]
fn the_agent_carries_nothing_that_only_servers_need() {
    let mut faults = Faults::default();
    for name in dependencies_of("homing-agent") {
        if ["sqlx", "axum", "askama", "openh264", "utoipa", "homing-base"].contains(&name.as_str()) {
            faults.add("homing-agent", &format!("depends on {name}"));
        }
    }
    faults.none("the agent is small");
}

/// Every crate depends on at most what its row in ARCHITECTURE.md allows; so no role on a role.
#[test]
fn crates_depend_on_what_the_architecture_allows() {
    let mut faults = Faults::default();
    let allowed: BTreeMap<String, String> = table(&read("ARCHITECTURE.md"), "| folder |")
        .into_iter()
        .map(|row| (name_of(&row[0]), row[2].clone()))
        .collect();
    let metadata = output(Command::new(env!("CARGO")).current_dir(root()).args([
        "metadata",
        "--no-deps",
        "--format-version=1",
        "--offline",
    ]));
    let metadata: Value = serde_json::from_slice(&metadata).unwrap();
    for package in metadata["packages"].as_array().unwrap() {
        let manifest = Path::new(package["manifest_path"].as_str().unwrap());
        let folder = manifest.parent().unwrap().strip_prefix(root()).unwrap().display().to_string();
        let Some(allowed) = allowed.get(&folder) else {
            faults.add("ARCHITECTURE.md", &format!("has no row for {folder}/"));
            continue;
        };
        for dependency in package["dependencies"].as_array().unwrap() {
            let name = dependency["name"].as_str().unwrap();
            let Some(ours) = name.strip_prefix("homing-") else { continue };
            if dependency["kind"] == "dev" || *allowed == "everything" {
                continue;
            }
            if !allowed.contains(&format!("`{ours}`")) {
                faults.add(&format!("{folder}/Cargo.toml"), &format!("depends on {name}"));
            }
            if ROLES.contains(&folder.as_str()) && ROLES.contains(&ours) {
                faults.add(&format!("{folder}/Cargo.toml"), &format!("a role depends on the role {ours}"));
            }
        }
    }
    faults.none("crates depend on what ARCHITECTURE.md allows");
}

#[test]
fn every_module_says_what_it_is() {
    let mut faults = Faults::default();
    for file in files(&["rs"]) {
        let text = read(&file);
        let first = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
        if !first.starts_with("//!") {
            faults.add(&file, "does not begin with //!: what it is, what it is not, its invariant");
        }
    }
    for file in files(&["py", "js", "mjs"]) {
        let text = read(&file);
        let first = text.lines().find(|line| !line.starts_with("#!")).unwrap_or_default();
        if !["\"\"\"", "//", "/*", "#"].iter().any(|start| first.starts_with(start)) {
            faults.add(&file, "does not begin by saying what it is");
        }
    }
    faults.none("every module begins with a description");
}

#[test]
fn no_file_is_too_long() {
    let mut faults = Faults::default();
    for file in files(&["rs", "py", "js", "mjs", "html", "css", "sh", "md"]) {
        let lines = read(&file).lines().count();
        if lines > LINES_AT_MOST {
            faults.add(&file, &format!("{lines} lines; more than {LINES_AT_MOST}"));
        }
    }
    faults.none("files are short enough to read");
}

// ---------------------------------------------------------------------------------------------
// Documents

#[test]
fn every_path_that_a_document_names_exists() {
    let mut faults = Faults::default();
    for file in files(&["md", "rs"]) {
        let text = read(&file);
        let prose: String = if file.ends_with(".md") {
            without_blocks(&text)
        } else {
            text.lines().filter(|line| line.trim_start().starts_with("//")).fold(
                String::new(),
                |mut all, line| {
                    let _ = writeln!(all, "{line}");
                    all
                },
            )
        };
        for named in prose.split('`').skip(1).step_by(2) {
            if looks_like_a_path(named) && !exists(&file, named) {
                faults.add(&file, &format!("names `{named}`, which does not exist"));
            }
        }
    }
    faults.none("documents name what exists");
}

/// Who reads what happens in an attack finds the test that shows it.
#[test]
fn every_test_that_the_security_document_names_exists() {
    let tests: BTreeSet<String> = files(&["rs"]).iter().flat_map(|file| test_names(&read(file))).collect();
    let mut faults = Faults::default();
    let attacks = table(&read("docs/security.md"), "| attack |");
    for row in &attacks {
        let named: Vec<&str> = row[2].split('`').skip(1).step_by(2).collect();
        if named.is_empty() {
            faults.add(&row[0], "names no test");
        }
        for name in named.into_iter().filter(|name| !tests.contains(*name)) {
            faults.add(&row[0], &format!("names {name}, which is no test"));
        }
    }
    assert!(attacks.len() > 20, "the table is read");
    faults.none("docs/security.md names tests that exist");
}

#[test]
fn every_link_of_a_document_leads_somewhere() {
    let mut faults = Faults::default();
    for file in files(&["md"]) {
        let text = without_blocks(&read(&file));
        for rest in text.split("](").skip(1) {
            let target = rest.split([')', ' ']).next().unwrap_or_default();
            let target = target.split('#').next().unwrap_or_default();
            let elsewhere = target.is_empty() || target.contains("://") || target.starts_with("mailto:");
            if !elsewhere && !root().join(&file).parent().unwrap().join(target).exists() {
                faults.add(&file, &format!("links to {target}, which does not exist"));
            }
        }
    }
    faults.none("links lead somewhere");
}

#[test]
fn readme_begins_with_the_two_commands() {
    let readme = read("README.md");
    let place = |what: &str| readme.find(what).unwrap_or_else(|| panic!("README.md does not say `{what}`"));
    let (demo, test) = (place("cargo run --release -- demo"), place("cargo xtask test"));
    let picture = place("![");
    assert!(demo < picture && test < picture, "README.md: the two commands come before everything else");
    for file in ["CHANGELOG.md", "LICENSE-MIT", "LICENSE-APACHE", "ARCHITECTURE.md"] {
        assert!(root().join(file).exists(), "{file} is missing");
    }
}

/// A reference file is what an administrator reads: each key with a sentence about it.
#[test]
fn every_key_of_every_reference_configuration_is_explained() {
    let mut faults = Faults::default();
    for role in ROLES {
        let references: Vec<String> = files(&["toml"])
            .into_iter()
            .filter(|file| file.starts_with(&format!("{role}/")) && !file.ends_with("Cargo.toml"))
            .collect();
        if references.is_empty() {
            faults.add(role, "has no reference configuration");
        }
        for file in references {
            let text = read(&file);
            // A sentence explains the keys right below it, up to the next empty line.
            let mut explained = false;
            for (index, line) in text.lines().enumerate() {
                match configuration_key(line) {
                    Some(key) if !explained => {
                        faults.add(&format!("{file}:{}", index + 1), &format!("{key} is not explained"));
                    }
                    Some(_) => (),
                    None => explained = line.starts_with('#') && !line.trim_end().ends_with(']'),
                }
            }
        }
    }
    faults.none("configuration keys are explained");
}

// ---------------------------------------------------------------------------------------------
// The connection flow

#[test]
fn the_flow_document_and_the_step_type_agree() {
    let rows = flow_table();
    assert_eq!(rows.len(), Step::ALL.len(), "rows of the table in docs/connection-flow.md");
    let document = read("docs/connection-flow.md");
    for (step, row) in Step::ALL.into_iter().zip(&rows) {
        assert_eq!((row[0].as_str(), row[1].as_str()), (step.number().to_string().as_str(), step.name()));
        let heading = format!("\n### {} {}\n", step.number(), step.name());
        assert!(document.contains(&heading), "docs/connection-flow.md has no section {step}");
    }
}

/// `Step::Dispatch` is written in the programs that the document says enter step 5, and in no other.
#[test]
fn every_step_is_entered_where_the_document_says() {
    let mut faults = Faults::default();
    let rows = flow_table();
    for (step, row) in Step::ALL.into_iter().zip(&rows) {
        let word = format!("Step::{step:?}");
        let said: BTreeSet<&str> = row[4].split(',').map(|folder| folder.trim().trim_matches('`')).collect();
        for role in ROLES {
            let places: Vec<String> = files(&["rs"])
                .into_iter()
                .filter(|file| file.starts_with(&format!("{role}/src/")))
                .filter(|file| mentions(&code(&read(file)), &word))
                .collect();
            match (said.contains(role), places.is_empty()) {
                (true, true) => faults.add(role, &format!("should enter {step}, and does not write {word}")),
                (false, false) => {
                    faults.add(
                        role,
                        &format!("writes {word} ({}), and should not enter it", places.join(", ")),
                    );
                }
                _ => (),
            }
        }
    }
    faults.none("steps are entered where docs/connection-flow.md says");
}

#[test]
fn every_step_is_named_by_a_test() {
    let names: Vec<String> = files(&["rs"]).iter().flat_map(|file| test_names(&read(file))).collect();
    assert!(names.len() > 20, "only {} tests were found", names.len());
    let mut faults = Faults::default();
    for step in Step::ALL {
        let words = format!("_{}_", step.name().replace('-', "_"));
        let number = format!("_step_{}_", step.number());
        if !names
            .iter()
            .map(|name| format!("_{name}_"))
            .any(|name| name.contains(&words) || name.contains(&number))
        {
            faults.add(&step.to_string(), "no test has it in its name");
        }
    }
    faults.none("steps are named by tests");
}

// ---------------------------------------------------------------------------------------------
// How this file reads the tree

/// What breaks a rule, all of it at once.
#[derive(Default)]
struct Faults(Vec<String>);

impl Faults {
    fn add(&mut self, place: &str, what: &str) {
        self.0.push(format!("{place}: {what}"));
    }

    #[track_caller]
    fn none(self, rule: &str) {
        assert!(self.0.is_empty(), "\n{rule}; but\n  {}\n", self.0.join("\n  "));
    }
}

fn read(file: &str) -> String {
    let text = fs::read_to_string(root().join(file));
    text.unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// Our files with one of these endings, relative to the root.
fn files(endings: &[&str]) -> Vec<String> {
    fn walk(folder: &Path, endings: &[&str], found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let (path, name) = (entry.path(), entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                if !NOT_OURS.iter().any(|not| name == *not) {
                    walk(&path, endings, found);
                }
            } else if path.extension().is_some_and(|ending| endings.iter().any(|wanted| ending == *wanted)) {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(root(), endings, &mut found);
    let mut names: Vec<String> =
        found.iter().map(|path| path.strip_prefix(root()).unwrap().display().to_string()).collect();
    names.sort();
    assert!(!names.is_empty(), "no files {endings:?}");
    names
}

/// Names of all crates that a package is built of.
fn dependencies_of(package: &str) -> BTreeSet<String> {
    let tree = output(Command::new(env!("CARGO")).current_dir(root()).args([
        "tree",
        "--offline",
        "--package",
        package,
        "--edges=normal,build",
        "--prefix=none",
        "--format={p}",
    ]));
    let tree = String::from_utf8(tree).unwrap();
    let names: BTreeSet<String> =
        tree.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect();
    assert!(names.contains(package), "{tree}");
    names
}

/// The cells of the rows of the table whose head begins with `head`.
fn table(document: &str, head: &str) -> Vec<Vec<String>> {
    let rows: Vec<Vec<String>> = document
        .lines()
        .skip_while(|line| !line.starts_with(head))
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect())
        .collect();
    assert!(!rows.is_empty(), "no table {head:?}");
    rows
}

fn flow_table() -> Vec<Vec<String>> {
    table(&read("docs/connection-flow.md"), "| # | step |")
}

/// `tunnel` of `` `tunnel/` ``.
fn name_of(cell: &str) -> String {
    cell.trim_matches('`').trim_end_matches('/').to_owned()
}

/// A document without its fenced blocks, which show commands and examples.
fn without_blocks(document: &str) -> String {
    document.split("```").step_by(2).collect()
}

/// Whether something in backticks is meant as a place in this repository.
fn looks_like_a_path(named: &str) -> bool {
    const ENDINGS: [&str; 11] =
        ["rs", "md", "toml", "py", "js", "html", "css", "json", "sh", "png", "service"];
    let plain = named.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c));
    let first = named.split('/').next().unwrap_or_default();
    // `DIR/demo.json`: a word that stands for something.
    let stands_for_something = !first.is_empty() && first.chars().all(|c| c.is_ascii_uppercase());
    let built = ["target", "node_modules"].contains(&first);
    if !plain || first.is_empty() || stands_for_something || built || named.starts_with('.') {
        return false;
    }
    let ending = named.rsplit_once('.').map(|(_, ending)| ending);
    let file_in_a_folder = named.contains('/') && ending.is_some_and(|ending| ENDINGS.contains(&ending));
    let folder = named.ends_with('/') && named.matches('/').count() <= 3;
    file_in_a_folder || folder || ending == Some("md") || (named.contains('/') && root().join(first).is_dir())
}

/// From the root, from the crate, or from the file's own folder.
fn exists(file: &str, named: &str) -> bool {
    let own = root().join(file);
    let krate = own.ancestors().find(|folder| folder.join("Cargo.toml").is_file()).unwrap();
    [root(), krate, own.parent().unwrap()].iter().any(|folder| folder.join(named).exists())
        || krate.join("src").join(named).exists()
}

/// The name of the key that a line of a reference file sets, commented out or not.
fn configuration_key(line: &str) -> Option<&str> {
    let line = line.strip_prefix("# ").unwrap_or(line);
    let (name, _) = line.split_once('=')?;
    let name = name.strip_suffix(' ').unwrap_or(name);
    let is_name =
        !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    is_name.then_some(name)
}

/// Source without comments and without its tests, which stand last.
fn code(text: &str) -> String {
    let until_tests = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    until_tests.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// Whether `word` stands in `code`, not only as a part of a longer one.
fn mentions(code: &str, word: &str) -> bool {
    code.match_indices(word).any(|(at, _)| {
        let next = code[at + word.len()..].chars().next();
        !next.is_some_and(|c| c.is_alphanumeric() || c == '_')
    })
}

/// Functions that follow a `#[test]` of any kind.
fn test_names(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut is_test = false;
    for line in text.lines().map(str::trim) {
        if line.starts_with("#[")
            && (line.contains("test]") || line.contains("test("))
            && !line.contains("cfg(")
        {
            is_test = true;
        } else if let Some((_, rest)) = line.split_once("fn ").filter(|_| is_test) {
            names.push(rest.split(['(', '<']).next().unwrap_or_default().to_owned());
            is_test = false;
        }
    }
    // Property tests name theirs inside a macro.
    if text.contains("proptest! {") {
        let inside = text.split("proptest! {").skip(1).flat_map(str::lines).map(str::trim);
        names.extend(inside.filter_map(|line| Some(line.strip_prefix("fn ")?.split('(').next()?.to_owned())));
    }
    names
}

/// The goal: a rule that reads the source notices what breaks it.
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readers_read_what_they_should() {
        assert!(
            looks_like_a_path("docs/gone.md") && looks_like_a_path("tunnel/") && looks_like_a_path("GONE.md")
        );
        for not in
            ["application/json", "DIR/demo.json", "/api/v1/devices", "demo.json", "a/{id}.rs", "protocol"]
        {
            assert!(!looks_like_a_path(not), "{not}");
        }
        assert!(exists("tunnel/src/lib.rs", "src/lib.rs") && !exists("tunnel/src/lib.rs", "src/gone.rs"));

        let source = "// Step::Add\nuse Step::Address;\n#[cfg(test)]\nmod tests { Step::Add }";
        assert!(!mentions(&code(source), "Step::Add") && mentions(&code(source), "Step::Address"));

        let tests = "#[tokio::test]\nasync fn step_5_works() {}\nfn helper() {}\n#[cfg(test)]\nmod tests {}\nfn other() {}";
        assert_eq!(test_names(tests), ["step_5_works"]);

        assert_eq!(configuration_key("# external = \"x\""), Some("external"));
        assert_eq!(configuration_key("# The address = where."), None);
        assert_eq!(configuration_key("#  prose = 5"), None);
    }
}
