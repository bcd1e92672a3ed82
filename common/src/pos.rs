//! A position is two facts: the transaction and the database checksum after it. Two sides agree only on both.

use crate::{Checksum, Txid};
use std::fmt;

/// `(TXID, database checksum after it)`. "Nothing yet" is `Option::<Pos>::None`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Pos {
    /// The transaction.
    pub txid: Txid,
    /// Database checksum after it.
    pub checksum: Checksum,
}

impl fmt::Display for Pos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.txid, self.checksum)
    }
}
