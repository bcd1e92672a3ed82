//! What SQLite itself says of a restored file.

use std::path::Path;
use walhub_common::sql::{Announce, Check, Reader};

/// Faults of `integrity_check` that are told.
const FAULTS: u32 = 5;

/// What is to be looked at.
#[derive(Clone, Debug, Default)]
pub(super) struct Checks {
    pub(super) integrity: bool,
    pub(super) assertions: Vec<Check>,
}

/// Looks; the first thing that does not hold is the error. The file is read only. Blocking.
pub(super) fn run(path: &Path, checks: &Checks, announce: Announce) -> Result<(), String> {
    if !checks.integrity && checks.assertions.is_empty() {
        return Ok(());
    }
    let unreadable = |error| format!("SQLite cannot read the restored database: {error}");
    let reader = Reader::open(path).map_err(unreadable)?;
    announce.reader(&reader);
    if checks.integrity {
        let fault = |error| format!("integrity_check cannot be run on the restored database: {error}");
        let said = reader.integrity(FAULTS).map_err(fault)?;
        if !said.is_empty() {
            return Err(format!(
                "integrity_check of the restored database: {}; it is what was captured, so the database itself is damaged: \
                 look at it on its node",
                said.join("; ")
            ));
        }
    }
    let held = checks.assertions.iter().try_for_each(|check| check.run(&reader));
    held.map_err(|unmet| format!("in the restored database {unmet}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use walhub_common::sql;

    #[tokio::test]
    async fn what_does_not_hold_is_said_of_the_restored_database() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a b?c#d%.db");
        // Nothing at all is an empty database.
        std::fs::write(&path, b"").unwrap();
        let checked = |integrity: bool, assertions: &[&str]| {
            let assertions = assertions.iter().map(|text| text.parse().unwrap()).collect();
            let (path, checks) = (path.clone(), Checks { integrity, assertions });
            async move {
                let look = move |announce: Announce| run(&path, &checks, announce);
                sql::until(look, std::future::pending::<()>()).await.unwrap().0
            }
        };
        assert_eq!(checked(true, &["SELECT count(*) FROM sqlite_schema = 0", "SELECT 7 = 7"]).await, Ok(()));
        let error = checked(true, &["SELECT 7 = 7", "SELECT 7 = 8"]).await.unwrap_err();
        assert_eq!(error, "in the restored database the check \"SELECT 7\" gives 7, not 8");
        std::fs::write(&path, [7; 4096]).unwrap();
        let error = checked(true, &[]).await.unwrap_err();
        assert!(error.contains("integrity_check cannot be run on the restored database"), "{error}");
        assert_eq!(checked(false, &[]).await, Ok(()));
    }
}
