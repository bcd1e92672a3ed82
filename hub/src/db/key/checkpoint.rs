//! How far the log is indexed.

use super::{Fields, Key, Malformed, VERSION, Value};

/// The only key of its tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckpointKey;

/// A place in the log, named so that another log's place is not taken for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckpointValue {
    /// Which log.
    pub log_id: u64,
    /// Which file.
    pub file: u64,
    /// That file's salt.
    pub salt: u64,
    /// Everything before this offset is indexed.
    pub offset: u64,
}

impl Key for CheckpointKey {
    fn encode(&self) -> Vec<u8> {
        vec![VERSION]
    }

    fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        Fields::versioned(bytes)?.end().map(|()| CheckpointKey)
    }
}

impl Value for CheckpointValue {
    fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        for number in [self.log_id, self.file, self.salt, self.offset] {
            out.extend_from_slice(&number.to_be_bytes());
        }
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut fields = Fields::versioned(bytes)?;
        let (log_id, file) = (fields.number()?, fields.number()?);
        let (salt, offset) = (fields.number()?, fields.number()?);
        fields.end()?;
        Ok(Self { log_id, file, salt, offset })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_and_refuses_other_bytes() {
        assert_eq!(CheckpointKey::decode(&CheckpointKey.encode()), Ok(CheckpointKey));
        assert!(CheckpointKey::decode(&[]).is_err());
        assert!(CheckpointKey::decode(&[2]).is_err());
        let value = CheckpointValue { log_id: u64::MAX, file: 2, salt: 3, offset: 4 };
        let bytes = value.encode();
        assert_eq!(CheckpointValue::decode(&bytes), Ok(value));
        for length in 0..bytes.len() {
            assert!(CheckpointValue::decode(&bytes[..length]).is_err());
        }
        assert!(CheckpointValue::decode(&[bytes, vec![0]].concat()).is_err());
    }
}
