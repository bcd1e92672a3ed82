//! One open database of a session: where it stands, and what its next chunk is. No I/O.

use super::assemble::{Assembly, Facts};
use super::dedup::{Decision, decide};
use super::error::Refusal;
use super::session::Stage;
use crate::buffer::{DatabaseId, Registered};
use walhub_common::{DatabaseKey, Pos, Txid, clock};
use walhub_proto::v1::SegmentChunk;

/// How far a handle has come.
#[derive(Debug)]
pub(super) enum Phase {
    /// Waits for its registration.
    Opening {
        /// Lineage the agent has; 0 for none.
        lineage: u64,
        /// Position the agent has.
        position: Option<Pos>,
    },
    /// Takes segments.
    Taking,
    /// Will be refused once what is under way has ended: until then the position to name is not known.
    Refusing(Refusal),
    /// Takes nothing until it is opened again.
    Refused,
    /// Goes away once what is under way has ended.
    Closing,
}

/// The segment whose chunks are arriving.
#[derive(Debug)]
pub(super) enum Incoming {
    /// None.
    Nothing,
    /// A new one.
    New(Box<Assembly>),
    /// One that is held already: its chunks are counted and dropped.
    Known {
        /// What its chunks say.
        facts: Facts,
        /// The chunk that must come next.
        next: u32,
    },
}

/// What to do with a chunk.
#[derive(Debug)]
pub(super) enum Step {
    /// Verify it with this assembly, then store it.
    Verify(Box<Assembly>),
    /// Nothing.
    Drop,
    /// The whole of a known segment has passed: acknowledge again.
    Known,
}

/// See the module doc.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) key: DatabaseKey,
    pub(super) phase: Phase,
    /// Known once registered.
    pub(super) database: Option<DatabaseId>,
    /// Position after everything handed to the buffer, acknowledged or not.
    pub(super) tail: Option<Pos>,
    /// Hub time of `tail`.
    pub(super) tail_ms: i64,
    /// Newest transaction on disk.
    pub(super) buffered: Option<Txid>,
    /// Operations of the buffer that have not ended.
    pub(super) under_way: usize,
    pub(super) incoming: Incoming,
    /// Parts of a first snapshot.
    pub(super) stage: Stage,
    /// The buffer may hold chunks of a segment that will not be finished.
    pub(super) leftover: bool,
}

impl Handle {
    pub(super) fn opening(key: DatabaseKey, lineage: u64, position: Option<Pos>) -> Self {
        Self {
            key,
            phase: Phase::Opening { lineage, position },
            database: None,
            tail: None,
            tail_ms: 0,
            buffered: None,
            under_way: 0,
            incoming: Incoming::Nothing,
            stage: Stage::default(),
            leftover: false,
        }
    }

    /// Judges what the agent said at opening against what the hub holds, and takes it over.
    pub(super) fn registered(&mut self, held: &Registered) -> Result<(), Refusal> {
        self.database = Some(held.id);
        self.tail = held.position;
        self.tail_ms = held.time_ms;
        self.buffered = held.position.map(|pos| pos.txid);
        let Phase::Opening { lineage, position } = self.phase else {
            unreachable!("BUG: registered in the wrong phase")
        };
        if lineage != 0 && lineage != held.lineage {
            return Err(Refusal::fork(format!(
                "this node follows history {lineage:016x} of {}, the hub holds history {:016x}; \
                 if the hub's is the right one, remove the database's folder in the agent's state directory",
                self.key, held.lineage
            )));
        }
        if let (Some(ours), Some(theirs)) = (held.position, position)
            && ours.txid == theirs.txid
            && ours.checksum != theirs.checksum
        {
            return Err(Refusal::fork(format!(
                "the node has {} at {theirs}, the hub has {ours}: two histories of one database",
                self.key
            )));
        }
        self.phase = Phase::Taking;
        Ok(())
    }

    /// Judges a chunk and says what to do with it.
    pub(super) fn chunk(&mut self, chunk: &SegmentChunk, max_bytes: u64) -> Result<Step, Refusal> {
        let facts = Facts::of(chunk)?;
        match std::mem::replace(&mut self.incoming, Incoming::Nothing) {
            Incoming::New(assembly) => {
                assembly.expect(chunk.chunk, &facts)?;
                Ok(Step::Verify(assembly))
            }
            Incoming::Known { facts: known, next } => {
                if facts != known || chunk.chunk != next {
                    return Err(Refusal::malformed(format!(
                        "chunk {} of {} came where chunk {next} of {} was due",
                        chunk.chunk, facts.range, known.range
                    )));
                }
                Ok(self.known(facts, chunk))
            }
            Incoming::Nothing => self.begin(facts, chunk, max_bytes),
        }
    }

    fn begin(&mut self, facts: Facts, chunk: &SegmentChunk, max_bytes: u64) -> Result<Step, Refusal> {
        if chunk.chunk != 0 {
            return Err(Refusal::malformed(format!(
                "chunk {} of segment {}, which never began",
                chunk.chunk, facts.range
            )));
        }
        match decide(self.tail, facts.range, facts.pre, facts.post) {
            Decision::Next => {
                let time_ms = clock::now_ms().max(self.tail_ms);
                Ok(Step::Verify(Box::new(Assembly::new(facts, time_ms, max_bytes))))
            }
            Decision::Duplicate => Ok(self.known(facts, chunk)),
            Decision::Gap => Err(Refusal::gap(facts.range, self.tail)),
            Decision::Fork => Err(Refusal::fork(format!(
                "segment {} does not continue the hub's history of {}, which stands at {}; nothing was overwritten",
                facts.range,
                self.key,
                self.tail.map_or_else(|| "its beginning".to_owned(), |pos| pos.to_string())
            ))),
        }
    }

    fn known(&mut self, facts: Facts, chunk: &SegmentChunk) -> Step {
        if chunk.last {
            return Step::Known;
        }
        self.incoming = Incoming::Known { facts, next: chunk.chunk + 1 };
        Step::Drop
    }
}
