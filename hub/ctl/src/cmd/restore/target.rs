//! Which point of a history to restore.

use std::fmt;
use walhub_common::{Txid, clock};
use walhub_proto::v1::{job_request, restore_request};

/// A point in a database's history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// The newest transaction.
    Latest,
    /// Exactly after this transaction.
    Txid(Txid),
    /// The newest transaction at or before this time, Unix ms.
    Time(i64),
}

impl Target {
    /// As the hub wants it.
    pub(crate) fn wire(self) -> Option<restore_request::Target> {
        match self {
            Target::Latest => None,
            Target::Txid(txid) => Some(restore_request::Target::Txid(txid.get())),
            Target::Time(ms) => Some(restore_request::Target::TimestampMs(ms)),
        }
    }

    /// The same of a job.
    pub(crate) fn point(self) -> Option<job_request::Point> {
        match self {
            Target::Latest => None,
            Target::Txid(txid) => Some(job_request::Point::Txid(txid.get())),
            Target::Time(ms) => Some(job_request::Point::TimestampMs(ms)),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Latest => f.write_str("its newest state"),
            Target::Txid(txid) => write!(f, "TXID {}", txid.get()),
            Target::Time(ms) => write!(f, "{}", clock::format_ms(*ms)),
        }
    }
}

/// A value parser for `--txid`.
pub(crate) fn parse_txid(text: &str) -> Result<Txid, String> {
    Txid::parse(text).ok_or_else(|| "a TXID is a number from 1, or 16 hex digits".into())
}
