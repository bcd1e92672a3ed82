//! What a record says: the kinds of records and the bytes of their heads.

use super::record::Malformed;
use crate::buffer::{DatabaseId, SegmentMeta};
use walhub_common::{AgentName, Checksum, DatabaseKey, DatabaseName, DestinationName, Pos, Txid, TxidRange};

/// A place in the log: file number and byte offset.
pub(in crate::buffer) type At = (u64, u64);

/// Longest path kept of a database on its node, bytes: Linux's own bound.
pub(in crate::buffer) const MAX_PATH_BYTES: usize = 4096;

// Persisted: never renumber.
const CHUNK: u8 = 1;
const DATABASE: u8 = 2;
const STATE: u8 = 3;
const CURSORS: u8 = 4;
const SNAPSHOT_END: u8 = 5;
const REWRITTEN: u8 = 6;

/// One chunk of a segment; the payload is its LTX bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::buffer) struct ChunkHead {
    /// Its database.
    pub(in crate::buffer) database: DatabaseId,
    /// The segment.
    pub(in crate::buffer) meta: SegmentMeta,
    /// From 0.
    pub(in crate::buffer) number: u32,
    /// The last one of the segment.
    pub(in crate::buffer) last: bool,
    /// What came before; `None` for chunk 0.
    pub(in crate::buffer) before: Option<Before>,
    /// The segment stands for all those within its range that lie before it in the log: it moves no position.
    pub(in crate::buffer) rewritten: bool,
}

/// The chunks of a segment before this one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::buffer) struct Before {
    /// Chunk 0.
    pub(in crate::buffer) first: At,
    /// The chunk just before.
    pub(in crate::buffer) previous: At,
    /// Payload bytes of all of them.
    pub(in crate::buffer) bytes: u64,
}

/// A database as registered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::buffer) struct DatabaseHead {
    /// Its number.
    pub(in crate::buffer) id: DatabaseId,
    /// Identity of its history.
    pub(in crate::buffer) lineage: u64,
    /// Its name.
    pub(in crate::buffer) key: DatabaseKey,
    /// Path on the node.
    pub(in crate::buffer) path: String,
}

/// The head of a record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::buffer) enum Head {
    /// A piece of a segment.
    Chunk(ChunkHead),
    /// A database was registered, or its path changed.
    Database(DatabaseHead),
    /// A database and where it stands: in the snapshot, when the file was begun; behind it, a position that was adopted
    /// from a destination.
    State {
        /// The database.
        database: DatabaseHead,
        /// Its position.
        position: Option<Pos>,
        /// Hub time of the position.
        time_ms: i64,
    },
    /// Snapshot: cursors of a lane; the payload is a table of them.
    Cursors {
        /// The lane.
        lane: DestinationName,
    },
    /// End of the snapshot.
    SnapshotEnd {
        /// The number that the next new database gets.
        next_id: u64,
    },
}

impl Head {
    /// Appends the head and gives its kind.
    pub(super) fn encode(&self, out: &mut Vec<u8>) -> u8 {
        match self {
            Head::Chunk(chunk) => {
                chunk.encode(out);
                if chunk.rewritten { REWRITTEN } else { CHUNK }
            }
            Head::Database(database) => {
                database.encode(out);
                DATABASE
            }
            Head::State { database, position, time_ms } => {
                put(out, &[position.map_or(0, |p| p.txid.get()), position.map_or(0, |p| p.checksum.get())]);
                out.extend_from_slice(&time_ms.to_be_bytes());
                database.encode(out);
                STATE
            }
            Head::Cursors { lane } => {
                put_text(out, lane.as_str());
                CURSORS
            }
            Head::SnapshotEnd { next_id } => {
                put(out, &[*next_id]);
                SNAPSHOT_END
            }
        }
    }

