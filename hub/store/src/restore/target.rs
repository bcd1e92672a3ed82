//! Which point of a database's history is wanted.

use std::fmt;
use walhub_common::{Txid, clock};

/// A point of a history.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Target {
    /// The newest.
    #[default]
    Latest,
    /// Exactly after a transaction.
    Txid(Txid),
    /// After the newest transaction stamped at or before a time, Unix ms.
    TimestampMs(i64),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Latest => f.write_str("the latest state"),
            Target::Txid(txid) => write!(f, "transaction {txid}"),
            Target::TimestampMs(ms) => f.write_str(&clock::format_ms(*ms)),
        }
    }
}
