//! Questions to a restored database: a file that nobody writes, opened so that nothing can change it, asked one statement at a
//! time. The one place where walhub reads a database as SQLite does, beside the agent's capture.
//!
//! - [`Reader`]: the file, and what it answers; [`Cell`] and [`Answer`]: values.
//! - [`Check`]: "SQL = value", and what it means.
//! - [`until`]: asks on a thread, and ends what takes too long.
//!
//! Invariants
//! - The file is opened read-only and as one that never changes: no lock, no log, nothing appears beside it, and its name may go to
//!   another file meanwhile. The connection refuses to write, and a statement that could write anything, anywhere, is refused
//!   before it runs. What the database's own schema calls is not trusted.
//! - Any path is good, also one that is no UTF-8: every byte that means something in a URI is escaped.
//! - An answer is at most [`MAX_BYTES`], whatever the statement makes.
//!
//! Non-goals: a database that somebody has open. It would be read without a lock; in an agent nothing but the capture may open one.

mod check;
#[cfg(test)]
mod tests;
mod value;

pub use check::{Check, NoCheck, Unmet};
pub use value::{Answer, Cell};

/// Ends the statement that runs on a [`Reader`], from elsewhere. One that begins later is not concerned.
pub use rusqlite::InterruptHandle as Interrupt;

use rusqlite::{Connection, OpenFlags, Row};
use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;
use tokio::sync::oneshot;

/// Bytes of one answer: beyond it the statement asks for too much.
pub const MAX_BYTES: usize = 64 << 20;

