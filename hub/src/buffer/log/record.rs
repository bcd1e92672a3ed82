//! Bytes of one log record. A record is
//!
//! ```text
//! prefix (48)  magic u32 · kind u8 · flags u8 · head bytes u16 · payload bytes u32 · 0 u32 · synced u64 · salt u64
//!              · payload CRC u64 · header CRC u64 (over the 40 bytes before it and the head)
//! head         what the kind says (see `head.rs`)
//! padding      zeros, so that the record is a multiple of 8 bytes
//! payload      LTX bytes of a chunk, or the entries of a cursor table
//! ```
//!
//! Numbers are big-endian, checksums CRC-64/NVME. The header CRC stands alone, so a flipped bit in a payload spoils one
//! segment and not the framing of all that follow. The salt is drawn per file: bytes inside a payload can never pass for
//! a record. `synced` is the offset in the same file up to which everything was on disk when the record was written: it
//! tells damage to acknowledged bytes from the torn end of a group that was never acknowledged.

use super::head::Head;
use crc_fast::{CrcAlgorithm, Digest};
use walhub_common::limits::MAX_CHUNK_BYTES;

/// Bytes of a prefix.
pub(in crate::buffer) const PREFIX_BYTES: usize = 48;
/// Longest head.
pub(in crate::buffer) const MAX_HEAD_BYTES: usize = 8 * 1024;
/// Records start at multiples of this.
pub(in crate::buffer) const ALIGN: usize = 8;

const MAGIC: [u8; 4] = *b"wRec";

/// CRC-64/NVME of `bytes`.
pub(in crate::buffer) fn crc(bytes: &[u8]) -> u64 {
    crc_fast::checksum(CrcAlgorithm::Crc64Nvme, bytes)
}

/// Length and checksum of a payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::buffer) struct Payload {
    /// Bytes.
    pub(in crate::buffer) bytes: u32,
    /// Their CRC.
    pub(in crate::buffer) crc: u64,
}

impl Payload {
    /// Of these bytes.
    pub(in crate::buffer) fn of(bytes: &[u8]) -> Payload {
        let length = u32::try_from(bytes.len()).expect("BUG: payload over 4 GiB");
        Payload { bytes: length, crc: crc(bytes) }
    }

    /// Why these are not the bytes that were written, if they are not.
    pub(in crate::buffer) fn verify(&self, bytes: &[u8]) -> Result<(), Malformed> {
        if bytes.len() != self.bytes as usize || crc(bytes) != self.crc {
            return Err(Malformed("the payload does not match its checksum"));
        }
        Ok(())
    }
}

/// Why bytes are no record.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub(in crate::buffer) struct Malformed(pub(in crate::buffer) &'static str);

/// A record without its payload.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::buffer) struct Header {
    /// What it says.
    pub(in crate::buffer) head: Head,
    /// What follows.
    pub(in crate::buffer) payload: Payload,
    /// Everything before this offset was on disk when the record was written.
    pub(in crate::buffer) synced: u64,
    /// Bytes from the start of the record to its payload.
    pub(in crate::buffer) payload_at: u64,
}

impl Header {
    /// Bytes of the whole record.
    pub(in crate::buffer) fn record_bytes(&self) -> u64 {
        self.payload_at + u64::from(self.payload.bytes)
    }
}

/// Bytes of a record with a head and a payload of these lengths.
pub(in crate::buffer) fn record_bytes(head: usize, payload: usize) -> usize {
    (PREFIX_BYTES + head + payload).next_multiple_of(ALIGN)
}

/// Appends everything of a record but its payload to `out`.
pub(in crate::buffer) fn encode(out: &mut Vec<u8>, head: &Head, payload: Payload, salt: u64, synced: u64) {
    let start = out.len();
    out.extend_from_slice(&[0; PREFIX_BYTES]);
    let kind = head.encode(out);
    let head_bytes = out.len() - start - PREFIX_BYTES;
    debug_assert!(head_bytes <= MAX_HEAD_BYTES, "BUG: head of {head_bytes} bytes");
    let prefix = &mut out[start..start + PREFIX_BYTES];
    prefix[0..4].copy_from_slice(&MAGIC);
    prefix[4] = kind;
    prefix[6..8].copy_from_slice(&u16::try_from(head_bytes).expect("BUG: head over 64 KiB").to_be_bytes());
    prefix[8..12].copy_from_slice(&payload.bytes.to_be_bytes());
    prefix[16..24].copy_from_slice(&synced.to_be_bytes());
    prefix[24..32].copy_from_slice(&salt.to_be_bytes());
    prefix[32..40].copy_from_slice(&payload.crc.to_be_bytes());
    let crc = header_crc(&out[start..start + 40], &out[start + PREFIX_BYTES..]);
    out[start + 40..start + PREFIX_BYTES].copy_from_slice(&crc.to_be_bytes());
    let total = record_bytes(head_bytes, payload.bytes as usize);
    out.resize(start + total - payload.bytes as usize, 0);
}

fn header_crc(fields: &[u8], head: &[u8]) -> u64 {
    let mut digest = Digest::new(CrcAlgorithm::Crc64Nvme);
    digest.update(fields);
    digest.update(head);
    digest.finalize()
}

