//! Answers as text: a table for people, CSV, or JSON. With several databases, each row says of which it is.

use super::fetch::State;
use crate::output::{self, Table};
use serde::Serialize;
use serde_json::{Value, json};
use std::fmt::Write;
use walhub_common::sql::{Answer, Cell};

/// Bytes of a blob that a table shows.
const SHOWN: usize = 16;

/// What came of one database.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Entry {
    /// Its rows.
    Done(Box<Done>),
    /// Why there are none.
    Failed { database: String, error: String },
}

/// Rows of one database, and which state they are of.
#[derive(Debug, Serialize)]
pub(super) struct Done {
    database: String,
    txid: u64,
    time: String,
    checksum: String,
    verdict: &'static str,
    bytes: u64,
    received_bytes: u64,
    seconds: f64,
    columns: Vec<String>,
    #[serde(serialize_with = "rows")]
    rows: Vec<Vec<Cell>>,
    truncated: bool,
}

impl Done {
    pub(super) fn new(database: String, state: State, answer: Answer, seconds: f64) -> Done {
        Done {
            database,
            txid: state.txid,
            time: state.time,
            checksum: state.checksum,
            verdict: state.verdict,
            bytes: state.bytes,
            received_bytes: state.received_bytes,
            seconds,
            columns: answer.columns,
            rows: answer.rows,
            truncated: answer.truncated,
        }
    }

    /// `agent/name`.
    pub(super) fn database(&self) -> &str {
        &self.database
    }

    /// One line about the state.
    pub(super) fn line(&self) -> String {
        format!(
            "{}: TXID {} of {}, checksum {} {}; {} of {} moved, {:.2} s",
            self.database,
            self.txid,
            self.time,
            self.checksum,
            self.verdict,
            output::bytes(self.received_bytes),
            output::bytes(self.bytes),
            self.seconds
        )
    }

    /// True when there are rows that are not here.
    pub(super) fn is_cut(&self) -> bool {
        self.truncated
    }

    /// Says when the answer does not fit under the columns of another.
    pub(super) fn misfit(&self, other: &Done) -> Option<String> {
        (self.columns != other.columns).then(|| {
            format!(
                "it has the columns {}, and {} has {}",
                self.columns.join(", "),
                other.database,
                other.columns.join(", ")
            )
        })
    }
}

/// All answers under one heading.
pub(super) fn table(answers: &[&Done], several: bool) -> Vec<String> {
    let Some(first) = answers.first() else { return Vec::new() };
    let all = || answers.iter().flat_map(|done| done.rows.iter().map(move |row| (done, row)));
    let numeric = |column: usize| {
        all().all(|(_, row)| matches!(row.get(column), Some(Cell::Integer(_) | Cell::Real(_) | Cell::Null)))
    };
    let headings = first.columns.iter().enumerate();
    let mut headings: Vec<String> =
        headings.map(|(at, name)| if numeric(at) { format!(">{name}") } else { name.clone() }).collect();
    if several {
        headings.insert(0, "DATABASE".to_owned());
    }
    let mut table = Table::new(&headings.iter().map(String::as_str).collect::<Vec<_>>());
    for (done, row) in all() {
        let database = several.then(|| done.database.clone());
        table.row(database.into_iter().chain(row.iter().map(shown)));
    }
    table.lines()
}

/// All answers as CSV: NULL is nothing, an empty text is `""`, a blob is hexadecimal.
pub(super) fn csv(answers: &[&Done], several: bool) -> String {
    let mut out = String::new();
    let Some(first) = answers.first() else { return out };
    let mut line = |fields: Vec<String>| {
        out.push_str(&fields.join(","));
        out.push_str("\r\n");
    };
    let heading = several.then(|| "database".to_owned()).into_iter();
    line(heading.chain(first.columns.iter().map(|name| quoted(name))).collect());
    for done in answers {
        for row in &done.rows {
            let database = several.then(|| done.database.clone()).into_iter();
            line(database.chain(row.iter().map(field)).collect());
        }
    }
    out
}

