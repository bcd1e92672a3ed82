//! The append-only segment log: the truth behind every `buffered` ack.
//!
//! The log is a run of files `log/<number>.log`, number as 16 hex digits. A file starts with a header and a snapshot
//! of all state (databases with their positions, cursors of the lanes), so any suffix of the files says everything that
//! is still of use, and giving space back is unlinking the oldest file.
//!
//! # Invariants
//! - A `.log` file always has its whole snapshot on disk: it is written under another name, synced, and renamed; the
//!   folder is synced before the first record behind it is acknowledged.
//! - A file is complete and on disk before the next one exists. Only the newest file can have a torn end.
//! - What is behind the last acknowledged byte is cut off before anything is written after it, so that a later reading
//!   of the log decides as the first one did.
//!
//! Files have their full length from the start (holes): a sync then has no new length to write, and a power cut cannot
//! hide bytes behind an old length. They are cut to what they hold when they are complete.
//!
//! Non-goals: order rules of a database (`tail.rs`), where segments lie (`index.rs`), who still needs them (`trim.rs`).

pub(super) mod file;
pub(super) mod head;
pub mod probe;
pub(super) mod reader;
pub(super) mod record;
pub(super) mod recover;
pub(super) mod replay;
pub(super) mod scan;
pub(super) mod snapshot;
pub(super) mod writer;
