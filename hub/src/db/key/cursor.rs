//! Up to where a lane has taken a database.

use super::{Fields, Key, Malformed, VERSION, Value};
use walhub_common::{DestinationName, Txid};

/// (lane, database). Sorted by lane, then database.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct CursorKey {
    /// The lane.
    pub lane: DestinationName,
    /// The database's number.
    pub database: u64,
}

impl Key for CursorKey {
    fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.extend_from_slice(self.lane.as_str().as_bytes());
        out.push(0);
        out.extend_from_slice(&self.database.to_be_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let fields = Fields::versioned(bytes)?;
        let end = fields.0.iter().position(|b| *b == 0).ok_or(Malformed("no end of the name"))?;
        let (name, rest) = fields.0.split_at(end);
        let name = std::str::from_utf8(name).map_err(|_| Malformed("the name is not UTF-8"))?;
        let lane = DestinationName::new(name).map_err(|_| Malformed("no destination name"))?;
        let mut rest = Fields(&rest[1..]);
        let database = rest.number()?;
        rest.end()?;
        Ok(Self { lane, database })
    }
}

impl Value for Txid {
    fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.extend_from_slice(&self.get().to_be_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut fields = Fields::versioned(bytes)?;
        let txid = Txid::new(fields.number()?).ok_or(Malformed("no TXID"))?;
        fields.end()?;
        Ok(txid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn keys() -> impl Strategy<Value = CursorKey> {
        ("[a-c0-9_-]{1,4}", 0u64..600)
            .prop_map(|(lane, database)| CursorKey { lane: DestinationName::new(lane).unwrap(), database })
    }

    proptest! {
        #[test]
        fn keys_round_trip_and_sort(a in keys(), b in keys()) {
            prop_assert_eq!(CursorKey::decode(&a.encode()), Ok(a.clone()));
            prop_assert_eq!(a.encode().cmp(&b.encode()), a.cmp(&b));
        }

        #[test]
        fn any_bytes_are_a_key_or_refused(bytes: Vec<u8>) {
            if let Ok(key) = CursorKey::decode(&bytes) {
                prop_assert_eq!(key.encode(), bytes);
            }
        }

        #[test]
        fn values_round_trip(txid in 1u64..) {
            let txid = Txid::new(txid).unwrap();
            prop_assert_eq!(<Txid as Value>::decode(&Value::encode(&txid)), Ok(txid));
        }
    }

    #[test]
    fn cut_and_foreign_bytes_are_refused() {
        let key = CursorKey { lane: DestinationName::new("disk").unwrap(), database: 7 };
        let bytes = key.encode();
        for length in 0..bytes.len() {
            assert!(CursorKey::decode(&bytes[..length]).is_err());
        }
        assert!(CursorKey::decode(&[bytes, vec![0]].concat()).is_err());
        assert!(<Txid as Value>::decode(&[VERSION, 0, 0, 0, 0, 0, 0, 0, 0]).is_err());
        assert!(<Txid as Value>::decode(&[VERSION, 1]).is_err());
    }
}