fn number(bytes: &[u8], at: usize) -> u64 {
    let mut raw = [0; 8];
    raw.copy_from_slice(&bytes[at..at + 8]);
    u64::from_be_bytes(raw)
}

/// True when a record of the file with this salt may start here; a cheap test before [`decode`].
pub(in crate::buffer) fn looks_like_one(prefix: &[u8], salt: u64) -> bool {
    prefix.len() >= PREFIX_BYTES && prefix[0..4] == MAGIC && number(prefix, 24) == salt
}

/// The salt of the good record at the start of `bytes`, whatever it is.
pub(in crate::buffer) fn salt_of(bytes: &[u8]) -> Option<u64> {
    let prefix = bytes.first_chunk()?;
    let salt = number(prefix, 24);
    let head = head_bytes(prefix, salt).ok()?;
    decode(bytes.get(..PREFIX_BYTES + head)?).ok().map(|_| salt)
}

/// Head bytes that the prefix announces.
pub(in crate::buffer) fn head_bytes(prefix: &[u8; PREFIX_BYTES], salt: u64) -> Result<usize, Malformed> {
    if prefix[0..4] != MAGIC {
        return Err(Malformed("no record starts here"));
    }
    if number(prefix, 24) != salt {
        return Err(Malformed("a record of another file"));
    }
    let head_bytes = usize::from(u16::from_be_bytes([prefix[6], prefix[7]]));
    if head_bytes > MAX_HEAD_BYTES {
        return Err(Malformed("the head is too long"));
    }
    Ok(head_bytes)
}

/// Decodes prefix and head, whose length [`head_bytes`] gave.
pub(in crate::buffer) fn decode(bytes: &[u8]) -> Result<Header, Malformed> {
    let (prefix, head) = bytes.split_at_checked(PREFIX_BYTES).ok_or(Malformed("the record is cut off"))?;
    if header_crc(&prefix[..40], head) != number(prefix, 40) {
        return Err(Malformed("the header does not match its checksum"));
    }
    let payload_bytes = u32::from_be_bytes([prefix[8], prefix[9], prefix[10], prefix[11]]);
    if payload_bytes as usize > MAX_CHUNK_BYTES {
        return Err(Malformed("the payload is too long"));
    }
    let total = record_bytes(head.len(), payload_bytes as usize);
    Ok(Header {
        head: Head::decode(prefix[4], head)?,
        payload: Payload { bytes: payload_bytes, crc: number(prefix, 32) },
        synced: number(prefix, 16),
        payload_at: total as u64 - u64::from(payload_bytes),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::log::head::samples;

    fn record(head: &Head, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![1, 2, 3, 4, 5, 6, 7, 8];
        encode(&mut out, head, Payload::of(payload), 77, 4096);
        out.extend_from_slice(payload);
        out.split_off(8)
    }

    fn parse(bytes: &[u8], salt: u64) -> Result<Header, Malformed> {
        let prefix = bytes.first_chunk().ok_or(Malformed("short"))?;
        let head = head_bytes(prefix, salt)?;
        decode(bytes.get(..PREFIX_BYTES + head).ok_or(Malformed("short"))?)
    }

    #[test]
    fn the_crc_is_the_one_of_nvme() {
        assert_eq!(crc(b"123456789"), 0xae8b_1486_0a79_9888);
    }

    #[test]
    fn records_round_trip_aligned() {
        for head in samples() {
            for payload in [&b""[..], b"1", b"12345678", &[9; 1000]] {
                let bytes = record(&head, payload);
                assert_eq!(bytes.len() % ALIGN, 0);
                let header = parse(&bytes, 77).unwrap();
                assert_eq!(header.head, head);
                assert_eq!(header.synced, 4096);
                assert_eq!(header.record_bytes(), bytes.len() as u64);
                let at = usize::try_from(header.payload_at).unwrap();
                assert_eq!(&bytes[at..], payload);
                header.payload.verify(&bytes[at..]).unwrap();
            }
        }
    }

    #[test]
    fn every_flipped_bit_of_a_header_is_noticed() {
        for head in samples() {
            let good = record(&head, b"");
            for bit in 0..good.len() * 8 {
                let mut bad = good.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                match parse(&bad, 77) {
                    // Padding is no part of the record's meaning.
                    Ok(header) => assert_eq!(header.head, head, "bit {bit} of {head:?}"),
                    Err(_) => continue,
                }
                let used = PREFIX_BYTES + head_bytes(good.first_chunk().unwrap(), 77).unwrap();
                assert!(bit / 8 >= used, "bit {bit} of {head:?} went unnoticed");
            }
        }
    }

    #[test]
    fn records_of_another_file_and_cut_records_are_refused() {
        let bytes = record(&samples()[0], b"abc");
        assert!(parse(&bytes, 78).is_err());
        for length in 0..bytes.len() - 8 {
            assert!(parse(&bytes[..length.min(PREFIX_BYTES + 10)], 77).is_err());
        }
        assert!(Payload::of(b"abc").verify(b"abd").is_err());
        assert!(Payload::of(b"abc").verify(b"ab").is_err());
    }
}