    /// Decodes a head of this kind.
    pub(super) fn decode(kind: u8, bytes: &[u8]) -> Result<Head, Malformed> {
        let mut fields = Fields(bytes);
        let head = match kind {
            CHUNK | REWRITTEN => Head::Chunk(ChunkHead::decode(&mut fields, kind == REWRITTEN)?),
            DATABASE => Head::Database(DatabaseHead::decode(&mut fields)?),
            STATE => {
                let position = match (Txid::new(fields.number()?), Checksum::new(fields.number()?)) {
                    (Some(txid), Some(checksum)) => Some(Pos { txid, checksum }),
                    (None, None) => None,
                    _ => return Err(Malformed("half a position")),
                };
                let time_ms = fields.time()?;
                Head::State { database: DatabaseHead::decode(&mut fields)?, position, time_ms }
            }
            CURSORS => Head::Cursors {
                lane: DestinationName::new(fields.text()?).map_err(|_| Malformed("no destination name"))?,
            },
            SNAPSHOT_END => Head::SnapshotEnd { next_id: fields.number()? },
            _ => return Err(Malformed("unknown kind of record")),
        };
        if fields.0.is_empty() { Ok(head) } else { Err(Malformed("the head is longer than its fields")) }
    }
}

impl ChunkHead {
    fn encode(&self, out: &mut Vec<u8>) {
        let meta = &self.meta;
        put(
            out,
            &[
                self.database.0,
                meta.range.min().get(),
                meta.range.max().get(),
                meta.pre.map_or(0, Checksum::get),
                meta.post.get(),
            ],
        );
        out.extend_from_slice(&meta.time_ms.to_be_bytes());
        out.extend_from_slice(&meta.agent_time_ms.to_be_bytes());
        put(out, &[u64::from(self.number) << 1 | u64::from(self.last)]);
        if let Some(before) = &self.before {
            let Before { first, previous, bytes } = before;
            put(out, &[first.0, first.1, previous.0, previous.1, *bytes]);
        }
    }

    fn decode(fields: &mut Fields<'_>, rewritten: bool) -> Result<ChunkHead, Malformed> {
        let database = DatabaseId(fields.number()?);
        let range =
            TxidRange::from_raw(fields.number()?, fields.number()?).ok_or(Malformed("no TXID range"))?;
        let pre = match fields.number()? {
            0 => None,
            pre => Some(Checksum::new(pre).ok_or(Malformed("no checksum"))?),
        };
        let post = Checksum::new(fields.number()?).ok_or(Malformed("no checksum"))?;
        let meta = SegmentMeta { range, pre, post, time_ms: fields.time()?, agent_time_ms: fields.time()? };
        let numbered = fields.number()?;
        let number = u32::try_from(numbered >> 1).map_err(|_| Malformed("no chunk number"))?;
        let before = if number == 0 {
            None
        } else {
            let first = (fields.number()?, fields.number()?);
            let previous = (fields.number()?, fields.number()?);
            Some(Before { first, previous, bytes: fields.number()? })
        };
        Ok(ChunkHead { database, meta, number, last: numbered & 1 == 1, before, rewritten })
    }
}

impl DatabaseHead {
    fn encode(&self, out: &mut Vec<u8>) {
        put(out, &[self.id.0, self.lineage]);
        put_text(out, self.key.agent.as_str());
        put_text(out, self.key.name.as_str());
        put_text(out, &self.path);
    }

    fn decode(fields: &mut Fields<'_>) -> Result<DatabaseHead, Malformed> {
        let (id, lineage) = (DatabaseId(fields.number()?), fields.number()?);
        let agent = AgentName::new(fields.text()?).map_err(|_| Malformed("no agent name"))?;
        let name = DatabaseName::new(fields.text()?).map_err(|_| Malformed("no database name"))?;
        let path = fields.text()?.to_owned();
        Ok(DatabaseHead { id, lineage, key: DatabaseKey::new(agent, name), path })
    }
}

/// The payload of a cursor table.
pub(in crate::buffer) fn encode_cursors(entries: &[(DatabaseId, Txid)]) -> Vec<u8> {
    let mut out = Vec::with_capacity(entries.len() * 16);
    for (database, txid) in entries {
        put(&mut out, &[database.0, txid.get()]);
    }
    out
}

