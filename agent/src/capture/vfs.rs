//! The handles of one database: SQLite's own file objects, its wal-index in shared memory and its locks.
//!
//! This is the only module of walhub with `unsafe`, and long because it is. Everything it offers is safe to call in any order.
//!
//! Two connections exist per database: **K** for as long as [`Files`] lives, **R** only while a read mark is needed (and a
//! third for one look at the schema, or for one write transaction). All reading goes through the `xRead` of K's file objects, because a raw descriptor of
//! the database or of `-shm` opened and closed in this process would drop every POSIX lock SQLite holds on it
//! (`fcntl` locks belong to process and inode, not to the descriptor).
//!
//! The file objects of K and R get a copy of their method table in which `xShmLock` is ours: while this process owns the
//! checkpoint lock or the writer lock (taken through K's file object, outside of SQLite's own bookkeeping), SQLite's
//! requests for it by K and R are answered here, so that a checkpoint on K never lets go of the lock.
//!
//! Invariants
//! - SHARED on the database is held as long as [`Files`] lives; no last-close checkpoint, no change of journal mode.
//! - The method tables outlive the connections that point at them and are taken out before a connection closes.
//! - The mapped wal-index is only read, and only by volatile loads.
//!
//! Non-goals: no policy. When to lock, read or checkpoint is decided by the modules above.

#![allow(unsafe_code)]

use super::error::SqliteError;
use super::header::{RawHeader, WAL_INDEX_WORDS};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, ffi};
use rustix::mm::Advice;
use std::ffi::{CStr, c_int, c_void};
use std::path::{Path, PathBuf};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU8, Ordering, fence};
use std::sync::{Arc, Once};
use std::time::Duration;

/// The first SQLite whose checkpointer is free of the WAL-reset bug.
const MIN_SQLITE: i32 = 3_051_003;
/// Slots among the eight locks of the wal-index.
const WRITE_SLOT: c_int = 0;
const CHECKPOINT_SLOT: c_int = 1;
/// The first slot that this process never takes by itself.
const AFTER_CHECKPOINT: c_int = CHECKPOINT_SLOT + 1;
/// Bytes of one region of the wal-index.
const REGION_BYTES: c_int = 32 * 1024;
const MAIN: &CStr = c"main";

type Result<T> = std::result::Result<T, SqliteError>;

fn check(action: &'static str, code: c_int) -> Result<()> {
    if code == ffi::SQLITE_OK { Ok(()) } else { Err(SqliteError::new(action, code)) }
}

/// A method table with our `xShmLock`. SQLite sees only `methods`, which must therefore come first.
#[repr(C)]
struct Patched {
    methods: ffi::sqlite3_io_methods,
    original: *const ffi::sqlite3_io_methods,
    /// One bit per slot that K's file object holds on behalf of this process.
    owned: Arc<AtomicU8>,
}

/// `xShmLock` of K and R.
///
/// SAFETY (of the callback): SQLite calls it with a file object whose `pMethods` is the `Patched` put there by
/// [`Link::patch`]; that box is freed only after the pointer was taken out again.
unsafe extern "C" fn shm_lock(
    file: *mut ffi::sqlite3_file,
    offset: c_int,
    count: c_int,
    flags: c_int,
) -> c_int {
    // SAFETY: see above; `methods` is the first field of a `repr(C)` struct, so the two pointers are the same.
    let patched = unsafe { &*(*file).pMethods.cast::<Patched>() };
    // SAFETY: the original table is SQLite's static one.
    let Some(original) = (unsafe { (*patched.original).xShmLock }) else {
        return ffi::SQLITE_IOERR_SHMLOCK;
    };
    let exclusive = flags & ffi::SQLITE_SHM_EXCLUSIVE != 0;
    if exclusive && owns(&patched.owned, offset) {
        if count == 1 {
            return ffi::SQLITE_OK;
        }
        // Recovery asks for checkpoint and recover slot together; the first is ours already.
        // SAFETY: a narrower request of the same kind on the same file object.
        return unsafe { original(file, offset + 1, count - 1, flags) };
    }
    // SAFETY: SQLite's own call, passed on unchanged.
    unsafe { original(file, offset, count, flags) }
}

