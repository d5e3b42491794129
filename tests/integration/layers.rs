//! The layer rule of `src/lib.rs`, enforced: imports point down only.

use std::path::{Path, PathBuf};

/// The rooms, lowest first; those of one line do not import each other.
const LAYERS: [&[&str]; 11] = [
    &["policy"],
    &["clock", "wire"],
    &["config", "store"],
    &["telemetry"],
    &["auth", "limit", "usage", "upstream"],
    &["management"],
    &["gateway", "admin"],
    &["server"],
    &["app"],
    &["cli"],
    &["main"],
];

fn layer(room: &str) -> usize {
    LAYERS
        .iter()
        .position(|rooms| rooms.contains(&room))
        .unwrap_or_else(|| panic!("`{room}` is in no layer: name it in LAYERS"))
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The first names after each `crate::` of a line of code; of a group `crate::{a, b::c}` each one.
fn named(line: &str) -> Vec<String> {
    let code = line.split("//").next().unwrap();
    let mut names = Vec::new();
    for (at, found) in code.match_indices("crate::") {
        // `seeme_gateway::` and `$crate::` name the same rooms; another crate's path does not end in `crate::`.
        let rest = &code[at + found.len()..];
        let name =
            |text: &str| text.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
        match rest.strip_prefix('{') {
            Some(group) => {
                let mut depth = 0;
                for part in group.split_inclusive(['{', '}', ',']) {
                    if depth == 0 {
                        names.push(name(part));
                    }
                    depth += i32::from(part.ends_with('{')) - i32::from(part.ends_with('}'));
                    if depth < 0 {
                        break;
                    }
                }
            }
            None => names.push(name(rest)),
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

#[test]
fn imports_point_down_only() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 40, "{files:?}");
    let mut upward = Vec::new();
    let mut seen = 0;
    for file in files {
        let inside = file.strip_prefix(&root).unwrap();
        let room = inside.components().next().unwrap().as_os_str().to_str().unwrap().trim_end_matches(".rs").to_owned();
        if room == "lib" {
            continue;
        }
        let text = std::fs::read_to_string(&file).unwrap();
        for (number, line) in text.lines().enumerate() {
            for name in named(&line.replace("seeme_gateway::", "crate::")) {
                seen += 1;
                // A room may always name itself.
                if name != room && layer(&name) >= layer(&room) {
                    upward.push(format!("{}:{}: {room} imports {name}: {}", inside.display(), number + 1, line.trim()));
                }
            }
        }
    }
    assert!(seen > 100, "the scan found only {seen} imports: does it still read them?");
    assert!(upward.is_empty(), "upward imports:\n{}", upward.join("\n"));
}

#[test]
fn every_room_is_in_the_rule_and_the_rule_is_written_in_lib_rs() {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let rooms = text.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    for room in rooms {
        layer(room);
    }
    let rule: String = text.lines().filter_map(|line| line.strip_prefix("//!")).collect();
    for room in LAYERS.iter().copied().flatten() {
        assert!(rule.contains(&format!("`{room}`")), "{room} is not in the layer rule of src/lib.rs");
    }
}

#[test]
fn the_scan_reads_every_form_of_a_path() {
    assert_eq!(named("use crate::store::{Store, StoreError};"), ["store"]);
    assert_eq!(named("use crate::{auth, gateway::context::{A, B}, cli};"), ["auth", "gateway", "cli"]);
    assert_eq!(named("    let x = crate::policy::route::UpstreamId(0).max(crate::clock::now());"), ["policy", "clock"]);
    assert_eq!(named("// use crate::cli;"), [] as [&str; 0]);
}

#[test]
fn the_policy_and_the_octets_are_judged_without_io() {
    let mut files = Vec::new();
    for room in ["src/policy", "src/wire"] {
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join(room), &mut files);
    }
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        for impure in [
            "tokio::",
            "std::fs",
            "std::net::Tcp",
            "SystemTime",
            "Instant::now",
            "getrandom",
            "metrics::",
            "tracing::",
            "async fn",
        ] {
            let is_test = file.components().any(|part| part.as_os_str() == "tests") || file.ends_with("tests.rs");
            assert!(is_test || !code.contains(impure), "{} uses {impure}", file.display());
        }
    }
}
