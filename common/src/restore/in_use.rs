//! Which other process has a file open, as far as `/proc` tells this user: a database that is replaced under its
//! application would go on being written under no name at all.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A process other than this one that has the file open, in words; `None` when there is none that can be seen.
pub fn holder(path: &Path) -> Option<String> {
    let wanted = fs::metadata(path).ok()?;
    let own = std::process::id().to_string();
    fs::read_dir("/proc").ok()?.flatten().find_map(|process| {
        let pid = process.file_name().into_string().ok()?;
        if pid == own || !pid.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let mut files = fs::read_dir(process.path().join("fd")).ok()?.flatten();
        files.find(|file| {
            let open = fs::metadata(file.path());
            open.is_ok_and(|open| (open.dev(), open.ino()) == (wanted.dev(), wanted.ino()))
        })?;
        let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        Some(match name.trim() {
            "" => format!("process {pid}"),
            name => format!("process {pid} ({name})"),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn who_has_it_open_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.db");
        assert_eq!(holder(&path), None);
        fs::write(&path, "x").unwrap();
        assert_eq!(holder(&path), None);
        let open = fs::File::open(&path).unwrap();
        assert_eq!(holder(&path), None, "this process itself does not count");

        let mut child = Command::new("sleep").arg("600").stdin(Stdio::from(open)).spawn().unwrap();
        let found = holder(&path);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found, Some(format!("process {} (sleep)", child.id())));
        assert_eq!(holder(&path), None);
    }
}