/// `xWrite` of K and R: a checkpoint that copies pages gets on.
///
/// SAFETY (of the callback): as for [`shm_lock`].
unsafe extern "C" fn write(
    file: *mut ffi::sqlite3_file,
    data: *const c_void,
    amount: c_int,
    offset: ffi::sqlite3_int64,
) -> c_int {
    crate::watchdog::beat();
    // SAFETY: SQLite's own call, passed on unchanged; the original table is SQLite's static one.
    unsafe {
        let patched = &*(*file).pMethods.cast::<Patched>();
        match (*patched.original).xWrite {
            Some(original) => original(file, data, amount, offset),
            None => ffi::SQLITE_IOERR_WRITE,
        }
    }
}

/// True for the slots that this process holds by itself, outside of SQLite's own bookkeeping.
fn owns(owned: &AtomicU8, slot: c_int) -> bool {
    (WRITE_SLOT..AFTER_CHECKPOINT).contains(&slot) && owned.load(Ordering::Relaxed) & (1 << slot) != 0
}

/// A connection whose database file object carries our method table.
struct Link {
    /// `None` only during drop.
    connection: Option<Connection>,
    file: NonNull<ffi::sqlite3_file>,
    patched: Box<Patched>,
}

impl Link {
    fn open(path: &Path, owned: &Arc<AtomicU8>) -> Result<Link> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let sql = |action| move |e: rusqlite::Error| SqliteError::from_rusqlite(action, &e);
        let connection = Connection::open_with_flags(path, flags).map_err(sql("open the database"))?;
        connection.busy_timeout(Duration::ZERO).map_err(sql("configure the connection"))?;
        connection
            .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
            .map_err(sql("configure the connection"))?;
        // SAFETY: the handle is open and used by this thread alone; no statement was prepared, so lookaside is unused.
        unsafe {
            let db = connection.handle();
            check(
                "turn lookaside off",
                ffi::sqlite3_db_config(
                    db,
                    ffi::SQLITE_DBCONFIG_LOOKASIDE,
                    ptr::null_mut::<c_void>(),
                    0 as c_int,
                    0 as c_int,
                ),
            )?;
            ffi::sqlite3_wal_autocheckpoint(db, 0);
        }
        let file = file_pointer(&connection, ffi::SQLITE_FCNTL_FILE_POINTER)?;
        Ok(Self::patch(connection, file, owned.clone()))
    }

    fn patch(connection: Connection, file: NonNull<ffi::sqlite3_file>, owned: Arc<AtomicU8>) -> Link {
        // SAFETY: the file object is open, so its method table is set and static; the table is plain data. Our copy
        // lives in a box that `Link` owns, and `Link::drop` puts the original back before the box goes away.
        unsafe {
            let original = (*file.as_ptr()).pMethods;
            let mut methods = ptr::read(original);
            methods.xShmLock = Some(shm_lock);
            methods.xWrite = Some(write);
            let patched = Box::new(Patched { methods, original, owned });
            (*file.as_ptr()).pMethods = (&raw const *patched).cast();
            Link { connection: Some(connection), file, patched }
        }
    }

    fn connection(&self) -> &Connection {
        self.connection.as_ref().expect("BUG: used after drop")
    }

    /// Runs SQL that needs no schema.
    fn run(&self, action: &'static str, sql: &str) -> Result<()> {
        self.connection().execute_batch(sql).map_err(|e| SqliteError::from_rusqlite(action, &e))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // SAFETY: the file object lives until the connection closes, which happens right after.
        unsafe { (*self.file.as_ptr()).pMethods = self.patched.original };
        // Closing cannot fail: every statement was finalized by `execute_batch`.
        drop(self.connection.take());
    }
}

fn file_pointer(connection: &Connection, which: c_int) -> Result<NonNull<ffi::sqlite3_file>> {
    let mut file: *mut ffi::sqlite3_file = ptr::null_mut();
    // SAFETY: both file controls store a pointer to a file object of the open connection into `file`.
    let code = unsafe {
        ffi::sqlite3_file_control(connection.handle(), MAIN.as_ptr(), which, (&raw mut file).cast())
    };
    check("find the file object", code)?;
    NonNull::new(file).ok_or_else(|| SqliteError::new("find the file object", ffi::SQLITE_MISUSE))
}

