//! Every persisted key, one file each.
//!
//! | tree | key | value |
//! |---|---|---|
//! | `segments` | (database, first TXID) | facts and place of a segment |
//! | `cursors` | (lane, database) | last TXID taken |
//! | `checkpoint` | the only one | how far the log is indexed |
//!
//! Keys and values start with a version byte. Numbers in keys are big-endian, so that keys sort as what they mean.

pub mod checkpoint;
pub mod cursor;
pub mod segment;

/// Bytes that are no key or value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub &'static str);

/// A key: its bytes sort as it does.
pub trait Key: Sized {
    /// Its bytes.
    fn encode(&self) -> Vec<u8>;
    /// Reads them back.
    fn decode(bytes: &[u8]) -> Result<Self, Malformed>;
}

/// A value.
pub trait Value: Sized {
    /// Its bytes.
    fn encode(&self) -> Vec<u8>;
    /// Reads them back.
    fn decode(bytes: &[u8]) -> Result<Self, Malformed>;
}

/// The version of every key and value so far.
const VERSION: u8 = 1;

/// Reads fields off the front of bytes.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// After the version byte.
    fn versioned(bytes: &'a [u8]) -> Result<Self, Malformed> {
        match bytes.split_first() {
            Some((&VERSION, rest)) => Ok(Self(rest)),
            Some(_) => Err(Malformed("unknown version")),
            None => Err(Malformed("empty")),
        }
    }

    fn number(&mut self) -> Result<u64, Malformed> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(Malformed("too short"))?;
        self.0 = rest;
        Ok(u64::from_be_bytes(*bytes))
    }

    /// A number of 1 to 10 bytes, 7 bits each, low ones first.
    fn short_number(&mut self) -> Result<u64, Malformed> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first().ok_or(Malformed("too short"))?;
            self.0 = rest;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed("a number of more than 64 bits"))
    }

    fn end(self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed("too long")) }
    }
}

fn put_short_number(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn short_numbers_round_trip(value: u64, small in 0u64..300) {
            for value in [value, small] {
                let mut bytes = Vec::new();
                put_short_number(&mut bytes, value);
                let mut fields = Fields(&bytes);
                prop_assert_eq!(fields.short_number(), Ok(value));
                prop_assert!(fields.end().is_ok());
            }
        }

        #[test]
        fn any_bytes_give_a_number_or_an_error(bytes: Vec<u8>) {
            let _ = Fields(&bytes).short_number();
        }
    }

    #[test]
    fn a_number_of_65_bits_is_refused() {
        assert!(Fields(&[0xff; 10]).short_number().is_err());
        assert!(Fields(&[0x80; 10]).short_number().is_err());
    }
}
