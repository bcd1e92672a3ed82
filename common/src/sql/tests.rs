//! What checks mean, that nothing can be written, and that any path opens.

use super::*;
use proptest::prelude::*;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use tempfile::TempDir;

fn made(name: &str) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    let db = Connection::open(&path).unwrap();
    db.pragma_update(None, "journal_mode", "wal").unwrap();
    db.execute_batch("CREATE TABLE t(a, b); INSERT INTO t VALUES (1, 'x'), (2.5, NULL), (x'00ff', 'ü = 7')")
        .unwrap();
    (dir, path)
}

fn check(reader: &Reader, text: &str) -> Result<(), String> {
    text.parse::<Check>().unwrap().run(reader).map_err(|unmet| unmet.to_string())
}

#[test]
fn every_kind_of_value_comes_and_rows_are_counted() {
    let (_dir, path) = made("100%? #1.db");
    let reader = Reader::open(&path).unwrap();
    let answer = reader.ask("SELECT a, b AS \"the b\" FROM t ORDER BY rowid;", 10).unwrap();
    assert_eq!(answer.columns, ["a", "the b"]);
    assert_eq!(
        answer.rows,
        [
            [Cell::Integer(1), Cell::Text("x".into())],
            [Cell::Real(2.5), Cell::Null],
            [Cell::Blob(vec![0, 255]), Cell::Text("ü = 7".into())]
        ]
    );
    assert!(!answer.truncated);
    assert!(!reader.ask("SELECT * FROM t", 3).unwrap().truncated);
    let short = reader.ask("SELECT * FROM t", 2).unwrap();
    assert!(short.truncated && short.rows.len() == 2);
    for huge in [
        "SELECT zeroblob(100000000)",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i FROM n) SELECT zeroblob(1000000) FROM n",
    ] {
        assert!(matches!(reader.ask(huge, usize::MAX), Err(SqlError::Large)), "{huge}");
    }
    assert!(matches!(reader.first("SELECT zeroblob(100000000)"), Err(SqlError::Large)));
}

#[test]
fn nothing_is_written_and_nothing_appears() {
    let (dir, path) = made("app.db");
    let before = std::fs::read(&path).unwrap();
    let reader = Reader::open(&path).unwrap();
    let other = dir.path().join("other.db").display().to_string();
    for (sql, part) in [
        ("DELETE FROM t", "would write"),
        ("INSERT INTO t VALUES (1, 2) RETURNING a", "would write"),
        ("CREATE TEMP TABLE x(a)", "would write"),
        ("PRAGMA journal_mode = delete", "would write"),
        (&format!("VACUUM INTO '{other}'"), "would write"),
        (&format!("ATTACH '{other}' AS o"), "no rows"),
        ("PRAGMA query_only = off", "no rows"),
        ("BEGIN IMMEDIATE", "would write"),
        ("SELECT 1; DELETE FROM t", "one statement"),
        ("SELECT 1; nonsense", "nonsense"),
        ("-- nothing", "no rows"),
        ("SELECT * FROM missing", "missing"),
    ] {
        for refused in [reader.ask(sql, 10).map(drop), reader.first(sql).map(drop)] {
            assert!(refused.as_ref().is_err_and(|e| e.to_string().contains(part)), "{sql}: {refused:?}");
        }
    }
    drop(reader);
    assert_eq!(std::fs::read(&path).unwrap(), before);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing lies beside it");
}

#[test]
fn what_does_not_hold_is_named_with_what_was_found() {
    let (_dir, path) = made("app.db");
    let reader = Reader::open(&path).unwrap();
    for holds in [
        "SELECT count(*) FROM t = 3",
        "SELECT count(*) FROM t=3",
        "SELECT count(*) FROM t WHERE a = 1 = 1",
        "SELECT b FROM t WHERE a=1=x",
        "SELECT b = 'ü = 7' FROM t WHERE b > 'x' = 1",
        "SELECT a, b FROM t = 1",
        "SELECT a FROM t WHERE a > 1 AND b IS NULL = 2.5",
        "SELECT 30.0 = 30",
        "SELECT 30.0 = 30.0",
        "SELECT 30.0 = 3e1",
        "SELECT -9223372036854775808 = -9223372036854775808",
        "SELECT 9e999 = inf",
        "SELECT a FROM t WHERE typeof(a) = 'blob' = 00ff",
        "SELECT a FROM t WHERE typeof(a) = 'blob' = 00FF",
        "SELECT NULL = NULL",
        "SELECT 'NULL' = NULL",
        "PRAGMA integrity_check = ok",
        "PRAGMA user_version = 0",
    ] {
        assert_eq!(check(&reader, holds), Ok(()), "{holds}");
    }
    for (fails, words) in [
        ("SELECT count(*) FROM t = 2", "\"SELECT count(*) FROM t\" gives 3, not 2"),
        ("SELECT 30.0 = 31", "gives 30.0, not 31"),
        ("SELECT 30 = 30.0", "gives 30, not 30.0"),
        ("SELECT 2.5 = two", "gives 2.5, not two"),
        ("SELECT ' x' = x", "gives  x, not x"),
        ("SELECT 'X' = x", "gives X, not x"),
        ("SELECT NULL = null", "gives NULL, not null"),
        ("SELECT a FROM t WHERE a = 7 = 7", "gives no row, not 7"),
        ("SELECT a FROM t WHERE a = 7 = no row", "gives no row, not no row"),
        ("SELECT a FROM t WHERE a = 7 = NULL", "gives no row, not NULL"),
        ("SELECT * FROM nowhere = 1", "no such table: nowhere"),
        ("DELETE FROM t = 1", "would write"),
        ("DELETE FROM t RETURNING a = 1", "would write"),
        ("SELECT 1; SELECT 2 = 1", "one statement"),
        ("ATTACH 'x' AS y = 1", "no rows"),
    ] {
        let error = check(&reader, fails).unwrap_err();
        assert!(error.contains(words), "{fails}: {error}");
    }
    let long = check(&reader, "SELECT hex(zeroblob(1000000)) = 0").unwrap_err();
    assert!(long.len() < 500, "{} bytes", long.len());
    assert_eq!(check(&reader, "SELECT count(*) FROM t = 3"), Ok(()), "nothing was deleted");
}

