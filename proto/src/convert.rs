//! Wire values ⇄ typed values. Nothing else in the project reads a raw TXID or checksum off the wire.

use crate::v1;
use walhub_common::{Checksum, Pos, Txid, TxidRange};

/// A message that breaks the contract; the text names the field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid {field}: {reason}")]
pub struct WireError {
    /// Field in question.
    pub field: &'static str,
    /// What is wrong with it.
    pub reason: String,
}

impl WireError {
    /// A fault of `field`.
    pub fn new(field: &'static str, reason: impl Into<String>) -> Self {
        Self { field, reason: reason.into() }
    }
}

/// Position on the wire; `None` is "nothing yet".
pub fn position_to_wire(pos: Option<Pos>) -> v1::Position {
    match pos {
        Some(pos) => v1::Position { txid: pos.txid.get(), checksum: pos.checksum.get() },
        None => v1::Position { txid: 0, checksum: 0 },
    }
}

/// Position from the wire; an absent message is "nothing yet".
pub fn position_from_wire(pos: Option<&v1::Position>) -> Result<Option<Pos>, WireError> {
    let Some(pos) = pos else { return Ok(None) };
    let Some(txid) = Txid::new(pos.txid) else {
        return match pos.checksum {
            0 => Ok(None),
            _ => Err(WireError::new("position", "checksum without a txid")),
        };
    };
    let checksum = Checksum::new(pos.checksum)
        .ok_or_else(|| WireError::new("position.checksum", "bit 63 is not set"))?;
    Ok(Some(Pos { txid, checksum }))
}

/// Range on the wire.
pub fn range_to_wire(range: TxidRange) -> v1::TxidRange {
    v1::TxidRange { min: range.min().get(), max: range.max().get() }
}

/// Range from the wire.
pub fn range_from_wire(range: Option<&v1::TxidRange>) -> Result<TxidRange, WireError> {
    let range = range.ok_or_else(|| WireError::new("range", "missing"))?;
    TxidRange::from_raw(range.min, range.max)
        .ok_or_else(|| WireError::new("range", format!("{}-{} is not a range from 1", range.min, range.max)))
}

/// The transaction and the checksum that a plan promises; no checksum when no walhub took one.
pub fn promise_from_wire(plan: &v1::RestorePlan) -> Result<(u64, Option<Checksum>), WireError> {
    let fault = |reason| Err(WireError::new("plan", reason));
    match plan.position.as_ref().map(|position| (position.txid, position.checksum)) {
        None => fault("its plan names no position"),
        Some((0, _)) => fault("its plan names no transaction"),
        Some((txid, 0)) => Ok((txid, None)),
        Some((txid, checksum)) => match Checksum::new(checksum) {
            Some(checksum) => Ok((txid, Some(checksum))),
            None => fault("its plan names a checksum that is none"),
        },
    }
}
