//! A connection that does what it is told, for the deterministic tests.
//!
//! Lines in: `sql TEXT`, `query TEXT` (first column of the first row), `pause-in-checkpoint`. Each gets one line back:
//! `ok VALUE` or `err MESSAGE`. While a checkpoint is paused the line is `paused`, and the next line in lets it go on.

use crate::{faults, say};
use rusqlite::Connection;
use rusqlite::types::Value;
use std::time::Duration;

pub(crate) fn serve(database: &str) {
    let db = Connection::open(database).expect("open");
    db.busy_timeout(Duration::from_secs(2)).expect("busy timeout");
    let mut line = String::new();
    loop {
        line.clear();
        // Not locked for longer than a line: a paused checkpoint reads from here as well.
        if std::io::stdin().read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        let (command, rest) = line.trim_end().split_once(' ').unwrap_or_else(|| (line.trim_end(), ""));
        let answer = match command {
            "sql" => db.execute_batch(rest).map(|()| String::new()),
            "query" => db.query_row(rest, [], |row| row.get::<_, Value>(0)).map(|value| match value {
                Value::Integer(n) => n.to_string(),
                Value::Text(text) => text,
                other => format!("{other:?}"),
            }),
            "pause-in-checkpoint" => {
                assert!(faults::pause_in_checkpoint(&db), "no database file");
                Ok(String::new())
            }
            other => panic!("unknown command {other}"),
        };
        match answer {
            Ok(value) => say(&format!("ok {value}")),
            Err(error) => say(&format!("err {error}")),
        }
    }
}
