//! Death and failure at one exact instant, by patched file methods of one connection's own file objects.
//!
//! This file has the `unsafe` of the writer: SQLite offers these instants to a VFS only.
#![allow(unsafe_code)]

use rusqlite::{Connection, ffi};
use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

const SIGKILL: c_int = 9;
const WAL_FILE: c_int = 28; // SQLITE_FCNTL_JOURNAL_POINTER, missing in old bindings
const DATABASE_FILE: c_int = 7; // SQLITE_FCNTL_FILE_POINTER

unsafe extern "C" {
    fn getpid() -> c_int;
    fn kill(pid: c_int, signal: c_int) -> c_int;
}

static REAL_WRITE: OnceLock<WriteFn> = OnceLock::new();
static LAST_WRITE: AtomicI64 = AtomicI64::new(0);
static LINGER_US: AtomicU64 = AtomicU64::new(0);
static PAUSED: AtomicBool = AtomicBool::new(false);

type WriteFn = unsafe extern "C" fn(*mut ffi::sqlite3_file, *const c_void, c_int, i64) -> c_int;

/// SIGKILL to the own process: no destructor runs, the kernel alone lets go of the locks.
pub(crate) fn die() -> ! {
    // SAFETY: both calls take plain integers and touch no memory of ours.
    unsafe { kill(getpid(), SIGKILL) };
    unreachable!("SIGKILL is not answered")
}

/// The next sync of the WAL behind a frame kills the process, after `linger`: every frame of the transaction is in the
/// file, the wal-index does not know it.
pub(crate) fn die_in_wal_sync(db: &Connection, linger: Duration) -> bool {
    LINGER_US.store(linger.as_micros() as u64, Ordering::Relaxed);
    patch_wal(db, sync_and_die)
}

/// Syncs of the WAL behind a frame fail from now on.
pub(crate) fn fail_in_wal_sync(db: &Connection) -> bool {
    patch_wal(db, sync_fails)
}

/// The next commit kills the process between the two copies of the wal-index header.
pub(crate) fn die_between_headers(db: &Connection) -> bool {
    patch(db, DATABASE_FILE, |methods| methods.xShmBarrier = Some(die_if_torn))
}

/// The next checkpoint stops after it read the wal-index header and before it looks at anything else, says `paused`, and
/// goes on when stdin brings a line.
pub(crate) fn pause_in_checkpoint(db: &Connection) -> bool {
    patch(db, DATABASE_FILE, |methods| methods.xUnfetch = Some(unfetch))
}

fn patch_wal(db: &Connection, sync: unsafe extern "C" fn(*mut ffi::sqlite3_file, c_int) -> c_int) -> bool {
    patch(db, WAL_FILE, |methods| {
        if let Some(write) =
            methods.xWrite.filter(|write| *write as usize != note_write as *const () as usize)
        {
            let _ = REAL_WRITE.set(write);
        }
        methods.xWrite = Some(note_write);
        methods.xSync = Some(sync);
    })
}

/// False when that file is not open now (the database is not in WAL mode, say).
fn patch(db: &Connection, which: c_int, change: impl FnOnce(&mut ffi::sqlite3_io_methods)) -> bool {
    let mut file: *mut ffi::sqlite3_file = ptr::null_mut();
    // SAFETY: the connection is open and used by this thread alone; both file controls store one pointer. The file object
    // outlives this call, its methods are those of SQLite's unix VFS or a copy made here; the changed copy is leaked on
    // purpose, so it outlives the file object.
    unsafe {
        let code = ffi::sqlite3_file_control(db.handle(), c"main".as_ptr(), which, (&raw mut file).cast());
        if code != ffi::SQLITE_OK || file.is_null() || (*file).pMethods.is_null() {
            return false;
        }
        let mut methods = ptr::read((*file).pMethods);
        change(&mut methods);
        (*file).pMethods = Box::leak(Box::new(methods));
    }
    true
}

unsafe extern "C" fn note_write(
    file: *mut ffi::sqlite3_file,
    data: *const c_void,
    bytes: c_int,
    offset: i64,
) -> c_int {
    LAST_WRITE.store(offset, Ordering::Relaxed);
    let write = REAL_WRITE.get().expect("BUG: a patched write without the real one");
    // SAFETY: SQLite's own arguments for SQLite's own method of this file.
    unsafe { write(file, data, bytes, offset) }
}

/// A new log is synced once with nothing but its header: no commit hangs on that.
fn behind_a_frame() -> bool {
    LAST_WRITE.load(Ordering::Relaxed) > 0
}

unsafe extern "C" fn sync_and_die(_: *mut ffi::sqlite3_file, _: c_int) -> c_int {
    if !behind_a_frame() {
        return ffi::SQLITE_OK;
    }
    crate::say("fault commit-kill");
    std::thread::sleep(Duration::from_micros(LINGER_US.load(Ordering::Relaxed)));
    die()
}

unsafe extern "C" fn sync_fails(_: *mut ffi::sqlite3_file, _: c_int) -> c_int {
    if !behind_a_frame() {
        return ffi::SQLITE_OK;
    }
    crate::say("fault sync-error");
    ffi::SQLITE_IOERR_FSYNC
}

unsafe extern "C" fn die_if_torn(file: *mut ffi::sqlite3_file) {
    let mut region: *mut c_void = ptr::null_mut();
    // SAFETY: the barrier is called on an open file object with a wal-index; region 0 is 32 KiB long, and the method
    // table is the copy made by `patch`, of which only the barrier was changed.
    unsafe {
        let Some(map) = (*(*file).pMethods).xShmMap else { return };
        if map(file, 0, 32 * 1024, 0, &raw mut region) != ffi::SQLITE_OK || region.is_null() {
            return;
        }
        let words = region.cast::<u32>();
        if (0..12).any(|i| words.add(i).read_volatile() != words.add(i + 12).read_volatile()) {
            crate::say("fault torn-header");
            die();
        }
    }
}

unsafe extern "C" fn unfetch(_: *mut ffi::sqlite3_file, _: i64, page: *mut c_void) -> c_int {
    // Without a page it means "forget every mapping": between header and backfill of a checkpoint. (Nothing is mapped:
    // the shell turns memory-mapped reading off, so there is nothing to forget.)
    if page.is_null() && !PAUSED.swap(true, Ordering::Relaxed) {
        crate::say("paused");
        let mut line = String::new();
        let _ = std::io::stdin().read_line(&mut line);
    }
    ffi::SQLITE_OK
}
