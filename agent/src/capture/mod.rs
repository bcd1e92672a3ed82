//! Lossless capture of one live SQLite database from outside the application.
//!
//! ```text
//!          the file is there, in WAL mode                 checkpoint lock owned
//! ABSENT ────────────────────────────────▶ ATTACH ───────────────────────────────▶ ALIGN ◀── resume, time is up ── YIELD
//!    ▲                                                        place found in the WAL │ or healed by a diff           ▲
//!    │ detach, file replaced               BACKFILL ◀──── enough frames ──────────  TAIL ──────── pause ─────────────┘
//!    └──────────────────────────────────── FENCE, SHRINK ▶ done ──────────────────▶
//! ```
//!
//! | state | held | does | leaves |
//! |---|---|---|---|
//! | ABSENT | nothing; no [`Capture`] exists | [`Absent`] says why, and what to do | the file can be opened, in WAL mode |
//! | ATTACH | SHARED; a read mark while it waits | tries the checkpoint lock for two seconds ([`Capture::attach`]) | lock owned, or ABSENT |
//! | ALIGN | + checkpoint lock | [`Standing`]: the saved place is in the WAL, or [`Capture::heal`], [`Capture::snapshot`] | everything captured |
//! | TAIL | checkpoint lock | committed transactions one by one ([`Capture::next`]); no read mark | enough frames |
//! | BACKFILL | + read mark on R | waits for acks, saves the page map, lets SQLite copy ([`Capture::maintain`]) | copied, or no acks in 5 s |
//! | FENCE | + writer lock, for milliseconds | takes the last transactions into memory, saves, copies | done; refused when too much is unread |
//! | SHRINK | + writer lock, for milliseconds | as FENCE, then TRUNCATE without patience ([`Capture::checkpoint`]) | done; a reader may keep the log |
//! | REPLACE | + writer lock | as FENCE, then an older state becomes the newest transaction ([`Capture::replace`]) | committed, or rolled back |
//! | YIELD | SHARED alone | nothing: the application checkpoints by itself ([`Capture::yield_lock`]) | [`Capture::reclaim`]: ALIGN |
//! | DETACH | – | saves what is acked; the WAL stays ([`Capture::detach`]) | ABSENT |
//!
//! SHARED on the database file is held in every state but ABSENT. The hard limit of the log overrides the bounds of FENCE
//! ([`Capture::make_room`]): restore points are given up, and writers wait for as long as the copying takes.
//!
//! A commit is the update of the wal-index header in shared memory. A commit *frame* in the file proves nothing: the
//! application may have died before it published the frame, and the next writer then overwrites it.
//!
//! Invariants, checked in code; a violation is [`Broken`], after which the capture has let go of its place in the WAL and
//! only a heal goes on:
//! - **I1** nobody but this agent raises `nBackfill` while it owns the checkpoint lock. In YIELD others may; afterwards nothing
//!   counts as captured that the log does not still hold.
//! - **I2** no frame that was not captured can be overwritten: a restart of the log needs every frame to be backfilled.
//! - **I3** SHARED on the database file is held while attached: no last-close checkpoint, no other journal mode.
//! - **I4** only frames up to the published `mxFrame` are read, and the running checksum there is the published one.
//! - **I5** a new generation (salts) is entered only through its verified file header.
//! - **I6** SQLite's own count of commits never exceeds the captured ones.
//! - **I7** a transaction is a run of frames ending in a commit frame; the last version of a page wins; pages beyond the
//!   commit size are dropped; a growing database brings every new page.
//! - **I8** `nBackfill` never passes the frame at which the page map was last saved. So after a crash the place is either
//!   still in the WAL, or the gap is known.
//!
//! Frames count as *captured* (they may be backfilled and overwritten) when the hub acked their transaction, when
//! [`Capture::skip`] gave up its restore point, or when FENCE took it into memory to let the log restart.
//!
//! Non-goals: no network and no waiting for one; no retry policy; no other journal modes; no databases on network file
//! systems or opened with `unix-excl`, `nolock` or `immutable`. Inside this process nobody may open the database or its
//! `-shm` by other means than [`vfs`]: closing such a descriptor drops SQLite's locks (a test greps for it).