/// A statement that is ended is told so again and again: one word may come before it has begun.
const INTERRUPT_INTERVAL: Duration = Duration::from_millis(20);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum SqlError {
    /// SQLite's word about the file or the statement.
    #[error("{0}")]
    Sqlite(#[from] rusqlite::Error),
    /// The path of the file.
    #[error("a path with a zero byte names no file")]
    Path,
    /// Something follows the first statement.
    #[error("one statement at a time")]
    Several,
    /// It does more than read.
    #[error("this statement would write, and what was restored can only be read")]
    Writes,
    /// It is none that answers.
    #[error("this statement gives no rows: write a SELECT")]
    Mute,
    /// More than [`MAX_BYTES`].
    #[error("the answer is larger than {} MiB: ask for less", MAX_BYTES >> 20)]
    Large,
}

/// A restored database, open. Everything blocks.
#[derive(Debug)]
pub struct Reader {
    connection: Connection,
}

impl Reader {
    /// Opens the file, which keeps its content while this is alive, also when its name goes to another.
    pub fn open(path: &Path) -> Result<Reader, SqlError> {
        let flags =
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(uri(path)?, flags)?;
        connection.pragma_update(None, "query_only", true)?;
        connection.pragma_update(None, "trusted_schema", false)?;
        Ok(Reader { connection })
    }

    /// For whoever may want to end a statement.
    pub fn interrupt(&self) -> Interrupt {
        self.connection.get_interrupt_handle()
    }

    /// What one statement gives, at most `max_rows` of it.
    pub fn ask(&self, sql: &str, max_rows: usize) -> Result<Answer, SqlError> {
        let (mut rows, mut bytes, mut truncated) = (Vec::new(), 0, false);
        let columns = self.each(sql, |row, columns| {
            if rows.len() == max_rows {
                truncated = true;
                return Ok(false);
            }
            let cells = (0..columns).map(|column| cell(row, column, &mut bytes));
            rows.push(cells.collect::<Result<Vec<_>, _>>()?);
            Ok(true)
        })?;
        Ok(Answer { columns, rows, truncated })
    }

    /// The first column of the first row of one statement; `None` when it gives no row.
    pub fn first(&self, sql: &str) -> Result<Option<Cell>, SqlError> {
        let mut first = None;
        self.each(sql, |row, _| {
            first = Some(cell(row, 0, &mut 0)?);
            Ok(false)
        })?;
        Ok(first)
    }

    /// What SQLite's own check finds wrong, at most `most` faults; nothing when the database is sound.
    pub fn integrity(&self, most: u32) -> Result<Vec<String>, SqlError> {
        let said = self.ask(&format!("PRAGMA integrity_check({most})"), most.max(1) as usize)?;
        let said: Vec<String> = said.rows.iter().flatten().map(Cell::to_string).collect();
        Ok(if said == ["ok"] { Vec::new() } else { said })
    }

    /// Gives the rows of one statement that only reads, until `take` has enough. The names of its columns.
    fn each(
        &self,
        sql: &str,
        mut take: impl FnMut(&Row<'_>, usize) -> Result<bool, SqlError>,
    ) -> Result<Vec<String>, SqlError> {
        let mut statement = match self.connection.prepare(sql) {
            Err(rusqlite::Error::MultipleStatement) => return Err(SqlError::Several),
            prepared => prepared?,
        };
        if !statement.readonly() {
            return Err(SqlError::Writes);
        }
        let columns: Vec<String> = statement.column_names().map(str::to_owned).collect();
        if columns.is_empty() {
            return Err(SqlError::Mute);
        }
        let mut rows = statement.raw_query();
        while let Some(row) = rows.next()? {
            if !take(row, columns.len())? {
                break;
            }
        }
        Ok(columns)
    }
}

/// A cell, which counts towards the `bytes` of its answer.
fn cell(row: &Row<'_>, column: usize, bytes: &mut usize) -> Result<Cell, SqlError> {
    let value = row.get_ref(column)?;
    *bytes += value::bytes(&value);
    if *bytes > MAX_BYTES { Err(SqlError::Large) } else { Ok(value.into()) }
}

/// The path as a URI that says that the file does not change.
fn uri(path: &Path) -> Result<String, SqlError> {
    // With an authority, an empty one, a path may begin with two slashes.
    let mut uri = if path.is_absolute() { "file://" } else { "file:" }.to_owned();
    for &byte in path.as_os_str().as_bytes() {
        match byte {
            0 => return Err(SqlError::Path),
            b'/' | b'.' | b'-' | b'_' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => uri.push(byte.into()),
            byte => write!(uri, "%{byte:02x}").expect("BUG: text grows"),
        }
    }
    uri.push_str("?immutable=1");
    Ok(uri)
}

/// Lets `work` ask on a thread of its own; it announces its reader, if it opens one. When `over` ends first, statements are ended until
/// `work` has returned, and what `over` gave comes beside what `work` made of that. An error: the thread panicked.
pub async fn until<T: Send + 'static, U>(
    work: impl FnOnce(Announce) -> T + Send + 'static,
    over: impl Future<Output = U>,
) -> Result<(T, Option<U>), tokio::task::JoinError> {
    let (announce, mut announced) = oneshot::channel();
    let mut running = tokio::task::spawn_blocking(move || work(Announce(announce)));
    let why = tokio::select! {
        biased;
        done = &mut running => return done.map(|done| (done, None)),
        why = over => why,
    };
    let handle: Option<Interrupt> = tokio::select! {
        biased;
        handle = &mut announced => handle.ok(),
        done = &mut running => return done.map(|done| (done, Some(why))),
    };
    let mut interval = tokio::time::interval(INTERRUPT_INTERVAL);
    loop {
        tokio::select! {
            done = &mut running => return done.map(|done| (done, Some(why))),
            _ = interval.tick() => handle.iter().for_each(Interrupt::interrupt),
        }
    }
}

/// See [`until`].
pub struct Announce(oneshot::Sender<Interrupt>);

impl Announce {
    /// What is asked of this reader can be ended.
    pub fn reader(self, reader: &Reader) {
        // Nobody listens when nothing is ended any more.
        let _ = self.0.send(reader.interrupt());
    }
}