#[test]
fn what_is_no_check_is_refused_before_it_is_asked() {
    for (text, words) in [
        ("", "form"),
        ("SELECT 1", "form"),
        ("= 3", "form"),
        ("  = 3", "form"),
        ("SELECT count(*) FROM t =", "form"),
        ("SELECT count(*) FROM t = ", "form"),
        ("SELECT x FROM t = aGVsbG8=", "form"),
        ("SELECT count(*) FROM t WHERE a >= 5", "comparison"),
        ("SELECT count(*) FROM t WHERE a <= 5", "comparison"),
        ("SELECT count(*) FROM t WHERE a != 5", "comparison"),
        ("SELECT count(*) FROM t WHERE a == 5", "comparison"),
    ] {
        let error = text.parse::<Check>().unwrap_err().to_string();
        assert!(error.contains(words), "{text:?}: {error}");
    }
}

#[test]
fn what_is_damaged_is_found() {
    let (_dir, path) = made("app.db");
    assert_eq!(Reader::open(&path).unwrap().integrity(5).unwrap(), Vec::<String>::new());
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[4096..4200].fill(0xee);
    std::fs::write(&path, bytes).unwrap();
    let reader = Reader::open(&path).unwrap();
    assert!(reader.integrity(5).map_or(true, |faults| !faults.is_empty()));
    assert_eq!(check(&reader, "SELECT 1 = 1"), Ok(()));
    std::fs::write(&path, [7; 8192]).unwrap();
    assert!(Reader::open(&path).and_then(|reader| reader.integrity(5)).is_err());
    assert!(Reader::open(&path.with_extension("none")).is_err());
}

#[test]
fn any_path_opens_also_one_that_is_no_utf8() {
    let (dir, path) = made("app.db");
    for name in
        [&b"100%? #1;&=.db"[..], b"%00%2e.db", b"n\xc3\xbcr.db", b"\xff\xfe\x80.db", b"a b\n\t'\"\\:@+,.db"]
    {
        let other = dir.path().join(OsString::from_vec(name.to_vec()));
        std::fs::copy(&path, &other).unwrap();
        let reader = Reader::open(&other).unwrap_or_else(|error| panic!("{other:?}: {error}"));
        assert_eq!(check(&reader, "SELECT count(*) FROM t = 3"), Ok(()), "{other:?}");
    }
    let doubled = PathBuf::from(format!("/{}", path.display()));
    assert_eq!(check(&Reader::open(&doubled).unwrap(), "SELECT count(*) FROM t = 3"), Ok(()));
    let zero = dir.path().join(OsString::from_vec(b"app.db\0.other".to_vec()));
    assert!(matches!(Reader::open(&zero), Err(SqlError::Path)));
}

const ENDLESS: &str =
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";

#[tokio::test]
async fn what_takes_too_long_is_ended_and_what_does_not_is_answered() {
    let (_dir, path) = made("app.db");
    let asked = path.clone();
    let work = move |announce: Announce| {
        let reader = Reader::open(&asked).unwrap();
        announce.reader(&reader);
        // The word that ends the first must end the second, too.
        (0..2).for_each(|_| assert!(reader.first(ENDLESS).unwrap_err().to_string().contains("interrupted")));
    };
    assert_eq!(until(work, std::future::ready("late")).await.unwrap(), ((), Some("late")));
    let asked = path.clone();
    let work = move |announce: Announce| {
        let reader = Reader::open(&asked).unwrap();
        announce.reader(&reader);
        reader.first("SELECT count(*) FROM t").unwrap()
    };
    let done = until(work, std::future::pending::<()>()).await.unwrap();
    assert_eq!(done, (Some(Cell::Integer(3)), None));
    let quiet = until(|_| 7, std::future::pending::<()>()).await.unwrap();
    assert_eq!(quiet, (7, None));
}

proptest! {
    /// What is written is read as it was meant: the statement keeps its `=`, the value has none.
    #[test]
    fn checks_say_what_they_were_made_of(sql in "[ -~]{0,30}[A-Za-z)']", value in "[!-<>-~]([ -<>-~]{0,10}[!-<>-~])?") {
        let made: Check = format!("{sql} = {value}").parse().unwrap();
        prop_assert_eq!(&made.sql, sql.trim());
        prop_assert_eq!(&made.value, &value);
        prop_assert_eq!(made.to_string().parse::<Check>().unwrap(), made);
    }

    #[test]
    fn no_text_upsets_it(text in "\\PC{0,60}") {
        if let Ok(made) = text.parse::<Check>() {
            prop_assert!(!made.sql.is_empty() && !made.value.is_empty() && !made.value.contains('='));
        }
    }

    /// A number is found again in the form in which an error shows it.
    #[test]
    fn numbers_are_found_again(integer in any::<i64>(), real in any::<f64>().prop_filter("SQLite has none", |real| !real.is_nan())) {
        for cell in [Cell::Integer(integer), Cell::Real(real)] {
            let check = Check { sql: "x".into(), value: cell.to_string() };
            prop_assert!(check.is(&cell), "{cell}");
        }
    }
}
