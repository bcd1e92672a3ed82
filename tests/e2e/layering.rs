//! Rules about the source text that no compiler checks: who may import whom, where `unsafe` may stand, how long a file
//! may grow, and that no package registry is named.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use walhub_tests::binaries::source_root;

/// A longer file says in its module doc why ("long because ...").
const MAX_LINES: usize = 500;

/// (folder, crates it may not import, why).
const FORBIDDEN: [(&str, &[&str], &str); 7] = [
    (
        "common/src",
        &[
            "walhub_proto",
            "walhub_store",
            "walhub_agent",
            "walhub_hub",
            "tonic",
            "prost",
            "sled",
            "aws_sdk_s3",
        ],
        "common knows nobody",
    ),
    (
        "proto/src",
        &["walhub_store", "walhub_agent", "walhub_hub", "rusqlite", "sled", "aws_sdk_s3"],
        "proto knows common only",
    ),
    (
        "agent/src",
        &["walhub_hub", "walhub_store", "sled", "aws_sdk_s3", "rustls", "tokio_rustls"],
        "agent and hub meet only through proto",
    ),
    (
        "hub/src",
        &["walhub_agent", "aws_sdk_s3", "rustls", "tokio_rustls"],
        "the hub talks to S3 through the store",
    ),
    (
        "hub/store/src",
        &["walhub_proto", "walhub_agent", "walhub_hub", "tonic", "prost", "rusqlite", "sled"],
        "the store knows common only",
    ),
    (
        "hub/ctl/src",
        &["walhub_hub", "walhub_agent", "sled", "aws_sdk_s3", "rustls", "tokio_rustls"],
        "hubctl is a client like any other",
    ),
    (
        "tests/src",
        &["walhub_agent", "walhub_hub", "walhub_store"],
        "the harness judges the programs from outside",
    ),
];

/// (crate, the only places that may use it).
const PRIVILEGES: [(&str, &[&str]); 4] = [
    // The capture alone opens a live database; restored files, which nobody else has open, are asked in one place for all.
    ("rusqlite", &["agent/src/capture", "agent/tests", "common/src/sql", "tests"]),
    ("sled", &["hub/src/db"]),
    ("aws_sdk_s3", &["hub/store/src/destinations/s3", "hub/store/tests"]),
    ("rustls", &["common/src/tls", "tests/e2e/identity.rs"]),
];

/// One file of the product; the others are writers that fail at one exact instant.
const UNSAFE: [&str; 4] = [
    "agent/src/capture/vfs.rs",
    "agent/tests/capture/raw.rs",
    "tests/src/bin/writer.rs",
    "tests/torture/writer/faults.rs",
];

struct Source {
    /// From the root of the tree, with `/`.
    name: String,
    text: String,
}

fn walk(folder: &Path, keep: &dyn Fn(&Path) -> bool, found: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            if !["target", ".git", ".cache", "corpus", "__pycache__"].contains(&name.as_str()) {
                walk(&path, keep, found);
            }
        } else if keep(&path) {
            found.push(path);
        }
    }
}

fn sources(keep: &dyn Fn(&Path) -> bool) -> Vec<Source> {
    let root = source_root();
    let mut paths = Vec::new();
    walk(&root, keep, &mut paths);
    paths.sort();
    let read = |path: PathBuf| {
        let name = path.strip_prefix(&root).expect("inside the tree").display().to_string();
        Some(Source { name, text: std::fs::read_to_string(path).ok()? })
    };
    paths.into_iter().filter_map(read).collect()
}

fn rust() -> Vec<Source> {
    let found = sources(&|path| path.extension().is_some_and(|extension| extension == "rs"));
    assert!(found.len() > 50, "the walk found only {} files", found.len());
    found
}

/// Code without comments, doc comments and the unit tests at the end of the file.
fn code(text: &str) -> impl Iterator<Item = &str> {
    let text = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or(text);
    text.lines().map(|line| line.split("//").next().unwrap_or_default())
}

/// True when `text` uses the crate in a path or a `use` line.
fn uses(text: &str, name: &str) -> bool {
    code(text).any(|line| {
        line.match_indices(name).any(|(at, _)| {
            let before = line[..at].chars().next_back();
            let after = &line[at + name.len()..];
            let own_path = line[..at].ends_with("::");
            let boundary = before.is_none_or(|c| !c.is_alphanumeric() && c != '_') && !own_path;
            boundary
                && (after.starts_with("::")
                    || (line.trim_start().starts_with("use ") && after.starts_with(';')))
        })
    })
}