/// The entries of a cursor table.
pub(in crate::buffer) fn decode_cursors(bytes: &[u8]) -> Result<Vec<(DatabaseId, Txid)>, Malformed> {
    let mut fields = Fields(bytes);
    let mut entries = Vec::with_capacity(bytes.len() / 16);
    while !fields.0.is_empty() {
        let database = DatabaseId(fields.number()?);
        entries.push((database, Txid::new(fields.number()?).ok_or(Malformed("no TXID"))?));
    }
    Ok(entries)
}

fn put(out: &mut Vec<u8>, numbers: &[u64]) {
    for number in numbers {
        out.extend_from_slice(&number.to_be_bytes());
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&u16::try_from(text.len()).expect("BUG: text over 64 KiB").to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (bytes, rest) = self.0.split_first_chunk::<N>().ok_or(Malformed("the head is too short"))?;
        self.0 = rest;
        Ok(*bytes)
    }

    fn number(&mut self) -> Result<u64, Malformed> {
        self.take().map(u64::from_be_bytes)
    }

    fn time(&mut self) -> Result<i64, Malformed> {
        self.take().map(i64::from_be_bytes)
    }

    fn text(&mut self) -> Result<&'a str, Malformed> {
        let length = usize::from(u16::from_be_bytes(self.take()?));
        let (text, rest) = self.0.split_at_checked(length).ok_or(Malformed("the head is too short"))?;
        self.0 = rest;
        std::str::from_utf8(text).map_err(|_| Malformed("text is not UTF-8"))
    }
}

/// One head of every kind.
#[cfg(test)]
pub(super) fn samples() -> Vec<Head> {
    let checksum = |n: u64| Checksum::new(1 << 63 | n).unwrap();
    let meta = SegmentMeta {
        range: TxidRange::from_raw(8, 9).unwrap(),
        pre: Some(checksum(1)),
        post: checksum(2),
        time_ms: 1_700_000_000_000,
        agent_time_ms: -5,
    };
    let first = SegmentMeta { range: TxidRange::single(Txid::FIRST), pre: None, ..meta };
    let database = DatabaseHead {
        id: DatabaseId(7),
        lineage: u64::MAX,
        key: "node-1/app.db".parse().unwrap(),
        path: "/srv/ä/app.db".to_owned(),
    };
    let before = Before { first: (1, 64), previous: (2, 128), bytes: 3_000_000 };
    let chunk = ChunkHead {
        database: DatabaseId(7),
        meta,
        number: 3,
        last: true,
        before: Some(before),
        rewritten: false,
    };
    vec![
        Head::Chunk(chunk),
        Head::Chunk(ChunkHead { last: false, ..chunk }),
        Head::Chunk(ChunkHead { rewritten: true, ..chunk }),
        Head::Chunk(ChunkHead { meta: first, number: 0, before: None, ..chunk }),
        Head::Database(database.clone()),
        Head::State { database: database.clone(), position: None, time_ms: 0 },
        Head::State {
            database,
            position: Some(Pos { txid: Txid::FIRST, checksum: checksum(3) }),
            time_ms: 44,
        },
        Head::Cursors { lane: DestinationName::new("backup").unwrap() },
        Head::SnapshotEnd { next_id: 12 },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_of_a_wrong_length_are_refused() {
        for head in samples() {
            let mut bytes = Vec::new();
            let kind = head.encode(&mut bytes);
            assert_eq!(Head::decode(kind, &bytes), Ok(head.clone()));
            for length in 0..bytes.len() {
                assert!(Head::decode(kind, &bytes[..length]).is_err(), "{head:?} cut to {length}");
            }
            bytes.push(0);
            assert!(Head::decode(kind, &bytes).is_err());
            assert!(Head::decode(99, &bytes).is_err());
        }
    }

    #[test]
    fn cursor_tables_round_trip() {
        let entries = [(DatabaseId(1), Txid::FIRST), (DatabaseId(9), Txid::new(77).unwrap())];
        let bytes = encode_cursors(&entries);
        assert_eq!(decode_cursors(&bytes).unwrap(), entries);
        assert!(decode_cursors(&bytes[..20]).is_err());
        assert!(decode_cursors(&[0; 16]).is_err());
    }
}