fn holds_shared(connection: &Connection) -> Result<bool> {
    let state = file_control(connection, "ask for the lock state", ffi::SQLITE_FCNTL_LOCKSTATE)?;
    Ok(state >= ffi::SQLITE_LOCK_SHARED)
}

fn file_control(connection: &Connection, action: &'static str, which: c_int) -> Result<c_int> {
    let mut out: c_int = 0;
    // SAFETY: the connection is open; both file controls used here store one int.
    let code = unsafe {
        let db = connection.handle();
        ffi::sqlite3_file_control(db, MAIN.as_ptr(), which, (&raw mut out).cast())
    };
    check(action, code).map(|()| out)
}

/// Reads from a file object; what lies beyond the end of the file reads as zeros. `false`: it did.
fn read(file: NonNull<ffi::sqlite3_file>, action: &'static str, offset: u64, out: &mut [u8]) -> Result<bool> {
    let too_far = || SqliteError::new(action, ffi::SQLITE_TOOBIG);
    let offset = i64::try_from(offset).map_err(|_| too_far())?;
    let amount = c_int::try_from(out.len()).map_err(|_| too_far())?;
    crate::watchdog::beat();
    // SAFETY: the file object belongs to K, which is open while `Files` lives; `out` is writable for `amount` bytes.
    let code = unsafe {
        let methods = (*file.as_ptr()).pMethods;
        if methods.is_null() {
            return Err(SqliteError::new(action, ffi::SQLITE_CANTOPEN));
        }
        let read = (*methods).xRead.expect("BUG: a file object without xRead");
        read(file.as_ptr(), out.as_mut_ptr().cast(), amount, offset)
    };
    match code {
        ffi::SQLITE_OK => Ok(true),
        ffi::SQLITE_IOERR_SHORT_READ => Ok(false),
        code => Err(SqliteError::new(action, code)),
    }
}

/// By default every connection allocates room for twenty pages at once; ours read one, and there may be thousands.
fn be_frugal() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: refused without effect if SQLite is in use already; the arguments are those of SQLITE_CONFIG_PAGECACHE.
        unsafe {
            let none = ptr::null_mut::<c_void>();
            ffi::sqlite3_config(ffi::SQLITE_CONFIG_PAGECACHE, none, 0 as c_int, 0 as c_int);
        }
    });
}

/// What a look at the file before any lock says: the first 100 bytes, or fewer when it is shorter.
pub(super) struct Preview {
    pub(super) header: [u8; 100],
    pub(super) complete: bool,
}

/// A database whose connection is open but holds no lock yet.
pub(super) struct Unlocked {
    path: PathBuf,
    owned: Arc<AtomicU8>,
    k: Link,
}

impl Unlocked {
    /// Opens K without touching a lock. The file must exist.
    pub(super) fn open(path: &Path) -> Result<Unlocked> {
        be_frugal();
        // SAFETY: a plain query of the linked library.
        let version = unsafe { ffi::sqlite3_libversion_number() };
        assert!(
            version >= MIN_SQLITE,
            "BUG: linked with SQLite {version}, whose checkpointer has the WAL-reset bug"
        );
        let owned = Arc::new(AtomicU8::new(0));
        let k = Link::open(path, &owned)?;
        Ok(Unlocked { path: path.to_owned(), owned, k })
    }

    /// The database header as it is in the file.
    pub(super) fn preview(&self) -> Result<Preview> {
        let mut header = [0; 100];
        let complete = read(self.k.file, "read the database header", 0, &mut header)?;
        Ok(Preview { header, complete })
    }

    /// True when SQLite could not open the file for writing and fell back to reading.
    pub(super) fn is_readonly(&self) -> Result<bool> {
        let asked = self.k.connection().is_readonly(rusqlite::MAIN_DB);
        asked.map_err(|e| SqliteError::from_rusqlite("ask whether the database is writable", &e))
    }