#[track_caller]
fn none(faults: BTreeSet<String>) {
    assert!(faults.is_empty(), "{}", faults.into_iter().collect::<Vec<_>>().join("\n"));
}

#[test]
fn imports_follow_the_drawn_arrows() {
    let mut faults = BTreeSet::new();
    for source in rust() {
        for (folder, crates, why) in FORBIDDEN {
            for name in crates.iter().filter(|_| source.name.starts_with(&format!("{folder}/"))) {
                if uses(&source.text, name) {
                    faults.insert(format!("{} uses {name}: {why}", source.name));
                }
            }
        }
        for (name, places) in PRIVILEGES {
            let allowed = places.iter().any(|place| source.name.starts_with(place));
            if !allowed && uses(&source.text, name) {
                faults.insert(format!("{} uses {name}, which belongs to {places:?}", source.name));
            }
        }
    }
    none(faults);
}

#[test]
fn inside_the_hub_knowledge_flows_downward() {
    // (module, what it may not know).
    const HUB: [(&str, &[&str]); 6] = [
        ("ingest", &["fanout", "restore", "api"]),
        ("fanout", &["ingest", "api", "fleet"]),
        ("buffer", &["ingest", "fanout", "restore", "api", "fleet"]),
        ("db", &["buffer", "ingest", "fanout", "restore", "api", "fleet"]),
        ("fleet", &["api", "ingest", "fanout", "restore"]),
        ("restore", &["api", "ingest", "fanout", "fleet"]),
    ];
    let mut faults = BTreeSet::new();
    for source in rust() {
        for (module, others) in HUB {
            let inside = format!("hub/src/{module}");
            if !source.name.starts_with(&format!("{inside}/")) && source.name != format!("{inside}.rs") {
                continue;
            }
            for other in others {
                if code(&source.text).any(|line| line.contains(&format!("crate::{other}::"))) {
                    faults.insert(format!("{} knows {other}", source.name));
                }
            }
        }
    }
    none(faults);
}

#[test]
fn unsafe_stands_in_named_files_and_every_block_says_why() {
    let mut faults = BTreeSet::new();
    for source in rust() {
        let lines: Vec<&str> = source.text.lines().collect();
        for (index, line) in code(&source.text).enumerate() {
            let unquoted = line.split('"').step_by(2).collect::<String>();
            if !unquoted.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe") {
                continue;
            }
            if !UNSAFE.contains(&source.name.as_str()) {
                faults.insert(format!("{}:{}: unsafe", source.name, index + 1));
            }
            let justified =
                lines[index.saturating_sub(12)..=index].iter().any(|line| line.contains("SAFETY"));
            if unquoted.contains("unsafe {") && !justified {
                faults.insert(format!("{}:{}: an unsafe block without SAFETY", source.name, index + 1));
            }
        }
    }
    none(faults);
}

#[test]
fn files_stay_short_and_tell_their_purpose() {
    let mut faults = BTreeSet::new();
    for source in rust() {
        let lines = source.text.lines().count();
        let doc: String = source.text.lines().take_while(|line| line.starts_with("//!")).collect();
        if lines > MAX_LINES && !doc.contains("long because") {
            faults.insert(format!("{} has {lines} lines and does not say \"long because\"", source.name));
        }
        if source.name.ends_with("tests.rs") {
            continue;
        }
        let first = source.text.lines().find(|line| !line.trim().is_empty() && !line.starts_with("#!["));
        if !first.is_some_and(|line| line.starts_with("//!")) {
            faults.insert(format!("{} does not start with its purpose", source.name));
        }
    }
    none(faults);
}

#[test]
fn no_package_registry_is_named() {
    // Written in pieces, so that this file does not name them either.
    let registries = [
        ["crates", ".io"].concat(),
        ["pypi", ".org"].concat(),
        ["pythonhosted", ".org"].concat(),
        ["registry.npmjs", ".org"].concat(),
        ["deb.debian", ".org"].concat(),
        ["rustup", ".rs"].concat(),
    ];
    let text_file = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let extension = path.extension().map(|e| e.to_string_lossy().into_owned()).unwrap_or_default();
        // cargo itself writes the source of every package into the lock file.
        name != "Cargo.lock"
            && ["", "rs", "toml", "yml", "yaml", "md", "sh", "py", "proto", "json", "service"]
                .contains(&extension.as_str())
    };
    let mut faults = BTreeSet::new();
    for source in sources(&text_file) {
        for (index, line) in source.text.lines().enumerate() {
            if let Some(registry) = registries.iter().find(|registry| line.contains(registry.as_str())) {
                faults.insert(format!("{}:{}: names {registry}", source.name, index + 1));
            }
        }
    }
    none(faults);
}