fn shown(cell: &Cell) -> String {
    match cell {
        Cell::Null => "NULL".to_owned(),
        Cell::Integer(number) => number.to_string(),
        Cell::Real(number) => format!("{number:?}"),
        Cell::Text(text) => text.clone(),
        Cell::Blob(bytes) if bytes.len() <= SHOWN => format!("x'{}'", hex(bytes)),
        Cell::Blob(bytes) => format!("x'{}…' ({} bytes)", hex(&bytes[..SHOWN]), bytes.len()),
    }
}

fn field(cell: &Cell) -> String {
    match cell {
        Cell::Null => String::new(),
        Cell::Blob(bytes) => hex(bytes),
        Cell::Text(text) => quoted(text),
        number => shown(number),
    }
}

fn quoted(text: &str) -> String {
    let plain = !text.is_empty() && !text.contains(['"', ',', '\n', '\r']);
    if plain { text.to_owned() } else { format!("\"{}\"", text.replace('"', "\"\"")) }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn value(cell: &Cell) -> Value {
    match cell {
        Cell::Null => Value::Null,
        Cell::Integer(number) => json!(number),
        // JSON knows no infinity.
        Cell::Real(number) if !number.is_finite() => json!(number.to_string()),
        Cell::Real(number) => json!(number),
        Cell::Text(text) => json!(text),
        Cell::Blob(bytes) => json!({ "hex": hex(bytes) }),
    }
}

#[expect(clippy::ptr_arg, reason = "serde gives a reference to the field")]
fn rows<S: serde::Serializer>(rows: &Vec<Vec<Cell>>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(rows.iter().map(|row| row.iter().map(value).collect::<Vec<_>>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(database: &str, rows: Vec<Vec<Cell>>) -> Done {
        let state = State {
            txid: 7,
            time: "2026-11-22T13:28:37Z".into(),
            checksum: "8000000000000000".into(),
            verdict: "verified",
            bytes: 8192,
            received_bytes: 16,
        };
        let columns = vec!["n".to_owned(), "a,b".to_owned()];
        Done::new(database.into(), state, Answer { columns, rows, truncated: false }, 0.5)
    }

    fn answers() -> [Done; 2] {
        [
            done(
                "a/x",
                vec![
                    vec![Cell::Integer(10), Cell::Text("say \"hi\"\n".into())],
                    vec![Cell::Real(2.0), Cell::Null],
                ],
            ),
            done(
                "b/x",
                vec![
                    vec![Cell::Null, Cell::Blob(vec![0xab; 20])],
                    vec![Cell::Integer(1), Cell::Text(String::new())],
                ],
            ),
        ]
    }

    #[test]
    fn people_see_one_table_with_the_database_of_each_row() {
        let [a, b] = answers();
        assert_eq!(
            table(&[&a, &b], true),
            [
                "DATABASE     n  a,b",
                "a/x         10  say \"hi\"",
                "a/x        2.0  NULL",
                "b/x       NULL  x'abababababababababababababababab…' (20 bytes)",
                "b/x          1  -",
            ]
        );
        assert_eq!(table(&[&a], false)[0], "  n  a,b");
        assert_eq!(
            a.line(),
            "a/x: TXID 7 of 2026-11-22T13:28:37Z, checksum 8000000000000000 verified; 16 B of 8.0 KiB moved, 0.50 s"
        );
    }

    #[test]
    fn programs_can_tell_null_empty_and_blobs_apart() {
        let [a, b] = answers();
        assert_eq!(
            csv(&[&a, &b], true),
            format!(
                "database,n,\"a,b\"\r\na/x,10,\"say \"\"hi\"\"\n\"\r\na/x,2.0,\r\nb/x,,{}\r\nb/x,1,\"\"\r\n",
                "ab".repeat(20)
            )
        );
        let json = serde_json::to_value(&b).unwrap();
        assert_eq!(json["rows"], json!([[null, { "hex": "ab".repeat(20) }], [1, ""]]));
        assert_eq!((&json["database"], &json["received_bytes"]), (&json!("b/x"), &json!(16)));
        assert!(csv(&[], true).is_empty() && table(&[], false).is_empty());
    }
}