    /// Reads the database once. In WAL mode, and only then, SHARED stays from here on; `false`: another mode.
    pub(super) fn touch(&self) -> Result<bool> {
        // Reads page 1 and no schema; this opens the WAL and recovers it if nobody else has it open.
        self.k.run("read the database", "PRAGMA user_version")?;
        holds_shared(self.k.connection())
    }

    /// Maps the wal-index. [`Unlocked::touch`] must have been true.
    pub(super) fn attach(self) -> Result<Files> {
        assert!(holds_shared(self.k.connection())?, "BUG: attached without the shared lock");
        let wal = file_pointer(self.k.connection(), ffi::SQLITE_FCNTL_JOURNAL_POINTER)?;
        let mut region: *mut c_void = ptr::null_mut();
        // SAFETY: K's file object is open and has a wal-index; region 0 exists because K has read the database. The
        // mapping stays until the last connection of this process to the database closes, hence at least as long as K.
        let code = unsafe {
            let methods = (*self.k.file.as_ptr()).pMethods;
            let map = (*methods).xShmMap.expect("BUG: a file object without xShmMap");
            map(self.k.file.as_ptr(), 0, REGION_BYTES, 0, &raw mut region)
        };
        check("map the wal-index", code)?;
        let index = NonNull::new(region.cast::<u32>())
            .ok_or_else(|| SqliteError::new("map the wal-index", ffi::SQLITE_CANTOPEN))?;
        let Unlocked { path, owned, k } = self;
        let files = Files { k, r: None, wal, index, path, owned };
        files.forget_index();
        Ok(files)
    }
}

/// The handles of one attached database.
pub(super) struct Files {
    // Dropped in this order: R before K, so that K's mapping and locks outlive R.
    r: Option<Link>,
    k: Link,
    wal: NonNull<ffi::sqlite3_file>,
    index: NonNull<u32>,
    path: PathBuf,
    owned: Arc<AtomicU8>,
}

// SAFETY: nothing in here is tied to a thread. SQLite is built with SQLITE_THREADSAFE=1, so its global state (the inode
// and wal-index nodes behind the file objects) is guarded by mutexes; the connections and file objects are only used through
// `&Files` and `&mut Files`, and `Files` is not `Sync`, so one thread uses them at a time.
unsafe impl Send for Files {}

impl Files {
    /// Reads the database file; beyond its end there are zeros.
    pub(super) fn read_db(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        read(self.k.file, "read the database", offset, out).map(|_| ())
    }

    /// Reads the WAL; `false` when it ends before `out` is full.
    pub(super) fn read_wal(&self, offset: u64, out: &mut [u8]) -> Result<bool> {
        read(self.wal, "read the wal", offset, out)
    }

    /// Brings the WAL to the disk, as a checkpoint begins with.
    pub(super) fn sync_wal(&self) -> Result<()> {
        crate::watchdog::beat();
        // SAFETY: the file object belongs to K, which is open while `Files` lives.
        let code = unsafe {
            let methods = (*self.wal.as_ptr()).pMethods;
            if methods.is_null() {
                return Err(SqliteError::new("sync the wal", ffi::SQLITE_CANTOPEN));
            }
            let sync = (*methods).xSync.expect("BUG: a file object without xSync");
            sync(self.wal.as_ptr(), ffi::SQLITE_SYNC_NORMAL)
        };
        check("sync the wal", code)
    }

    /// Length of the database file.
    pub(super) fn db_bytes(&self) -> Result<u64> {
        let mut size: i64 = 0;
        // SAFETY: K's file object is open; the size is stored through a valid pointer.
        let code = unsafe {
            let methods = (*self.k.file.as_ptr()).pMethods;
            let file_size = (*methods).xFileSize.expect("BUG: a file object without xFileSize");
            file_size(self.k.file.as_ptr(), &raw mut size)
        };
        check("stat the database", code)?;
        Ok(u64::try_from(size).unwrap_or(0))
    }

    /// Copies the two headers of the wal-index and the backfill counter, in the order that makes a torn write visible: a
    /// writer changes the second header, then the first, then (when the log restarts) the counter.
    pub(super) fn header(&self) -> RawHeader {
        let mut raw = RawHeader::default();
        self.load(&mut raw.first, 0);
        fence(Ordering::SeqCst);
        let mut backfill = [0; 1];
        self.load(&mut backfill, 2 * WAL_INDEX_WORDS);
        raw.backfilled = backfill[0];
        fence(Ordering::SeqCst);
        self.load(&mut raw.second, WAL_INDEX_WORDS);
        raw
    }