mod align;
mod alone;
mod attach;
mod error;
mod fence;
mod header;
mod holders;
mod image;
mod ledger;
mod maintain;
mod page_one;
mod read_ahead;
mod replace;
mod roll;
mod segment;
mod stage;
mod staged;
mod stretch;
mod survey;
mod tail;
mod vfs;
mod wanted;
mod yielding;

pub use alone::{Locked, Unsettled, in_the_way, lock, real, settle};
pub use error::{Absent, AttachError, Broken, CaptureError, SqliteError};
pub use fence::{Checkpointed, NoCheckpoint};
pub use holders::Holders;
pub use maintain::{HeldBy, Maintained};
pub use page_one::Unfit;
pub use replace::{NotReplaced, Replaced};
pub use roll::HubPages;
pub use segment::{SegmentMeta, Sink};
pub use stage::{Pace, Parts, Walk};
pub use staged::Staged;
pub use survey::{NoSurvey, Surveyed};
pub use wanted::{NotTaken, Wanted};

use crate::page_map::store::{Anchor, Store};
use crate::page_map::{Change, PageMap, Room};
use header::Header;
use ledger::{Ledger, Point};
use maintain::Upkeep;
use segment::Kept;
use std::collections::VecDeque;
use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use vfs::Files;
use walhub_common::ltx::Compression;
use walhub_common::wal::{FrameNo, WalPosition};
use walhub_common::{PageSize, Pos, Txid};

/// How long a torn wal-index may be a writer at work before it counts as one that died.
const TORN_PATIENCE: Duration = Duration::from_millis(20);

/// What to capture and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The database file.
    pub path: PathBuf,
    /// A folder for this database alone.
    pub state_dir: PathBuf,
    /// A checkpoint is due after this many frames.
    pub checkpoint_frames: u32,
    /// How hard the pages of segments are compressed.
    pub compression: Compression,
    /// From here on a log that does not restart by itself is made to, however often that failed before.
    pub wal_limit_bytes: u64,
}

/// How the page map relates to the live WAL.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// The place of the page map is in the WAL: every transaction since can be replayed one by one.
    Aligned,
    /// There is a page map, but the frames since are gone, or it was rolled forward past them.
    Gap,
    /// There is no page map.
    Fresh,
}

/// What [`Capture::next`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// One segment went into the sink.
    Sent(SegmentMeta),
    /// Nothing more is committed.
    UpToDate,
    /// The frames are not in the WAL any more (or never were): align first.
    Lost(Standing),
}

/// What an attached capture is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// Waits for a snapshot, a heal or a roll forward.
    Align,
    /// Follows the log.
    Tail,
    /// As [`State::Tail`], with a read mark held until what lies behind it is acked and checkpointed.
    Backfill,
    /// The application has its checkpoints back; nothing is read.
    Yield,
}

/// One attached database. Blocking; one owner at a time; may move between threads.
pub struct Capture {
    options: Options,
    files: Files,
    store: Store,
    standing: Standing,
    /// `None` exactly when `standing` is [`Standing::Fresh`].
    tracked: Option<Tracked>,
    /// `Some` exactly when `standing` is [`Standing::Aligned`].
    cursor: Option<Cursor>,
    /// Transactions that FENCE took into memory; they follow the last one handed out.
    kept: VecDeque<Kept>,
    /// Frames read from the log; empty when the log was read to its end.
    read_ahead: read_ahead::ReadAhead,
    /// Words of the last header of which nothing is left to do.
    seen: Option<[u32; header::WAL_INDEX_WORDS]>,
    upkeep: Upkeep,
    /// True while the checkpoint lock is given back (YIELD).
    yielded: bool,
    /// The state that a replacement counts on.
    pin: Option<survey::Pin>,
}

/// The page map and its books.
struct Tracked {
    map: PageMap,
    position: Pos,
    ledger: Ledger,
    /// True after a roll forward: what is on disk is older and unconnected.
    rolled: bool,
}

/// The place in the log.
#[derive(Clone, Copy, Debug)]
struct Cursor {
    wal: WalPosition,
    /// False while the log has no file header for this generation yet; `wal.frame` is 0 then.
    anchored: bool,
    page_size: PageSize,
    big_endian: bool,
    /// `nBackfill` of this generation, as far as this process knows: nobody else may raise it (I1).
    backfilled: FrameNo,
    /// Commits captured since `counted`.
    commits: u32,
    /// SQLite's commit counter when `commits` was 0; `None` before the first look.
    counted: Option<u32>,
}

