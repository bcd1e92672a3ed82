//! SQLite below its SQL: whole images, and writers that die or fail at one exact instant.
#![allow(unsafe_code)] // these faults need SQLite's own file objects; the product has its one unsafe module elsewhere

use rusqlite::{Connection, ffi};
use std::ffi::{c_int, c_void};
use std::ptr;

/// The database as one read transaction sees it.
pub(crate) fn serialize(db: &Connection) -> Vec<u8> {
    let mut size = 0;
    // SAFETY: the connection is open; the memory SQLite returns is copied and freed.
    unsafe {
        let data = ffi::sqlite3_serialize(db.handle(), c"main".as_ptr(), &raw mut size, 0);
        assert!(!data.is_null(), "serialize failed");
        let image = std::slice::from_raw_parts(data, size as usize).to_vec();
        ffi::sqlite3_free(data.cast());
        image
    }
}

/// Replaces the whole content by that of another database.
pub(crate) fn copy_from(db: &Connection, source: &Connection) {
    let main = c"main".as_ptr();
    // SAFETY: both connections are open and idle; the backup object is finished before either closes.
    unsafe {
        let backup = ffi::sqlite3_backup_init(db.handle(), main, source.handle(), main);
        assert!(!backup.is_null(), "backup refused");
        assert_eq!(ffi::sqlite3_backup_step(backup, -1), ffi::SQLITE_DONE);
        assert_eq!(ffi::sqlite3_backup_finish(backup), ffi::SQLITE_OK);
    }
}

/// The next sync of the WAL, that of a COMMIT under synchronous=FULL, kills the process: the commit frame is in the file,
/// the wal-index does not know it.
pub(crate) fn die_in_wal_sync(db: &Connection) {
    patch(db, ffi::SQLITE_FCNTL_JOURNAL_POINTER, |methods| methods.xSync = Some(sync_and_die));
}

/// The next syncs of the WAL fail.
pub(crate) fn fail_in_wal_sync(db: &Connection) {
    patch(db, ffi::SQLITE_FCNTL_JOURNAL_POINTER, |methods| methods.xSync = Some(sync_fails));
}

/// The next commit kills the process between the two copies of the wal-index header.
pub(crate) fn die_between_headers(db: &Connection) {
    patch(db, ffi::SQLITE_FCNTL_FILE_POINTER, |methods| methods.xShmBarrier = Some(die_if_torn));
}

fn patch(db: &Connection, which: c_int, change: impl FnOnce(&mut ffi::sqlite3_io_methods)) {
    let mut file: *mut ffi::sqlite3_file = ptr::null_mut();
    // SAFETY: the file object stays open as long as the process, which keeps its connection; the changed method table is
    // leaked on purpose, so it outlives the file object.
    unsafe {
        let code = ffi::sqlite3_file_control(db.handle(), c"main".as_ptr(), which, (&raw mut file).cast());
        assert_eq!(code, ffi::SQLITE_OK);
        let mut methods = ptr::read((*file).pMethods);
        change(&mut methods);
        (*file).pMethods = Box::leak(Box::new(methods));
    }
}

unsafe extern "C" fn sync_and_die(_: *mut ffi::sqlite3_file, _: c_int) -> c_int {
    die()
}

unsafe extern "C" fn sync_fails(_: *mut ffi::sqlite3_file, _: c_int) -> c_int {
    ffi::SQLITE_IOERR_FSYNC
}

unsafe extern "C" fn die_if_torn(file: *mut ffi::sqlite3_file) {
    let mut region: *mut c_void = ptr::null_mut();
    // SAFETY: the barrier is called on an open file object with a wal-index; region 0 is 32 KiB long.
    unsafe {
        let map = (*(*file).pMethods).xShmMap.unwrap();
        if map(file, 0, 32 * 1024, 0, &raw mut region) != ffi::SQLITE_OK || region.is_null() {
            return;
        }
        let words = region.cast::<u32>();
        for i in 0..12 {
            if words.add(i).read_volatile() != words.add(i + 12).read_volatile() {
                die();
            }
        }
    }
}

/// The process ends on the spot: no destructor runs, and the kernel alone lets go of its locks.
fn die() -> ! {
    std::process::abort()
}