    /// The first header alone: cheap enough to ask all the time, good for noticing a change only.
    pub(super) fn glance(&self) -> [u32; WAL_INDEX_WORDS] {
        let mut words = [0; WAL_INDEX_WORDS];
        self.load(&mut words, 0);
        words
    }

    fn load(&self, out: &mut [u32], from: usize) {
        debug_assert!((from + out.len()) * 4 <= REGION_BYTES as usize);
        for (i, word) in out.iter_mut().enumerate() {
            // SAFETY: the region is mapped (see `Unlocked::attach`), page-aligned and 32 KiB long; callers stay within its
            // first 100 bytes. Other processes write to it, hence volatile; any value of a word is valid.
            *word = unsafe { self.index.as_ptr().add(from + i).read_volatile() };
        }
    }

    /// Takes the checkpoint lock for this process; `false`: somebody else holds it.
    pub(super) fn try_lock_checkpoint(&mut self) -> Result<bool> {
        self.try_lock(CHECKPOINT_SLOT, "take the checkpoint lock")
    }

    /// Gives the checkpoint lock back.
    pub(super) fn unlock_checkpoint(&mut self) {
        self.unlock(CHECKPOINT_SLOT);
    }

    /// Takes the writer lock for this process, outside of any transaction: no commit can happen until
    /// [`Files::unlock_writer`]. `false`: a writer is at work.
    pub(super) fn try_lock_writer(&mut self) -> Result<bool> {
        self.try_lock(WRITE_SLOT, "take the writer lock")
    }

    /// Gives the writer lock back.
    pub(super) fn unlock_writer(&mut self) {
        self.unlock(WRITE_SLOT);
    }

    fn try_lock(&mut self, slot: c_int, action: &'static str) -> Result<bool> {
        if owns(&self.owned, slot) {
            return Ok(true);
        }
        match self.shm_lock(slot, ffi::SQLITE_SHM_LOCK | ffi::SQLITE_SHM_EXCLUSIVE) {
            ffi::SQLITE_OK => {
                self.owned.fetch_or(1 << slot, Ordering::Relaxed);
                Ok(true)
            }
            code if code & 0xff == ffi::SQLITE_BUSY => Ok(false),
            code => Err(SqliteError::new(action, code)),
        }
    }

    fn unlock(&mut self, slot: c_int) {
        if owns(&self.owned, slot) {
            self.owned.fetch_and(!(1 << slot), Ordering::Relaxed);
            // Unlocking fails only when the file object has no wal-index, which K has.
            self.shm_lock(slot, ffi::SQLITE_SHM_UNLOCK | ffi::SQLITE_SHM_EXCLUSIVE);
        }
    }

    /// SQLite's own `xShmLock`, past our table.
    fn shm_lock(&self, slot: c_int, flags: c_int) -> c_int {
        // SAFETY: K's file object is open and has its wal-index connected; the original table is SQLite's static one.
        unsafe {
            match (*self.k.patched.original).xShmLock {
                Some(lock) => lock(self.k.file.as_ptr(), slot, 1, flags),
                None => ffi::SQLITE_IOERR_SHMLOCK,
            }
        }
    }

    /// Repairs a wal-index whose two headers stay unequal, because a writer died between writing them. The writer lock is
    /// needed for that; busy when a live writer holds it.
    pub(super) fn repair(&mut self) -> Result<()> {
        // A checkpoint that does nothing still reads the header, and recovers it if it must, without waiting.
        self.checkpoint("repair the wal-index", ffi::SQLITE_CHECKPOINT_NOOP)
    }

    /// Copies frames into the database, as far as no reader needs them to stay out. The caller must own the checkpoint
    /// lock.
    pub(super) fn backfill(&mut self) -> Result<()> {
        assert!(owns(&self.owned, CHECKPOINT_SLOT), "BUG: a checkpoint without the lock");
        self.checkpoint("checkpoint", ffi::SQLITE_CHECKPOINT_PASSIVE)
    }