impl Capture {
    /// Whether the page map connects to the live WAL.
    pub fn standing(&self) -> Standing {
        self.standing
    }

    /// The last transaction handed to a sink, skipped or rolled forward to.
    pub fn position(&self) -> Option<Pos> {
        match self.kept.front() {
            Some(kept) => {
                Some(Pos { txid: Txid::new(kept.meta.range.min().get() - 1)?, checksum: kept.meta.pre? })
            }
            None => self.tracked.as_ref().map(|t| t.position),
        }
    }

    /// Identity of the history; 0 while none was given.
    pub fn lineage(&self) -> u64 {
        self.store.anchor().lineage
    }

    /// Gives the history its identity; on disk when this returns.
    pub fn set_lineage(&mut self, lineage: u64) -> Result<(), CaptureError> {
        let anchor = Anchor { lineage, ..*self.store.anchor() };
        self.store.reanchor(anchor)?;
        Ok(())
    }

    /// True when something may have been committed since [`Capture::next`] last said [`Next::UpToDate`]. Costs two dozen loads
    /// from memory, no system call.
    pub fn header_moved(&self) -> bool {
        !self.kept.is_empty() || self.seen != Some(self.files.glance()) || self.is_torn()
    }

    /// True while a writer is between the two copies of the wal-index header, or died there. Applications cannot repair that
    /// while the checkpoint lock is ours, and writes of the log need not come with it: look at every slow poll, in every
    /// state, and call [`Capture::mend`].
    pub fn is_torn(&self) -> bool {
        let raw = self.files.header();
        raw.first != raw.second
    }

