//! One segment on its way in: its chunks in order, its bytes verified as the LTX file that the message fields describe.
//!
//! Invariant: [`Assembly::push`] returns `Ok` for the last chunk only when the whole segment is what it claims to be, so
//! whoever stores last chunks after it never stores a damaged segment. Non-goals: no storage, no continuity
//! ([`super::dedup`] decides that).

use super::error::Refusal;
use walhub_common::limits::{MAX_CHUNK_BYTES, MAX_PAGES};
use walhub_common::ltx::{Header, LtxError, Provenance, Verified, Verifier};
use walhub_common::{Checksum, TxidRange};
use walhub_proto::convert::{self, WireError};
use walhub_proto::v1::SegmentChunk;

/// What every chunk of a segment says about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Facts {
    /// Transactions.
    pub range: TxidRange,
    /// Database checksum before; `None` exactly when the segment starts at TXID 1.
    pub pre: Option<Checksum>,
    /// Database checksum after.
    pub post: Checksum,
    /// Agent time, Unix ms.
    pub agent_time_ms: i64,
}

impl Facts {
    /// Reads and checks the fields of a chunk.
    pub fn of(chunk: &SegmentChunk) -> Result<Facts, Refusal> {
        let range = convert::range_from_wire(chunk.range.as_ref())?;
        let pre = match (chunk.pre_checksum, range.follows(None)) {
            (0, true) => None,
            (_, true) => return Err(WireError::new("pre_checksum", "a segment from 1 has none").into()),
            (raw, false) => {
                Some(Checksum::new(raw).ok_or_else(|| WireError::new("pre_checksum", "bit 63 is not set"))?)
            }
        };
        let post = Checksum::new(chunk.post_checksum)
            .ok_or_else(|| WireError::new("post_checksum", "bit 63 is not set"))?;
        if chunk.data.len() > MAX_CHUNK_BYTES {
            return Err(Refusal::oversized(format!(
                "chunk of {} bytes; the hub takes at most {MAX_CHUNK_BYTES}",
                chunk.data.len()
            )));
        }
        // An empty last chunk is judged with the file; empty ones before it could go on for ever.
        if chunk.data.is_empty() && !chunk.last {
            return Err(WireError::new("data", "a chunk without bytes").into());
        }
        Ok(Facts { range, pre, post, agent_time_ms: chunk.agent_time_ms })
    }
}

/// A segment being received.
#[derive(Debug)]
pub struct Assembly {
    facts: Facts,
    time_ms: i64,
    next: u32,
    header_checked: bool,
    verifier: Verifier,
}

impl Assembly {
    /// Begins a segment of at most `max_bytes`, stamped with the hub's time.
    pub fn new(facts: Facts, time_ms: i64, max_bytes: u64) -> Self {
        Self { facts, time_ms, next: 0, header_checked: false, verifier: Verifier::new(max_bytes) }
    }

    /// What its chunks say.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The hub's time of it.
    pub fn time_ms(&self) -> i64 {
        self.time_ms
    }

    /// Checks that a chunk is the next one of this segment.
    pub fn expect(&self, number: u32, facts: &Facts) -> Result<(), Refusal> {
        if facts != &self.facts {
            return Err(Refusal::malformed(format!(
                "a chunk of segment {} came inside segment {}",
                facts.range, self.facts.range
            )));
        }
        if number != self.next {
            return Err(Refusal::malformed(format!("chunk {number} came where chunk {} was due", self.next)));
        }
        Ok(())
    }

    /// Verifies the next bytes, which take CPU time in proportion to the pages in them. After an error the assembly is
    /// worth nothing.
    pub fn push(&mut self, data: &[u8]) -> Result<(), Refusal> {
        self.next += 1;
        self.verifier.push(data).map_err(|e| refusal(&e))?;
        if !self.header_checked
            && let Some(header) = self.verifier.header()
        {
            check_header(header, &self.facts)?;
            self.header_checked = true;
        }
        Ok(())
    }

    /// The verdict on the whole, after the last chunk was pushed.
    pub fn finish(self) -> Result<Verified, Refusal> {
        let verified = self.verifier.finish().map_err(|e| refusal(&e))?;
        check_header(&verified.header, &self.facts)?;
        if let Some(image) = verified.image_checksum
            && image != self.facts.post
        {
            return Err(Refusal::corrupted(format!(
                "the pages of segment {} give database checksum {image}, the message says {}",
                self.facts.range, self.facts.post
            )));
        }
        Ok(verified)
    }
}

fn check_header(header: &Header, facts: &Facts) -> Result<(), Refusal> {
    if header.range != facts.range {
        return Err(Refusal::corrupted(format!(
            "the LTX header covers {}, the message says {}",
            header.range, facts.range
        )));
    }
    if header.provenance != Some(Provenance { pre: facts.pre, post: facts.post }) {
        return Err(Refusal::corrupted("the LTX header and the message name different database checksums"));
    }
    if header.commit == 0 || header.commit > MAX_PAGES {
        return Err(Refusal::corrupted(format!("a database of {} pages cannot be", header.commit)));
    }
    Ok(())
}

