//! The bytes of a mirror. No I/O.
//!
//! ```text
//! magic (8) | version (4) | length (8) | HubMirror | BLAKE3 of all before (32)        numbers big-endian
//! ```
//! The frame is the same in every version; what a hub of an older version must not read has a higher one. Bytes that are not
//! exactly this are refused, whatever they are.

use bytes::Bytes;
use walhub_proto::{Message, v1};

/// Longest protobuf message that is written or read: some 300,000 databases.
pub const MAX_BODY_BYTES: usize = 64 << 20;
/// Longest object.
pub const MAX_BYTES: usize = MAX_BODY_BYTES + HEAD_BYTES + HASH_BYTES;
/// Written, and the newest that is read.
pub const VERSION: u32 = 1;

const MAGIC: [u8; 8] = *b"WHMIRROR";
const HEAD_BYTES: usize = 8 + 4 + 8;
const HASH_BYTES: usize = 32;

/// Why bytes are no mirror that can be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FormatError {
    /// They are damaged, or something else.
    #[error("{0}")]
    Damaged(String),
    /// A newer hub wrote them.
    #[error(
        "it was written by a newer version of walhub-hub (format {found}, this one reads {VERSION}): use that version"
    )]
    Newer {
        /// Its version.
        found: u32,
    },
}

fn damaged<T>(why: impl Into<String>) -> Result<T, FormatError> {
    Err(FormatError::Damaged(why.into()))
}

/// The bytes of a message that is not longer than [`MAX_BODY_BYTES`].
pub fn seal(mirror: &v1::HubMirror) -> Bytes {
    frame(VERSION, &mirror.encode_to_vec())
}

fn frame(version: u32, body: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(HEAD_BYTES + body.len() + HASH_BYTES);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&version.to_be_bytes());
    out.extend_from_slice(&(body.len() as u64).to_be_bytes());
    out.extend_from_slice(body);
    let hash = blake3::hash(&out);
    out.extend_from_slice(hash.as_bytes());
    out.into()
}

/// The message.
pub fn open(bytes: &[u8]) -> Result<v1::HubMirror, FormatError> {
    let Some((sealed, hash)) = bytes.split_last_chunk::<HASH_BYTES>() else {
        return damaged(format!("it has {} bytes only", bytes.len()));
    };
    let Some((head, body)) = sealed.split_first_chunk::<HEAD_BYTES>() else {
        return damaged(format!("it has {} bytes only", bytes.len()));
    };
    let [magic @ .., _, _, _, _, _, _, _, _, _, _, _, _] = head;
    if *magic != MAGIC {
        return damaged("it is no mirror");
    }
    if blake3::hash(sealed) != *hash {
        return damaged("its checksum does not match");
    }
    let [.., v0, v1, v2, v3, _, _, _, _, _, _, _, _] = *head;
    let version = u32::from_be_bytes([v0, v1, v2, v3]);
    if version > VERSION {
        return Err(FormatError::Newer { found: version });
    }
    let [.., l0, l1, l2, l3, l4, l5, l6, l7] = *head;
    let length = u64::from_be_bytes([l0, l1, l2, l3, l4, l5, l6, l7]);
    if version == 0 || length != body.len() as u64 || body.len() > MAX_BODY_BYTES {
        return damaged("its head contradicts its length");
    }
    v1::HubMirror::decode(body).or_else(|error| damaged(error.to_string()))
}

/// What a hub of a later version would write.
#[cfg(any(test, feature = "testutil"))]
pub fn seal_as(version: u32, mirror: &v1::HubMirror) -> Bytes {
    frame(version, &mirror.encode_to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_other_byte_is_noticed() {
        let mirror = v1::HubMirror { hub_id: "x".repeat(32), seq: 7, ..v1::HubMirror::default() };
        let good = seal(&mirror);
        assert_eq!(open(&good), Ok(mirror.clone()));
        for cut in 0..good.len() {
            assert!(matches!(open(&good[..cut]), Err(FormatError::Damaged(_))), "cut to {cut}");
        }
        for at in 0..good.len() {
            let mut bad = good.to_vec();
            bad[at] ^= 1 << (at % 8);
            assert!(matches!(open(&bad), Err(FormatError::Damaged(_))), "byte {at}");
        }
        let longer = [&good[..], b"\0"].concat();
        assert!(open(&longer).is_err());
        assert_eq!(open(&seal_as(2, &mirror)), Err(FormatError::Newer { found: 2 }));
        assert!(matches!(open(&seal_as(0, &mirror)), Err(FormatError::Damaged(_))));
    }

    #[test]
    fn any_bytes_are_judged_without_a_panic() {
        let mut seed = 1_u64;
        for length in 0..600 {
            let bytes: Vec<u8> = (0..length)
                .map(|_| {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (seed >> 56) as u8
                })
                .collect();
            assert!(open(&bytes).is_err());
            // Well framed nonsense.
            let _ = open(&frame(VERSION, &bytes));
        }
    }
}
