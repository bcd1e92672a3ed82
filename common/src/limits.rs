//! Every bound that a peer, a bucket or a disk could push on, in one place.

/// Data bytes in one chunk of a segment.
pub const MAX_CHUNK_BYTES: usize = 1024 * 1024;
/// A gRPC message: a chunk and its fields.
pub const MAX_MESSAGE_BYTES: usize = MAX_CHUNK_BYTES + 64 * 1024;
/// Pages in a database: SQLite's own bound.
pub const MAX_PAGES: u32 = 0xffff_fffe;
/// A gRPC request that carries no data.
pub const MAX_REQUEST_BYTES: usize = 64 * 1024;
/// Databases that one agent may register.
pub const MAX_DATABASES_PER_AGENT: usize = 20_000;
/// Segment bytes of one agent that wait for their fsync in the hub.
pub const MAX_INFLIGHT_BYTES_PER_AGENT: usize = 16 * 1024 * 1024;
/// Unacked segment bytes that one agent keeps in memory for a resend, all databases together.
pub const MAX_WINDOW_BYTES: usize = 8 * 1024 * 1024;
/// Page bytes, before compression, in one part of a first snapshot.
pub const MAX_PART_BYTES: usize = 8 * 1024 * 1024;
/// An LTX file of so many page bytes that do not compress.
pub const MAX_PART_FILE_BYTES: u64 = 2 * MAX_PART_BYTES as u64;
/// Bytes of an LTX page index that a reader will hold.
pub const MAX_INDEX_BYTES: usize = 1 << 30;
/// Bytes of an LTX page index that stay in memory where it may be spooled to disk.
pub const MAX_KEPT_INDEX_BYTES: usize = 1 << 20;
/// A TLS or HTTP/2 handshake.
pub const HANDSHAKE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

const _: () = assert!(MAX_CHUNK_BYTES < MAX_MESSAGE_BYTES);
const _: () = assert!(MAX_WINDOW_BYTES >= 2 * MAX_CHUNK_BYTES);
