//! Levels of LTX files: 0 raw, 1..=8 compacted, 9 snapshot (Litestream's numbering).

use std::fmt;

/// A level, 0..=9.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Level(u8);

impl Level {
    /// As captured.
    pub const RAW: Level = Level(0);
    /// A whole database, always from TXID 1.
    pub const SNAPSHOT: Level = Level(9);

    /// `None` above 9.
    pub const fn new(level: u8) -> Option<Level> {
        if level <= 9 { Some(Level(level)) } else { None }
    }

    /// The number.
    pub const fn get(self) -> u8 {
        self.0
    }

    /// Every level, lowest first.
    pub fn all() -> impl DoubleEndedIterator<Item = Level> {
        (0..=9).map(Level)
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