    /// Copies all frames into the database, begins the log anew and cuts its file to nothing. The caller must own the
    /// checkpoint lock and the writer lock. Busy, after copying what can be copied, when a reader is in the log.
    pub(super) fn truncate(&mut self) -> Result<()> {
        assert!(owns(&self.owned, CHECKPOINT_SLOT), "BUG: a checkpoint without the lock");
        assert!(owns(&self.owned, WRITE_SLOT), "BUG: a truncation while others may write");
        self.checkpoint("truncate the log", ffi::SQLITE_CHECKPOINT_TRUNCATE)
    }

    fn checkpoint(&mut self, action: &'static str, mode: c_int) -> Result<()> {
        // SAFETY: K is open and idle; the two outputs may be null.
        let code = unsafe {
            let db = self.k.connection().handle();
            ffi::sqlite3_wal_checkpoint_v2(db, MAIN.as_ptr(), mode, ptr::null_mut(), ptr::null_mut())
        };
        check(action, code)
    }

    /// Opens a read transaction on R: no frame behind its mark can be backfilled past it or overwritten.
    pub(super) fn open_guard(&mut self) -> Result<()> {
        self.r_begin("open a read mark", "BEGIN; PRAGMA user_version")
    }

    fn r_begin(&mut self, action: &'static str, sql: &str) -> Result<()> {
        let r = match &self.r {
            Some(r) => r,
            None => self.r.insert(Link::open(&self.path, &self.owned)?),
        };
        let begun = r.run(action, sql);
        if begun.is_err() && !r.connection().is_autocommit() {
            r.run("roll back", "ROLLBACK")?;
        }
        begun
    }

    /// Ends whatever R holds and closes it.
    pub(super) fn release(&mut self) {
        // Closing a connection rolls its transaction back.
        if self.r.take().is_some() {
            self.forget_index();
        }
    }

    /// Takes all of the wal-index but the page with the headers out of this process's memory: only transactions of K and R
    /// read the rest, and with a thousand databases it is half of what the agent occupies.
    fn forget_index(&self) {
        const KEPT: usize = 4096;
        // SAFETY: `index` is the beginning of a mapping of REGION_BYTES, a shared one of the `-shm` file, as the default VFS
        // makes it: what is taken out loses nothing and is mapped again when it is touched.
        let done = unsafe {
            let rest = self.index.as_ptr().cast::<u8>().add(KEPT);
            rustix::mm::madvise(rest.cast(), REGION_BYTES as usize - KEPT, Advice::LinuxDontNeed)
        };
        // Refused, without effect, where the pages of the system are larger.
        let _ = done;
    }

    /// Works on a connection of its own, which is closed afterwards, and with it rolled back what it did not commit.
    /// While this process owns the writer lock the connection may write, and nobody else.
    pub(super) fn with_writer<T>(&self, work: impl FnOnce(&Connection) -> T) -> Result<T> {
        let link = Link::open(&self.path, &self.owned)?;
        let done = work(link.connection());
        drop(link);
        self.forget_index();
        Ok(done)
    }

    /// Where the database is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// True when the schema has a table of this name. A connection of its own, for this one look.
    pub(super) fn has_table(&self, name: &str) -> Result<bool> {
        let link = Link::open(&self.path, &self.owned)?;
        let sql = "SELECT count(*) FROM sqlite_schema WHERE name = ?1";
        let found = link.connection().query_row(sql, [name], |row| row.get::<_, i64>(0));
        found.map(|n| n > 0).map_err(|e| SqliteError::from_rusqlite("read the schema", &e))
    }

    /// True when the path no longer leads to the file that is open.
    pub(super) fn has_moved(&self) -> Result<bool> {
        let ask = "compare the file with its path";
        Ok(file_control(self.k.connection(), ask, ffi::SQLITE_FCNTL_HAS_MOVED)? != 0)
    }

    /// True while K holds at least SHARED on the database.
    pub(super) fn holds_shared(&self) -> Result<bool> {
        holds_shared(self.k.connection())
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        self.r = None;
        self.unlock_writer();
        self.unlock_checkpoint();
    }
}
