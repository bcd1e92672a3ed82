//! What an operator wants to be true of a restored database, asked of the finished file before it gets its name.

use std::path::Path;
use walhub_common::sql::{Announce, Check, Reader};

/// Faults of the integrity check that are told.
const FAULTS: u32 = 5;

/// The questions.
#[derive(Debug, Clone, Default)]
pub(crate) struct Checks {
    checks: Vec<Check>,
    integrity_check: bool,
}

impl Checks {
    pub(super) fn new(checks: &[Check], integrity_check: bool) -> Checks {
        Checks { checks: checks.to_vec(), integrity_check }
    }

    /// Asks the database at `path`, which nobody else has open; an error says what is not as it should be.
    pub(super) fn hold(&self, path: &Path, announce: Announce) -> Result<(), String> {
        if self.checks.is_empty() && !self.integrity_check {
            return Ok(());
        }
        let reader = Reader::open(path).map_err(|error| format!("SQLite cannot open it: {error}"))?;
        announce.reader(&reader);
        if self.integrity_check {
            let faults = reader.integrity(FAULTS);
            let faults = faults.map_err(|error| format!("the integrity check cannot be run: {error}"))?;
            if !faults.is_empty() {
                return Err(format!("the integrity check says: {}", faults.join("; ")));
            }
        }
        self.checks.iter().try_for_each(|check| check.run(&reader)).map_err(|unmet| unmet.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use walhub_common::sql;

    #[tokio::test]
    async fn what_does_not_hold_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a?b#c.db");
        // Nothing at all is an empty database.
        std::fs::write(&path, b"").unwrap();
        let hold = async |checks: &[&str], integrity_check| {
            let checks: Vec<Check> = checks.iter().map(|check| check.parse().unwrap()).collect();
            let (path, checks) = (path.clone(), Checks::new(&checks, integrity_check));
            let held = sql::until(move |announce| checks.hold(&path, announce), std::future::pending::<()>());
            held.await.unwrap().0
        };
        assert_eq!(hold(&["SELECT count(*) FROM sqlite_schema = 0"], true).await, Ok(()));
        for (check, text) in [
            ("SELECT count(*) FROM sqlite_schema = 3", "gives 0, not 3"),
            ("SELECT name FROM sqlite_schema = 7", "gives no row, not 7"),
            ("SELECT x FROM nowhere = 7", "no such table"),
        ] {
            let error = hold(&[check], false).await.unwrap_err();
            assert!(error.contains(text), "{error}");
        }
        std::fs::write(&path, [7; 4096]).unwrap();
        assert!(hold(&[], true).await.unwrap_err().contains("integrity check"));
        assert_eq!(hold(&[], false).await, Ok(()));
    }
}
