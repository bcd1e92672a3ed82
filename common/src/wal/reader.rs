//! Reads frames in order and says exactly where and why it stopped.

use super::{Break, FRAME_HEADER_BYTES, Frame, FrameNo, FrameVerifier, WalHeader, WalPosition};
use crate::PageSize;

/// Where and why a chain of frames ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("frame {frame} does not continue the log: {reason}")]
pub struct Stop {
    /// The first frame that does not belong to the chain.
    pub frame: FrameNo,
    /// Why not.
    pub reason: Break,
}

/// A sans-I/O reader: ask [`WalReader::offset`], read [`WalReader::frame_bytes`] bytes there, [`WalReader::push`] them.
///
/// After a stop it stays stopped; [`WalReader::position`] remains the end of what verified, from which a new reader can
/// try again when the file has grown.
#[derive(Clone, Debug)]
pub struct WalReader {
    chain: FrameVerifier,
    frame: FrameNo,
    stopped: Option<Stop>,
}

impl WalReader {
    /// Starts at the first frame.
    pub fn new(header: &WalHeader) -> WalReader {
        WalReader::resume(header.page_size, header.big_endian, header.start())
    }

    /// Goes on after `position`.
    pub fn resume(page_size: PageSize, big_endian: bool, position: WalPosition) -> WalReader {
        let chain = FrameVerifier::new(page_size, big_endian, position.salts, position.checksum);
        WalReader { chain, frame: position.frame, stopped: None }
    }

    /// Bytes of a page.
    pub fn page_size(&self) -> PageSize {
        self.chain.page_size()
    }

    /// Bytes of one frame.
    pub fn frame_bytes(&self) -> usize {
        FRAME_HEADER_BYTES + self.chain.page_size().bytes()
    }

    /// Where the next frame lies in the file.
    pub fn offset(&self) -> u64 {
        self.frame.next().offset(self.chain.page_size())
    }

    /// The end of what verified so far.
    pub fn position(&self) -> WalPosition {
        WalPosition { salts: self.chain.salts(), frame: self.frame, checksum: self.chain.checksum() }
    }

    /// Takes the next frame, header and page. Panics when `bytes` is not [`WalReader::frame_bytes`] long.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(FrameNo, Frame), Stop> {
        if let Some(stop) = self.stopped {
            return Err(stop);
        }
        assert_eq!(bytes.len(), self.frame_bytes(), "BUG: not one frame");
        let (header, page) = bytes.split_first_chunk().expect("BUG: shorter than a frame header");
        match self.chain.frame(header, page) {
            Ok(frame) => {
                self.frame = self.frame.next();
                Ok((self.frame, frame))
            }
            Err(reason) => {
                let stop = Stop { frame: self.frame.next(), reason };
                self.stopped = Some(stop);
                Err(stop)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Pgno;
    use crate::wal::Salts;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    struct Log {
        header: WalHeader,
        frames: Vec<(Frame, Vec<u8>)>,
    }

    fn logs() -> impl Strategy<Value = Log> {
        let frame = (1u32.., prop_oneof![Just(0u32), 1u32..], any::<[u8; 16]>());
        (any::<bool>(), 9u32..=11, any::<[u32; 2]>(), prop::collection::vec(frame, 1..12)).prop_map(
            |(big_endian, shift, salts, frames)| {
                let page_size = PageSize::new(1 << shift).unwrap();
                let header = WalHeader::new(big_endian, page_size, 0, Salts(salts));
                let mut chain = FrameVerifier::new(page_size, big_endian, header.salts, header.checksum);
                let frames = frames
                    .into_iter()
                    .map(|(pgno, commit, fill)| {
                        let frame =
                            Frame { pgno: Pgno::new(pgno).unwrap(), commit: (commit != 0).then_some(commit) };
                        let page = fill.repeat(page_size.bytes() / fill.len());
                        let mut bytes = chain.append(frame.pgno, frame.commit, &page).to_vec();
                        bytes.extend_from_slice(&page);
                        (frame, bytes)
                    })
                    .collect();
                Log { header, frames }
            },
        )
    }

    proptest! {
        #[test]
        fn every_frame_written_is_read(log in logs()) {
            let mut reader = WalReader::new(&log.header);
            for (at, (frame, bytes)) in (1u32..).zip(&log.frames) {
                prop_assert_eq!(reader.offset(), FrameNo(at).offset(log.header.page_size));
                prop_assert_eq!(reader.push(bytes), Ok((FrameNo(at), *frame)));
            }
            prop_assert_eq!(reader.position().frame, FrameNo(log.frames.len() as u32));
        }

        #[test]
        fn a_reader_can_go_on_from_any_position(log in logs(), cut in any::<prop::sample::Index>()) {
            let cut = cut.index(log.frames.len());
            let mut first = WalReader::new(&log.header);
            for (_, bytes) in &log.frames[..cut] {
                first.push(bytes).unwrap();
            }
            let mut second = WalReader::resume(log.header.page_size, log.header.big_endian, first.position());
            for (_, bytes) in &log.frames[cut..] {
                prop_assert_eq!(second.push(bytes), first.push(bytes));
            }
            prop_assert_eq!(second.position(), first.position());
        }

        #[test]
        fn any_changed_byte_stops_at_its_frame(
            log in logs(),
            frame in any::<prop::sample::Index>(),
            byte in any::<prop::sample::Index>(),
            flip in 1u8..,
        ) {
            let mut log = log;
            let damaged = frame.index(log.frames.len());
            let byte = byte.index(log.frames[damaged].1.len());
            log.frames[damaged].1[byte] ^= flip;
            let mut reader = WalReader::new(&log.header);
            for (_, bytes) in &log.frames[..damaged] {
                reader.push(bytes).unwrap();
            }
            let stop = reader.push(&log.frames[damaged].1).unwrap_err();
            prop_assert_eq!(stop.frame, FrameNo(damaged as u32 + 1));
            prop_assert_eq!(matches!(stop.reason, Break::Salts { .. }), (8..16).contains(&byte));
            // It stays stopped.
            prop_assert_eq!(reader.push(&log.frames[damaged].1), Err(stop));
            prop_assert_eq!(reader.position().frame, FrameNo(damaged as u32));
        }

        #[test]
        fn swapped_frames_do_not_verify(log in logs(), at in any::<prop::sample::Index>()) {
            prop_assume!(log.frames.len() >= 2);
            let at = at.index(log.frames.len() - 1);
            prop_assume!(log.frames[at].1 != log.frames[at + 1].1);
            let mut reader = WalReader::new(&log.header);
            for (_, bytes) in &log.frames[..at] {
                reader.push(bytes).unwrap();
            }
            prop_assert!(reader.push(&log.frames[at + 1].1).is_err());
        }
    }
}
