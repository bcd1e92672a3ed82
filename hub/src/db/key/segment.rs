//! Where a segment lies, and what it is.

use super::{Fields, Key, Malformed, VERSION, Value, put_short_number};
use walhub_common::{Checksum, Txid, TxidRange};

/// (database, first TXID). Sorted by database, then TXID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SegmentKey {
    /// The database's number.
    pub database: u64,
    /// The segment's first transaction.
    pub min: Txid,
}

/// A segment's facts and place; see the buffer for their meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentValue {
    /// Transactions, first to last.
    pub range: TxidRange,
    /// Database checksum before.
    pub pre: Option<Checksum>,
    /// Database checksum after.
    pub post: Checksum,
    /// Hub time.
    pub time_ms: i64,
    /// Agent time.
    pub agent_time_ms: i64,
    /// LTX bytes.
    pub bytes: u64,
    /// Log file and offset of the first chunk.
    pub first: (u64, u64),
    /// Log file and offset of the last chunk.
    pub last: (u64, u64),
    /// Number of chunks.
    pub chunks: u32,
}

impl Key for SegmentKey {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(17);
        out.push(VERSION);
        out.extend_from_slice(&self.database.to_be_bytes());
        out.extend_from_slice(&self.min.get().to_be_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut fields = Fields::versioned(bytes)?;
        let database = fields.number()?;
        let min = Txid::new(fields.number()?).ok_or(Malformed("no TXID"))?;
        fields.end()?;
        Ok(Self { database, min })
    }
}

/// Checksums and the hub's time at full width, everything else short: an index of millions of segments stays small.
impl Value for SegmentValue {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        out.push(VERSION);
        out.extend_from_slice(&self.pre.map_or(0, Checksum::get).to_be_bytes());
        out.extend_from_slice(&self.post.get().to_be_bytes());
        out.extend_from_slice(&self.time_ms.to_be_bytes());
        let behind = self.time_ms.wrapping_sub(self.agent_time_ms);
        let zigzag = (behind << 1 ^ behind >> 63).cast_unsigned();
        let min = self.range.min().get();
        for number in [zigzag, min, self.range.max().get() - min, self.bytes, u64::from(self.chunks)] {
            put_short_number(&mut out, number);
        }
        put_short_number(&mut out, self.first.0);
        put_short_number(&mut out, self.first.1);
        if self.chunks != 1 {
            put_short_number(&mut out, self.last.0);
            put_short_number(&mut out, self.last.1);
        }
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut fields = Fields::versioned(bytes)?;
        let pre = match fields.number()? {
            0 => None,
            pre => Some(Checksum::new(pre).ok_or(Malformed("no checksum"))?),
        };
        let post = Checksum::new(fields.number()?).ok_or(Malformed("no checksum"))?;
        let time_ms = fields.number()?.cast_signed();
        let zigzag = fields.short_number()?;
        let behind = (zigzag >> 1).cast_signed() ^ -(zigzag & 1).cast_signed();
        let (min, more) = (fields.short_number()?, fields.short_number()?);
        let max = min.checked_add(more).ok_or(Malformed("no TXID range"))?;
        let range = TxidRange::from_raw(min, max).ok_or(Malformed("no TXID range"))?;
        let bytes = fields.short_number()?;
        let chunks = u32::try_from(fields.short_number()?).map_err(|_| Malformed("too many chunks"))?;
        let first = (fields.short_number()?, fields.short_number()?);
        let last = if chunks == 1 { first } else { (fields.short_number()?, fields.short_number()?) };
        fields.end()?;
        let agent_time_ms = time_ms.wrapping_sub(behind);
        Ok(Self { range, pre, post, time_ms, agent_time_ms, bytes, first, last, chunks })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn keys() -> impl Strategy<Value = SegmentKey> {
        (0u64..600, 1u64..70_000)
            .prop_map(|(database, min)| SegmentKey { database, min: Txid::new(min).unwrap() })
    }

    prop_compose! {
        fn values()(
            min in 1u64.., more: u64, pre: Option<u64>, post: u64, time_ms: i64, agent_time_ms: i64, bytes: u64,
            first: (u64, u64), last: (u64, u64), chunks: u32, single: bool,
        ) -> SegmentValue {
            let checksum = |n: u64| Checksum::new(n | 1 << 63).unwrap();
            let chunks = if single { 1 } else { chunks };
            SegmentValue {
                range: TxidRange::from_raw(min, min.saturating_add(more)).unwrap(),
                pre: pre.map(checksum),
                post: checksum(post),
                time_ms,
                agent_time_ms,
                bytes,
                first,
                last: if chunks == 1 { first } else { last },
                chunks,
            }
        }
    }

    proptest! {
        #[test]
        fn keys_round_trip_and_sort(a in keys(), b in keys()) {
            prop_assert_eq!(SegmentKey::decode(&a.encode()), Ok(a));
            prop_assert_eq!(a.encode().cmp(&b.encode()), a.cmp(&b));
        }

        #[test]
        fn values_round_trip_and_cut_ones_are_refused(value in values()) {
            let bytes = value.encode();
            prop_assert_eq!(SegmentValue::decode(&bytes), Ok(value));
            for length in 0..bytes.len() {
                prop_assert!(SegmentValue::decode(&bytes[..length]).is_err());
            }
            prop_assert!(SegmentValue::decode(&[bytes, vec![0]].concat()).is_err());
        }

        #[test]
        fn any_bytes_are_a_key_or_refused(bytes: Vec<u8>) {
            if let Ok(key) = SegmentKey::decode(&bytes) {
                prop_assert_eq!(key.encode(), bytes);
            }
        }
    }
}