fn refusal(error: &LtxError) -> Refusal {
    match error {
        LtxError::TooLarge { .. } => Refusal::oversized(error.to_string()),
        _ => Refusal::corrupted(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testutil::{Image, chunks};
    use proptest::prelude::*;
    use walhub_proto::v1::RefusalCode;

    fn assemble(chunks: &[SegmentChunk]) -> Result<Verified, Refusal> {
        let mut assembly = Assembly::new(Facts::of(&chunks[0])?, 7, 1 << 20);
        for chunk in chunks {
            assembly.expect(chunk.chunk, &Facts::of(chunk)?)?;
            assembly.push(&chunk.data)?;
        }
        assembly.finish()
    }

    fn code(chunks: &[SegmentChunk]) -> RefusalCode {
        assemble(chunks).unwrap_err().code
    }

    #[test]
    fn a_whole_segment_in_any_cut_is_taken() {
        let segment = Image::new(40).first();
        for size in [100, 101, 4096, 1 << 20] {
            let verified = assemble(&chunks(1, &segment, size)).unwrap();
            assert_eq!(verified.image_checksum, Some(segment.post));
        }
    }

    #[test]
    fn chunks_out_of_order_or_of_another_segment_are_malformed() {
        let mut image = Image::new(40);
        let (first, second) = (image.first(), image.commit(&[3]));
        let good = chunks(1, &first, 100);
        assert_eq!(code(&[good[0].clone(), good[2].clone()]), RefusalCode::Malformed);
        assert_eq!(code(&[good[0].clone(), good[0].clone()]), RefusalCode::Malformed);
        let foreign = chunks(1, &second, 100);
        assert_eq!(code(&[good[0].clone(), foreign[1].clone()]), RefusalCode::Malformed);
        assert_eq!(code(&good[..2]), RefusalCode::Corrupted, "it ends in the middle");
    }

    #[test]
    fn fields_that_are_not_the_bytes_are_corrupted() {
        let mut image = Image::new(4);
        image.first();
        let segment = image.commit(&[2]);
        let good = chunks(1, &segment, 1 << 20).remove(0);
        let with = |change: &dyn Fn(&mut SegmentChunk)| {
            let mut bad = good.clone();
            change(&mut bad);
            code(&[bad])
        };
        assert_eq!(with(&|c| c.post_checksum ^= 1), RefusalCode::Corrupted);
        assert_eq!(with(&|c| c.pre_checksum ^= 1), RefusalCode::Corrupted);
        assert_eq!(with(&|c| c.range.as_mut().unwrap().max += 1), RefusalCode::Corrupted);
        assert_eq!(with(&|c| c.post_checksum = 5), RefusalCode::Malformed);
        assert_eq!(with(&|c| c.pre_checksum = 0), RefusalCode::Malformed);
        assert_eq!(with(&|c| c.range = None), RefusalCode::Malformed);
        assert_eq!(with(&|c| c.data = bytes::Bytes::new()), RefusalCode::Corrupted);
        assert_eq!(
            with(&|c| {
                c.data = bytes::Bytes::new();
                c.last = false;
            }),
            RefusalCode::Malformed
        );
        assert_eq!(with(&|c| c.data = vec![0; MAX_CHUNK_BYTES + 1].into()), RefusalCode::Oversized);
    }

    #[test]
    fn a_first_segment_whose_pages_do_not_give_its_checksum_is_corrupted() {
        let mut segment = Image::new(4).first();
        segment.forge_post(Checksum::new(1 << 63 | 77).unwrap());
        assert_eq!(code(&chunks(1, &segment, 1 << 20)), RefusalCode::Corrupted);
    }

    #[test]
    fn a_segment_beyond_the_bound_is_oversized() {
        let segment = Image::new(40).first();
        let chunk = chunks(1, &segment, 1 << 20).remove(0);
        let mut assembly = Assembly::new(Facts::of(&chunk).unwrap(), 7, 50);
        assert_eq!(assembly.push(&chunk.data).unwrap_err().code, RefusalCode::Oversized);
    }

    proptest! {
        /// A flipped byte never passes as another content: either it is found, or it was not part of the content.
        #[test]
        fn no_flipped_byte_passes_unnoticed(at in 0usize..10_000, bit in 0u8..8) {
            let segment = Image::new(6).first();
            let mut chunk = chunks(1, &segment, 1 << 20).remove(0);
            let mut bytes = chunk.data.to_vec();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            chunk.data = bytes.into();
            if let Ok(verified) = assemble(&[chunk]) {
                prop_assert_eq!(verified.image_checksum, Some(segment.post));
            }
        }
    }
}