    /// Repairs a wal-index that was left torn; waits a moment for a writer that is only at work.
    pub fn mend(&mut self) -> Result<(), CaptureError> {
        if self.yielded {
            return Ok(());
        }
        match self.header() {
            Err(CaptureError::Torn) | Ok(_) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Bytes of the log that hold committed frames of this generation.
    pub fn wal_bytes(&self) -> u64 {
        let page_size = self.tracked.as_ref().map(|t| t.map.page_size());
        page_size.map_or(0, |size| FrameNo(header::last_frame(&self.files.glance())).end(size))
    }

    /// True while transactions that FENCE took off the log wait to be handed out: they are in memory only.
    pub fn holds_transactions(&self) -> bool {
        !self.kept.is_empty()
    }

    /// Bytes of the log that were not read yet.
    pub fn unread_bytes(&self) -> u64 {
        let wal_bytes = self.wal_bytes();
        let current = self.cursor.filter(|c| !self.restarted() && c.anchored);
        current.map_or(wal_bytes, |c| wal_bytes.saturating_sub(c.wal.frame.end(c.page_size)))
    }

    /// Bytes of the database as of its position; 0 without a page map.
    pub fn mapped_bytes(&self) -> u64 {
        self.tracked.as_ref().map_or(0, |t| u64::from(t.map.commit()) * u64::from(t.map.page_size().get()))
    }

    /// What it is doing.
    pub fn state(&self) -> State {
        match self.standing {
            _ if self.yielded => State::Yield,
            Standing::Aligned if self.upkeep.is_waiting() => State::Backfill,
            Standing::Aligned => State::Tail,
            Standing::Gap | Standing::Fresh => State::Align,
        }
    }

    /// The hub holds everything up to `txid` on its disk: those frames are captured.
    pub fn acked(&mut self, txid: Txid) {
        if let Some(tracked) = &mut self.tracked {
            tracked.ledger.captured_to(txid);
        }
    }

    /// Ends the capture: saves what is acked and gives the lock back. The `-wal` file stays, with frames that are not in the
    /// database file: copying the database file alone then loses data, until the application checkpoints.
    pub fn detach(mut self) -> Result<(), CaptureError> {
        self.final_pass()
    }

    /// A header that is whole; repairs a torn one.
    fn header(&mut self) -> Result<Header, CaptureError> {
        if let Some(header) = self.files.header().verify() {
            return Ok(header);
        }
        let begun = Instant::now();
        let mut repaired = false;
        loop {
            if begun.elapsed() >= TORN_PATIENCE {
                if repaired {
                    return Err(CaptureError::Torn);
                }
                match self.files.repair() {
                    Err(e) if !e.is_busy() => return Err(e.into()),
                    _ => repaired = true,
                }
            } else {
                std::thread::sleep(Duration::from_micros(20));
            }
            if let Some(header) = self.files.header().verify() {
                return Ok(header);
            }
        }
    }

    /// After a broken promise the place in the log is worth nothing: forget it, here and on disk.
    fn settle<T>(&mut self, result: Result<T, CaptureError>) -> Result<T, CaptureError> {
        if let Err(CaptureError::Broken(_)) = &result {
            self.let_go();
            // Best effort: if it cannot be written, the next attach meets the same violation again.
            if self.store.reanchor(Anchor { wal: None, ..*self.store.anchor() }).is_ok() {
                self.rescue();
            }
        }
        result
    }

    /// A published frame that does not verify is still a commit: SQLite finds frames by the wal-index and checks no checksum,
    /// until somebody must recover the log, who then cuts it there. (SQLite before 3.41 writes such frames: a commit after
    /// ROLLBACK TO, in a transaction that spilled.) So everything published is brought into the database file now, by
    /// SQLite itself; a heal finds it there, and nobody loses it to a recovery. Best effort, as readers may hold it back:
    /// the heal then fails by the same violation and comes back here.
    fn rescue(&mut self) {
        self.pin = None;
        if !self.yielded
            && let Err(e) = self.files.backfill()
        {
            tracing::debug!(path = %self.options.path.display(), error = %e, "a checkpoint of unverifiable frames");
        }
    }

    /// TAIL ends: the frames after the cursor cannot be had any more.
    fn let_go(&mut self) {
        self.cursor = None;
        self.pin = None;
        self.kept.clear();
        self.read_ahead = read_ahead::ReadAhead::default();
        self.upkeep = Upkeep::default();
        self.files.release();
        if self.standing == Standing::Aligned {
            self.standing = Standing::Gap;
        }
    }

    /// Books transactions that went out (or were skipped) together.
    fn book(
        &mut self,
        position: Pos,
        count: u64,
        commit: u32,
        changes: Vec<Change>,
        end: WalPosition,
    ) -> Result<(), CaptureError> {
        let (Some(tracked), Some(cursor)) = (&mut self.tracked, &mut self.cursor) else {
            unreachable!("BUG: a transaction without a place")
        };
        tracked.map.apply(&changes, commit, position.txid)?;
        tracked.position = position;
        tracked.ledger.handed_out(Point { position, wal: Some(end), commit }, changes);
        cursor.wal = end;
        cursor.commits = cursor.commits.wrapping_add(count as u32);
        Ok(())
    }

    /// Where a page map lies that is too large for memory.
    fn map_room(&self) -> Room {
        Room::beside(&self.options.state_dir)
    }

    /// Saves a page map that was rolled forward, so that the next attach need not fetch it again.
    fn save_rolled(&mut self) -> Result<(), CaptureError> {
        if let Some(tracked) = self.tracked.as_mut().filter(|t| t.rolled) {
            let anchor =
                Anchor { lineage: self.store.anchor().lineage, position: Some(tracked.position), wal: None };
            self.store.rewrite(anchor, Some(&tracked.map))?;
            tracked.rolled = false;
        }
        Ok(())
    }

    /// Saves the captured state, so that its frames may be backfilled.
    fn save(&mut self) -> Result<(), CaptureError> {
        let Some(tracked) = &mut self.tracked else {
            return Ok(());
        };
        let lineage = self.store.anchor().lineage;
        let ledger = &mut tracked.ledger;
        if self.store.must_rewrite() {
            ledger.settle_all();
        }
        let rewrite = self.store.wants_rewrite() && ledger.is_settled();
        if let Some((point, changes)) = ledger.unsaved() {
            let anchor = Anchor { lineage, position: Some(point.position), wal: point.wal };
            if rewrite {
                self.store.rewrite(anchor, Some(&tracked.map))?;
            } else {
                self.store.append(anchor, tracked.map.page_size(), point.commit, changes)?;
            }
            ledger.saved();
        }
        Ok(())
    }
}

impl fmt::Debug for Capture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Capture")
            .field("path", &self.options.path)
            .field("standing", &self.standing)
            .field("position", &self.position())
            .field("cursor", &self.cursor)
            .finish_non_exhaustive()
    }
}
