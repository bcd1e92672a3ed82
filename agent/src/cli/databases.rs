//! `walhub-agent databases`: what the configuration matches, and whether each file can be followed. It looks by itself and
//! does not ask a running agent (that is `status`); a process of its own may open the files.

use super::{ConfigArgs, Failure, output};
use crate::capture::Absent;
use crate::config::{Certificates, Config};
use crate::discover::{Scan, scan};
use crate::state_dir::recorded_path;
use serde::Serialize;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// List the databases that the configuration matches, with a verdict for each
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The exit code is 0 also when some cannot be followed now: they are picked up when they can.

JSON: {\"databases\": [{\"name\", \"path\", \"bytes\", \"verdict\": \"ready\"|\"not now\", \"reason\"}], \"not_followed\": \
[{\"path\", \"reason\"}]}

Example:
  walhub-agent databases --config agent.yml")]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// Print JSON, see below
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Listing {
    databases: Vec<Row>,
    not_followed: Vec<NotFollowed>,
}

#[derive(Debug, Serialize)]
struct Row {
    name: String,
    path: PathBuf,
    bytes: Option<u64>,
    verdict: &'static str,
    reason: Option<String>,
}

#[derive(Debug, Serialize)]
struct NotFollowed {
    path: PathBuf,
    reason: String,
}

impl Args {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let config = self.config.read(Certificates::Ignore)?;
        let listing = list(&config);
        if self.json {
            return Ok(output::json(&listing)?);
        }
        let rows: Vec<Vec<String>> = listing
            .databases
            .into_iter()
            .map(|row| {
                let verdict = row
                    .reason
                    .map_or_else(|| row.verdict.to_owned(), |why| format!("{}: {why}", row.verdict));
                vec![
                    row.name,
                    row.path.display().to_string(),
                    row.bytes.map_or_else(|| "-".into(), output::bytes),
                    verdict,
                ]
            })
            .collect();
        let mut lines = output::table(&["NAME", "PATH", ">SIZE", "VERDICT"], &rows);
        for fault in listing.not_followed {
            lines.push(format!("not followed: {}: {}", fault.path.display(), fault.reason));
        }
        Ok(output::lines(&lines)?)
    }
}

/// The scan that the agent itself would do.
pub(super) fn scan_config(config: &Config) -> Scan {
    scan(&config.sources, &|name| recorded_path(&config.state_dir, name))
}

fn list(config: &Config) -> Listing {
    let scan = scan_config(config);
    let databases = scan.found.into_values().map(|found| {
        let verdict = look(&found.path);
        Row {
            name: found.name.to_string(),
            bytes: std::fs::metadata(&found.path).ok().filter(|m| m.is_file()).map(|m| m.len()),
            path: found.path,
            verdict: if verdict.is_ok() { "ready" } else { "not now" },
            reason: verdict.err().map(|absent| absent.to_string()),
        }
    });
    let not_followed = scan.faults.into_iter().map(|f| NotFollowed { path: f.path, reason: f.reason });
    Listing { databases: databases.collect(), not_followed: not_followed.collect() }
}

/// What a first look at the file tells.
fn look(path: &Path) -> Result<(), Absent> {
    let told = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound => Absent::Missing,
        io::ErrorKind::PermissionDenied => Absent::Permission(e.to_string()),
        io::ErrorKind::IsADirectory => Absent::NotADatabase,
        _ => Absent::Io(e.to_string()),
    };
    // Opened as the agent would: for writing too, without changing anything.
    let mut file = File::options().read(true).write(true).open(path).map_err(told)?;
    let mut header = [0; 20];
    match file.read_exact(&mut header) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
            let empty = file.metadata().is_ok_and(|m| m.len() == 0);
            return Err(if empty { Absent::Empty } else { Absent::NotADatabase });
        }
        Err(e) => return Err(told(e)),
    }
    if !header.starts_with(b"SQLite format 3\0") {
        return Err(Absent::NotADatabase);
    }
    // Write and read version: 1 is a rollback journal, 2 is WAL.
    if header[18] != 2 || header[19] != 2 {
        return Err(Absent::NotWal {
            journal_mode: "a rollback journal (DELETE, TRUNCATE, PERSIST or MEMORY)",
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::Connection;

    #[test]
    fn each_kind_of_file_gets_its_verdict() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for (name, mode) in [("wal.db", "wal"), ("rollback.db", "delete")] {
            let db = Connection::open(path(name)).unwrap();
            db.pragma_update(None, "journal_mode", mode).unwrap();
            db.execute_batch("CREATE TABLE t(x)").unwrap();
        }
        std::fs::write(path("text.db"), "a letter that is long enough to be a header").unwrap();
        std::fs::write(path("empty.db"), "").unwrap();
        assert_eq!(look(&path("wal.db")), Ok(()));
        assert!(matches!(look(&path("rollback.db")), Err(Absent::NotWal { .. })));
        assert_eq!(look(&path("text.db")), Err(Absent::NotADatabase));
        assert_eq!(look(&path("empty.db")), Err(Absent::Empty));
        assert_eq!(look(&path("missing.db")), Err(Absent::Missing));
        assert_eq!(look(dir.path()), Err(Absent::NotADatabase));
    }
}
