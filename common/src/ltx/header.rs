//! Header and trailer: encode, decode, validate.

use super::LtxError;
use crate::{Checksum, PageSize, TxidRange};

/// Bytes of a header.
pub const HEADER_BYTES: usize = 100;
/// Bytes of a trailer.
pub const TRAILER_BYTES: usize = 16;

const MAGIC: &[u8; 4] = b"LTX1";
const FLAG_NO_CHECKSUM: u32 = 1 << 1;
const PROVENANCE_MAGIC: &[u8; 4] = b"WH01";

/// walhub's own database checksums, kept in the 20 reserved bytes of the header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Provenance {
    /// Before the file; `None` when the file starts a history.
    pub pre: Option<Checksum>,
    /// After the file, as taken at the source.
    pub post: Checksum,
}

/// Facts of one LTX file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Bytes per page.
    pub page_size: PageSize,
    /// Database size in pages after the file.
    pub commit: u32,
    /// Transactions covered.
    pub range: TxidRange,
    /// Time of the newest transaction, Unix ms.
    pub timestamp_ms: i64,
    /// Byte offset of the batch in the source's WAL. Stock `replicate` needs at least 32 in level 0.
    pub wal_offset: u64,
    /// Bytes of WAL covered.
    pub wal_size: u64,
    /// Salts of that WAL.
    pub wal_salts: [u32; 2],
    /// Any value; 0 from Litestream and from agents. In files that a hub put into a destination: the lineage of the
    /// database, so that a hub without memory knows whose history it is.
    pub node_id: u64,
    /// Our own checksums; `None` in files that walhub did not write.
    pub provenance: Option<Provenance>,
}

impl Header {
    /// True when the file starts at TXID 1 and so must hold every page.
    pub fn is_snapshot(&self) -> bool {
        self.range.min().get() == 1
    }

    /// The bytes, always with the NoChecksum flag.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[0..4].copy_from_slice(MAGIC);
        out[4..8].copy_from_slice(&FLAG_NO_CHECKSUM.to_be_bytes());
        out[8..12].copy_from_slice(&self.page_size.get().to_be_bytes());
        out[12..16].copy_from_slice(&self.commit.to_be_bytes());
        out[16..24].copy_from_slice(&self.range.min().get().to_be_bytes());
        out[24..32].copy_from_slice(&self.range.max().get().to_be_bytes());
        out[32..40].copy_from_slice(&self.timestamp_ms.to_be_bytes());
        out[48..56].copy_from_slice(&self.wal_offset.to_be_bytes());
        out[56..64].copy_from_slice(&self.wal_size.to_be_bytes());
        out[64..68].copy_from_slice(&self.wal_salts[0].to_be_bytes());
        out[68..72].copy_from_slice(&self.wal_salts[1].to_be_bytes());
        out[72..80].copy_from_slice(&self.node_id.to_be_bytes());
        if let Some(provenance) = self.provenance {
            out[80..84].copy_from_slice(PROVENANCE_MAGIC);
            let pre = provenance.pre.map_or(0, Checksum::get);
            out[84..92].copy_from_slice(&pre.to_be_bytes());
            out[92..100].copy_from_slice(&provenance.post.get().to_be_bytes());
        }
        out
    }

    /// Reads and validates; accepts files with LTX's own checksums as well. `bytes` may be longer than a header.
    pub fn decode(bytes: &[u8]) -> Result<Header, LtxError> {
        Self::decode_with_flags(bytes).map(|(header, _)| header)
    }

    /// As [`Header::decode`]; the second value is true when the NoChecksum flag is set.
    pub(super) fn decode_with_flags(bytes: &[u8]) -> Result<(Header, bool), LtxError> {
        let bytes: &[u8; HEADER_BYTES] = bytes.first_chunk().ok_or(LtxError::Truncated)?;
        let u32_at = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("BUG: 4 bytes"));
        let u64_at = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().expect("BUG: 8 bytes"));
        if &bytes[0..4] != MAGIC {
            return Err(LtxError::Header("it does not begin with LTX1"));
        }
        let flags = u32_at(4);
        if flags & !FLAG_NO_CHECKSUM != 0 {
            return Err(LtxError::Header("unknown flags"));
        }
        let no_checksum = flags & FLAG_NO_CHECKSUM != 0;
        let page_size = PageSize::new(u32_at(8)).ok_or(LtxError::Header("page size"))?;
        let range =
            TxidRange::from_raw(u64_at(16), u64_at(24)).ok_or(LtxError::Header("transaction range"))?;
        let pre_apply = u64_at(40);
        let valid_pre = match (range.min().get() == 1 || no_checksum, pre_apply) {
            (true, pre) => pre == 0,
            (false, pre) => Checksum::new(pre).is_some(),
        };
        if !valid_pre {
            return Err(LtxError::Header("pre-apply checksum"));
        }
        let (wal_offset, wal_size) = (u64_at(48), u64_at(56));
        if i64::try_from(wal_offset).is_err() || i64::try_from(wal_size).is_err() {
            return Err(LtxError::Header("negative WAL offset or size"));
        }
        let wal_salts = [u32_at(64), u32_at(68)];
        if wal_offset == 0 && (wal_size != 0 || wal_salts != [0, 0]) {
            return Err(LtxError::Header("WAL size or salts without a WAL offset"));
        }
        let header = Header {
            page_size,
            commit: u32_at(12),
            range,
            timestamp_ms: u64_at(32) as i64,
            wal_offset,
            wal_size,
            wal_salts,
            node_id: u64_at(72),
            provenance: decode_provenance(&bytes[80..100]),
        };
        Ok((header, no_checksum))
    }
}

/// Reserved bytes that are not ours are not a fault: the format leaves them free.
fn decode_provenance(reserved: &[u8]) -> Option<Provenance> {
    if &reserved[0..4] != PROVENANCE_MAGIC {
        return None;
    }
    let u64_at = |at: usize| u64::from_be_bytes(reserved[at..at + 8].try_into().expect("BUG: 8 bytes"));
    let pre = match u64_at(4) {
        0 => None,
        pre => Some(Checksum::new(pre)?),
    };
    Some(Provenance { pre, post: Checksum::new(u64_at(12))? })
}

/// The last 16 bytes of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Trailer {
    /// LTX's own database checksum; `None` under NoChecksum.
    pub post_apply: Option<Checksum>,
    /// File checksum.
    pub file: Checksum,
}

impl Trailer {
    pub(super) fn decode(bytes: &[u8; TRAILER_BYTES], no_checksum: bool) -> Result<Trailer, LtxError> {
        let post = u64::from_be_bytes(bytes[0..8].try_into().expect("BUG: 8 bytes"));
        let file = u64::from_be_bytes(bytes[8..16].try_into().expect("BUG: 8 bytes"));
        let post_apply = match (no_checksum, post) {
            (true, 0) => None,
            (true, _) => return Err(LtxError::Trailer("post-apply checksum under NoChecksum")),
            (false, post) => {
                Some(Checksum::new(post).ok_or(LtxError::Trailer("post-apply checksum without bit 63"))?)
            }
        };
        let file = Checksum::new(file).ok_or(LtxError::Trailer("file checksum without bit 63"))?;
        Ok(Trailer { post_apply, file })
    }
}
