//! An application of its own process, writing a ledger into a SQLite database; with faults at the worst instants.
//!
//! ```text
//! walhub-test-writer DB [--commits N] [--rate PER_SECOND] [--sync off|normal|full] [--life N] [--note BYTES]
//!                       [--autocheckpoint FRAMES] [--churn] [--rewrite BYTES] [--kill-in-commit N | --fail-in-commit N]
//! ```
//! `--rewrite BYTES` replaces one of a few rows with each commit, by bytes that cannot be compressed: much to copy, and a
//! database that stays small.
//! Prints `acked SEQ` after each commit that SQLite reported as done, and `failed SEQ` for one it refused. Ends after
//! N commits, or when its stdin ends, between two transactions. `--kill-in-commit N` kills the process with SIGKILL
//! inside the fsync of the WAL during its N-th commit, when every frame is written and the commit is not yet visible;
//! `--fail-in-commit N` makes that fsync fail instead, and goes on.
//!
//! This is the one file of the tests with `unsafe`: it patches the file methods of SQLite's WAL handle.
#![allow(unsafe_code)]

use rusqlite::{Connection, ffi};
use std::io::{Read, Write};
use std::os::raw::{c_int, c_void};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use walhub_tests::ledger;

/// Rows of `--rewrite`.
const REWRITTEN: u64 = 64;

struct Arguments {
    database: String,
    commits: u64,
    rate: f64,
    sync: String,
    life: u64,
    note: usize,
    autocheckpoint: i64,
    churn: bool,
    rewrite: i64,
    kill_in: u64,
    fail_in: u64,
}

fn arguments() -> Arguments {
    let mut given = std::env::args().skip(1);
    let mut parsed = Arguments {
        database: given.next().expect("usage: walhub-test-writer DB [options]"),
        commits: u64::MAX,
        rate: 0.0,
        sync: "full".to_owned(),
        life: 1,
        note: 100,
        autocheckpoint: 1000,
        churn: false,
        rewrite: 0,
        kill_in: 0,
        fail_in: 0,
    };
    while let Some(option) = given.next() {
        let mut number = || {
            let text = given.next().unwrap_or_else(|| panic!("{option} needs a value"));
            text.parse::<f64>().unwrap_or_else(|_| panic!("{option} {text}: not a number"))
        };
        match option.as_str() {
            "--commits" => parsed.commits = number() as u64,
            "--rate" => parsed.rate = number(),
            "--life" => parsed.life = number() as u64,
            "--note" => parsed.note = number() as usize,
            "--autocheckpoint" => parsed.autocheckpoint = number() as i64,
            "--rewrite" => parsed.rewrite = number() as i64,
            "--kill-in-commit" => parsed.kill_in = number() as u64,
            "--fail-in-commit" => parsed.fail_in = number() as u64,
            "--churn" => parsed.churn = true,
            "--sync" => parsed.sync = given.next().expect("--sync needs a value"),
            other => panic!("unknown option {other}"),
        }
    }
    parsed
}

fn main() -> rusqlite::Result<()> {
    let arguments = arguments();
    let mut app = Connection::open(&arguments.database)?;
    app.busy_timeout(Duration::from_secs(60))?;
    ledger::create(&mut app)?;
    app.pragma_update(None, "synchronous", &arguments.sync)?;
    app.pragma_update(None, "wal_autocheckpoint", arguments.autocheckpoint)?;
    app.execute_batch("CREATE TABLE IF NOT EXISTS churn(id INTEGER PRIMARY KEY, body BLOB)")?;
    app.execute_batch("CREATE TABLE IF NOT EXISTS rewritten(id INTEGER PRIMARY KEY, body BLOB)")?;

    let stopped = stop_with_stdin();
    let mut seq = ledger::last_seq(&app)?;
    let mut out = std::io::stdout();
    let started = Instant::now();
    for commit in 1..=arguments.commits {
        if stopped.load(Ordering::Relaxed) {
            break;
        }
        if arguments.rate > 0.0 {
            let due = started + Duration::from_secs_f64((commit - 1) as f64 / arguments.rate);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        let tx = app.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        ledger::transfer(&tx, seq + 1, arguments.life, arguments.note)?;
        if arguments.churn {
            churn(&tx, seq)?;
        }
        if arguments.rewrite > 0 {
            let row = i64::try_from(seq % REWRITTEN).expect("few rows");
            let bytes = arguments.rewrite;
            tx.execute("INSERT OR REPLACE INTO rewritten VALUES (?1, randomblob(?2))", [row, bytes])?;
        }
        if commit == arguments.kill_in || commit == arguments.fail_in {
            fault::arm(&tx, if commit == arguments.kill_in { fault::KILL } else { fault::FAIL });
        }
        // The line leaves in one write, right after SQLite's answer: whoever reads it knows what was promised.
        match tx.commit() {
            Ok(()) => {
                seq += 1;
                writeln!(out, "acked {seq}").expect("stdout");
            }
            Err(error) if commit == arguments.fail_in => {
                writeln!(out, "failed {} {error}", seq + 1).expect("stdout");
            }
            Err(error) => return Err(error),
        }
        out.flush().expect("stdout");
    }
    Ok(())
}

/// Pages of all fates: overflow chains, free pages, a file that grows and, with `incremental_vacuum`, shrinks.
fn churn(tx: &rusqlite::Transaction<'_>, seq: u64) -> rusqlite::Result<()> {
    let dice = (ledger::mix(seq) >> 1) as i64;
    match dice % 8 {
        0..=3 => tx.execute("INSERT INTO churn(body) VALUES (zeroblob(?1))", [(dice >> 8) % 20_000])?,
        4 => tx.execute("DELETE FROM churn WHERE id % 3 = ?1", [(dice >> 8) % 3])?,
        5 => tx.execute("UPDATE churn SET body = randomblob(length(body)) WHERE id % 5 = 0", [])?,
        6 => tx.execute("DELETE FROM churn WHERE id < (SELECT max(id) - 200 FROM churn)", [])?,
        _ => tx.execute("INSERT INTO churn(body) VALUES (randomblob(?1))", [(dice >> 8) % 60_000])?,
    };
    Ok(())
}

fn stop_with_stdin() -> Arc<AtomicBool> {
    let stopped = Arc::new(AtomicBool::new(false));
    let flag = stopped.clone();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        flag.store(true, Ordering::Relaxed);
    });
    stopped
}

