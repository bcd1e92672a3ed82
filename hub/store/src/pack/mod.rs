//! Packs: one object with the new transactions of many databases, so that the number of requests depends on how often a
//! hub flushes and not on how many databases it keeps.
//!
//! ```text
//! walhub/packs/<seq:016x>.pack
//!   magic (8) | LTX file of database a | LTX file of database b | … | index | footer (64)
//! ```
//! - [`mod@format`]: the bytes: [`Writer`] makes them, [`Footer`] and [`parse_index`] read them. No I/O.
//! - [`catalog`]: which file lies in which pack, in memory. No I/O.
//! - [`packed`]: a destination whose packs look like ordinary files to everybody else.
//! - `load`: reading the indices of packs.
//!
//! # Invariants
//! - The files in a pack are byte for byte what would have been put one by one: same bytes, same file checksums.
//! - A pack is complete or absent, and never changes. Numbers ascend; one number is one content for ever.
//! - A pack that is damaged costs its own files and nothing else; it is named, never skipped silently.
//! - A pack is deleted only when each of its files was asked to be deleted.
//! - Whoever works with a place as if it had no packs makes sure that it has none ([`refuse`]).
//!
//! Non-goals: when to flush and what (the lane), when a file may go (retention).

pub mod catalog;
pub mod format;
mod load;
pub mod packed;

pub use format::{Entry, Footer, Full, Pack, PackError, Writer, parse_index};
pub use load::refuse;
pub use packed::PackedDestination;
