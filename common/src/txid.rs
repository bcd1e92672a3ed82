//! Transaction ids: per database, from 1, +1 per captured transaction, never reused, never skipped.

use std::fmt;
use std::num::NonZeroU64;

/// A transaction id. Printed as 16 lower-case hex digits, so that names sort as numbers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Txid(NonZeroU64);

impl Txid {
    /// The first transaction of a history.
    pub const FIRST: Txid = Txid(NonZeroU64::MIN);

    /// `None` for 0.
    pub const fn new(value: u64) -> Option<Txid> {
        match NonZeroU64::new(value) {
            Some(value) => Some(Txid(value)),
            None => None,
        }
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0.get()
    }

    /// The transaction after this one; panics after 2^64-1 transactions.
    pub fn next(self) -> Txid {
        Txid(self.0.checked_add(1).expect("BUG: txid overflow"))
    }

    /// The run of so many transactions after this one; panics for none, and after 2^64-1 transactions.
    pub fn run_after(self, count: u64) -> TxidRange {
        let max = self.0.checked_add(count).expect("BUG: txid overflow");
        TxidRange::new(self.next(), Txid(max)).expect("BUG: a run of no transactions")
    }

    /// The transaction that must follow `last`, where `None` is an empty history.
    pub fn following(last: Option<Txid>) -> Txid {
        last.map_or(Txid::FIRST, Txid::next)
    }

    /// Parses exactly 16 hex digits, or a decimal number.
    pub fn parse(text: &str) -> Option<Txid> {
        let value = if text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
            u64::from_str_radix(text, 16).ok()?
        } else {
            text.parse().ok()?
        };
        Txid::new(value)
    }
}

impl fmt::Display for Txid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Txid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Txid({})", self.0)
    }
}

/// An inclusive, non-empty run of transactions.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TxidRange {
    min: Txid,
    max: Txid,
}

impl TxidRange {
    /// `None` when `min > max`.
    pub fn new(min: Txid, max: Txid) -> Option<TxidRange> {
        (min <= max).then_some(TxidRange { min, max })
    }

    /// The run of one transaction.
    pub fn single(txid: Txid) -> TxidRange {
        TxidRange { min: txid, max: txid }
    }

    /// From raw numbers; `None` when they are no range.
    pub fn from_raw(min: u64, max: u64) -> Option<TxidRange> {
        TxidRange::new(Txid::new(min)?, Txid::new(max)?)
    }

    /// First transaction.
    pub fn min(self) -> Txid {
        self.min
    }

    /// Last transaction.
    pub fn max(self) -> Txid {
        self.max
    }

    /// Number of transactions.
    pub fn count(self) -> u64 {
        self.max.get() - self.min.get() + 1
    }

    /// True when this run starts right after `last` (`None`: an empty history).
    pub fn follows(self, last: Option<Txid>) -> bool {
        self.min == Txid::following(last)
    }
}

impl fmt::Display for TxidRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.min, self.max)
    }
}

impl fmt::Debug for TxidRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TxidRange({}-{})", self.min.get(), self.max.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_hex_names_and_decimal_numbers() {
        assert_eq!(Txid::parse("0000000000000010").map(Txid::get), Some(16));
        assert_eq!(Txid::parse("10").map(Txid::get), Some(10));
        assert_eq!(Txid::parse("0"), None);
        assert_eq!(Txid::parse("0000000000000000"), None);
        assert_eq!(Txid::parse("x"), None);
    }

    #[test]
    fn ranges_are_never_empty_and_know_what_they_follow() {
        assert!(TxidRange::from_raw(3, 2).is_none());
        let range = TxidRange::from_raw(3, 5).unwrap();
        assert_eq!(range.count(), 3);
        assert!(range.follows(Txid::new(2)));
        assert!(!range.follows(None));
        assert!(TxidRange::single(Txid::FIRST).follows(None));
        assert_eq!(range.to_string(), "0000000000000003-0000000000000005");
    }
}