/// Faults inside the fsync of the WAL.
mod fault {
    use super::*;

    /// SIGKILL to the own process.
    pub(crate) const KILL: u8 = 1;
    /// An I/O error, once.
    pub(crate) const FAIL: u8 = 2;

    static ORIGINAL: OnceLock<ffi::sqlite3_io_methods> = OnceLock::new();
    static PATCHED: OnceLock<ffi::sqlite3_io_methods> = OnceLock::new();
    static ARMED: AtomicU8 = AtomicU8::new(0);
    static LAST_OFFSET: AtomicI64 = AtomicI64::new(0);

    /// The next fsync of the WAL that follows a frame (not the one of a new WAL header) does `what`.
    pub(crate) fn arm(connection: &Connection, what: u8) {
        let mut file: *mut ffi::sqlite3_file = std::ptr::null_mut();
        // SAFETY: the connection is open and used by this thread only; JOURNAL_POINTER stores one pointer into `file`,
        // and in WAL mode, inside a transaction, that is the open WAL file, which lives as long as the connection.
        let code = unsafe {
            ffi::sqlite3_file_control(
                connection.handle(),
                c"main".as_ptr(),
                ffi::SQLITE_FCNTL_JOURNAL_POINTER,
                (&raw mut file).cast::<c_void>(),
            )
        };
        assert!(code == ffi::SQLITE_OK && !file.is_null(), "no WAL file handle");
        // SAFETY: `file` is an open file, so its methods are set and point to a table that lives for the whole process;
        // reading a copy and storing a pointer to another table of static life, of the same version, is what VFS shims do.
        unsafe {
            let original = *ORIGINAL.get_or_init(|| *(*file).pMethods);
            (*file).pMethods = PATCHED.get_or_init(|| {
                let mut methods = original;
                methods.xSync = Some(sync);
                methods.xWrite = Some(write);
                methods
            });
        }
        ARMED.store(what, Ordering::SeqCst);
    }

    fn original() -> &'static ffi::sqlite3_io_methods {
        ORIGINAL.get().expect("BUG: patched methods run without the original ones")
    }

    unsafe extern "C" fn write(
        file: *mut ffi::sqlite3_file,
        data: *const c_void,
        bytes: c_int,
        offset: ffi::sqlite3_int64,
    ) -> c_int {
        LAST_OFFSET.store(offset, Ordering::SeqCst);
        let write = original().xWrite.expect("every file can be written");
        // SAFETY: SQLite's own arguments go to SQLite's own method of this file, unchanged.
        unsafe { write(file, data, bytes, offset) }
    }

    unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, flags: c_int) -> c_int {
        let frames_written = LAST_OFFSET.load(Ordering::SeqCst) > 0;
        match ARMED.load(Ordering::SeqCst) {
            KILL if frames_written => {
                // SAFETY: signals this very process; nothing of it runs on.
                unsafe { kill(std::process::id() as c_int, 9) };
            }
            FAIL if frames_written => {
                ARMED.store(0, Ordering::SeqCst);
                return ffi::SQLITE_IOERR_FSYNC;
            }
            _ => {}
        }
        let sync = original().xSync.expect("every file can be synced");
        // SAFETY: as in `write`.
        unsafe { sync(file, flags) }
    }

    unsafe extern "C" {
        fn kill(pid: c_int, signal: c_int) -> c_int;
    }
}
