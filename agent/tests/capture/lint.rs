//! In the agent's process only `capture/vfs.rs` may open a database or its `-shm`: closing any other descriptor of them
//! drops SQLite's POSIX locks. So whatever opens files by other means must be on this list, with what it opens.

use std::fs;
use std::path::{Path, PathBuf};

/// Calls that open files.
const OPENERS: &[&str] = &[
    "File::open",
    "File::create",
    "File::options",
    "OpenOptions",
    "fs::read(",
    "fs::write(",
    "fs::copy",
    "fs::read_to_string",
    "fs::read_to_end",
    "File::create_new",
];

/// Who may, and what for.
const ALLOWED: &[(&str, &str)] = &[
    ("disk.rs", "the one seam to the state folder"),
    ("restore/swap.rs", "a new file, before it has the name of a database"),
    ("restore/live.rs", "a scratch file in the state folder"),
    ("spool/", "batches in the state folder"),
    ("page_map/store", "the page map's own files in the state folder"),
    ("page_map/sums.rs", "a scratch file in the state folder"),
    ("capture/staged.rs", "a scratch file in the state folder"),
    ("capture/wanted.rs", "a scratch file in the state folder"),
    ("capture/holders.rs", "the system's list of locks"),
    ("capture/alone.rs", "a database that its task has let go of, so that this process has no lock of it"),
    ("orders/ends.rs", "how orders ended, in the state folder"),
    ("state_dir.rs", "lock, epoch and names in the state folder"),
    ("config.rs", "the configuration file"),
    ("app.rs", "certificates and keys"),
    ("orders/ends.rs", "how orders ended, in the state folder"),
    ("local/", "the status socket"),
    ("cli/", "commands in a process of their own, which follows no database"),
    ("main.rs", "start-up, before any database is attached"),
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn nothing_else_in_the_agent_opens_files_unlisted() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 10, "the sources are elsewhere");
    let mut faults = Vec::new();
    for file in files {
        let name = file.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
        if ALLOWED.iter().any(|(prefix, _)| name.starts_with(prefix)) {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        // Tests open what they like: they end with their process.
        let text = text.split("#[cfg(test)]").next().unwrap();
        for (at, line) in text.lines().enumerate() {
            let code = line.trim_start();
            if !code.starts_with("//") && OPENERS.iter().any(|opener| code.contains(opener)) {
                faults.push(format!("{name}:{}: {code}", at + 1));
            }
        }
    }
    assert!(faults.is_empty(), "files opened outside of the allow-list:\n{}", faults.join("\n"));
}

#[test]
fn unsafe_code_lives_in_one_module() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let with: Vec<_> = files
        .into_iter()
        .filter(|f| fs::read_to_string(f).unwrap().contains("allow(unsafe_code)"))
        .map(|f| f.strip_prefix(&root).unwrap().to_owned())
        .collect();
    assert_eq!(with, [Path::new("capture/vfs.rs")]);
}
