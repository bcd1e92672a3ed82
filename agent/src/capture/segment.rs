//! How a segment leaves: one LTX file, cut into chunks, pushed into a sink.

use super::error::CaptureError;
use bytes::Bytes;
use std::cell::Cell;
use std::io::{self, Write};
use walhub_common::limits::MAX_CHUNK_BYTES;
use walhub_common::ltx::{Compression, Encoder, Header, LtxError, Provenance};
use walhub_common::wal::{FrameNo, WalPosition};
use walhub_common::{Checksum, PageSize, Pgno, Pos, TxidRange};

/// Facts of one segment, known before its first byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentMeta {
    /// Transactions it covers.
    pub range: TxidRange,
    /// Database checksum it applies to; `None` when it starts a history.
    pub pre: Option<Checksum>,
    /// Database checksum after it.
    pub post: Checksum,
    /// Bytes per page.
    pub page_size: PageSize,
    /// Pages of the database after it.
    pub commit: u32,
    /// When it was captured, by this node's clock.
    pub agent_time_ms: i64,
}

impl SegmentMeta {
    /// Of a segment by the header of its LTX file; `None` when no walhub agent made it.
    pub fn of(header: &Header) -> Option<SegmentMeta> {
        let provenance = header.provenance?;
        Some(SegmentMeta {
            range: header.range,
            pre: provenance.pre,
            post: provenance.post,
            page_size: header.page_size,
            commit: header.commit,
            agent_time_ms: header.timestamp_ms,
        })
    }

    /// The position after it.
    pub fn position(&self) -> Pos {
        Pos { txid: self.range.max(), checksum: self.post }
    }
}

/// Where segments go.
///
/// For each segment: `begin` once, then chunks in order, the last one marked. An error aborts the segment; the capture
/// stays where it was, so that the same call can be made again, or [`super::Capture::delta_since`].
pub trait Sink {
    /// A segment starts.
    fn begin(&mut self, meta: &SegmentMeta) -> io::Result<()>;
    /// So many pages are in the segment; said before its last chunk.
    fn pages(&mut self, _pages: u32) {}
    /// The next bytes, never empty, at most [`MAX_CHUNK_BYTES`].
    fn chunk(&mut self, data: Bytes, last: bool) -> io::Result<()>;
}

/// Where in the log a segment came from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin {
    pub(super) offset: u64,
    pub(super) bytes: u64,
    pub(super) salts: [u32; 2],
}

impl Origin {
    /// A run of frames.
    pub(super) fn frames(page_size: PageSize, first: FrameNo, end: &WalPosition) -> Origin {
        let offset = first.offset(page_size);
        Origin { offset, bytes: end.frame.end(page_size) - offset, salts: end.salts.0 }
    }

    /// No run of frames; the values that Litestream gives to such files.
    pub(super) const IMAGE: Origin = Origin { offset: 32, bytes: 0, salts: [0, 0] };
}

/// Takes the pages of a segment, ascending.
pub(super) type Put<'a> = dyn FnMut(Pgno, &[u8]) -> Result<(), CaptureError> + 'a;

/// Writes one segment, whose pages `fill` puts.
pub(super) fn write(
    sink: &mut dyn Sink,
    meta: &SegmentMeta,
    origin: Origin,
    compression: Compression,
    fill: impl FnOnce(&mut Put<'_>) -> Result<(), CaptureError>,
) -> Result<(), CaptureError> {
    write_as(sink, meta, meta.range, origin, compression, MAX_CHUNK_BYTES, fill)
}

/// As [`write()`], with a range of its own in the file (parts of a first snapshot are numbered there) and chunks of this
/// size.
pub(super) fn write_as(
    sink: &mut dyn Sink,
    meta: &SegmentMeta,
    range: TxidRange,
    origin: Origin,
    compression: Compression,
    chunk_bytes: usize,
    fill: impl FnOnce(&mut Put<'_>) -> Result<(), CaptureError>,
) -> Result<(), CaptureError> {
    sink.begin(meta).map_err(CaptureError::Sink)?;
    let header = Header {
        page_size: meta.page_size,
        commit: meta.commit,
        range,
        timestamp_ms: meta.agent_time_ms,
        wal_offset: origin.offset,
        wal_size: origin.bytes,
        wal_salts: origin.salts,
        node_id: 0,
        provenance: Some(Provenance { pre: meta.pre, post: meta.post }),
    };
    let chunker = Chunker { sink, buffer: SMALL.take(), size: chunk_bytes };
    let mut encoder = Encoder::with_compression(chunker, header, compression).map_err(encoding)?;
    let mut pages = 0;
    fill(&mut |pgno, page| {
        pages += 1;
        encoder.page(pgno, page).map_err(encoding)
    })?;
    let (chunker, _) = encoder.finish().map_err(encoding)?;
    chunker.sink.pages(pages);
    chunker.finish().map_err(CaptureError::Sink)
}

/// The only I/O of an encoder is the sink.
fn encoding(error: LtxError) -> CaptureError {
    match error {
        LtxError::Io(error) => CaptureError::Sink(error),
        error => CaptureError::Ltx(error),
    }
}

/// A last chunk up to here is copied out of a buffer that the thread keeps for the next segment.
const SMALL_BYTES: usize = 32 * 1024;

thread_local! {
    static SMALL: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Cuts a stream of bytes into chunks. A chunk leaves when more follows, so that the last one is known to be the last.
struct Chunker<'a> {
    sink: &'a mut dyn Sink,
    buffer: Vec<u8>,
    size: usize,
}

impl Chunker<'_> {
    fn finish(mut self) -> io::Result<()> {
        if self.buffer.len() > SMALL_BYTES {
            return self.sink.chunk(tight(self.buffer), true);
        }
        let done = self.sink.chunk(Bytes::copy_from_slice(&self.buffer), true);
        if self.buffer.capacity() <= SMALL_BYTES {
            self.buffer.clear();
            SMALL.set(self.buffer);
        }
        done
    }
}

impl Write for Chunker<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.len() == self.size {
            self.sink.chunk(tight(std::mem::take(&mut self.buffer)), false)?;
        }
        let taken = bytes.len().min(self.size - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Chunks are kept until they are acked: no spare capacity.
fn tight(buffer: Vec<u8>) -> Bytes {
    Bytes::from(buffer.into_boxed_slice())
}

/// A segment kept in memory, to be handed out later.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) meta: SegmentMeta,
    chunks: Vec<Bytes>,
}

impl Kept {
    /// What `write` put into a sink; `None` when it made no segment.
    pub(super) fn collect(
        write: impl FnOnce(&mut dyn Sink) -> Result<Option<SegmentMeta>, CaptureError>,
    ) -> Result<Option<Kept>, CaptureError> {
        let mut chunks = Vec::new();
        let meta = write(&mut Collector(&mut chunks))?;
        Ok(meta.map(|meta| Kept { meta, chunks }))
    }

    /// Its size.
    pub(super) fn bytes(&self) -> u64 {
        self.chunks.iter().map(|chunk| chunk.len() as u64).sum()
    }

    /// Hands it out.
    pub(super) fn send(&self, sink: &mut dyn Sink) -> io::Result<()> {
        sink.begin(&self.meta)?;
        for (i, chunk) in self.chunks.iter().enumerate() {
            sink.chunk(chunk.clone(), i + 1 == self.chunks.len())?;
        }
        Ok(())
    }
}

struct Collector<'a>(&'a mut Vec<Bytes>);

impl Sink for Collector<'_> {
    fn begin(&mut self, _meta: &SegmentMeta) -> io::Result<()> {
        Ok(())
    }

    fn chunk(&mut self, data: Bytes, _last: bool) -> io::Result<()> {
        self.0.push(data);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use walhub_common::Txid;
    use walhub_common::ltx::Decoder;

    #[derive(Default)]
    struct Pieces(Vec<(usize, bool)>, Vec<u8>);

    impl Sink for Pieces {
        fn begin(&mut self, _meta: &SegmentMeta) -> io::Result<()> {
            Ok(())
        }
        fn chunk(&mut self, data: Bytes, last: bool) -> io::Result<()> {
            self.0.push((data.len(), last));
            self.1.extend_from_slice(&data);
            Ok(())
        }
    }

    fn meta(commit: u32) -> SegmentMeta {
        SegmentMeta {
            range: TxidRange::single(Txid::FIRST),
            pre: None,
            post: Checksum::EMPTY,
            page_size: PageSize::new(4096).unwrap(),
            commit,
            agent_time_ms: 5,
        }
    }

    /// Bytes that LZ4 cannot shrink.
    fn noise(pgno: u32) -> Vec<u8> {
        let mut x = u64::from(pgno) | 1 << 40;
        (0..4096)
            .map(|_| {
                x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (x >> 33) as u8
            })
            .collect()
    }

    #[test]
    fn chunks_are_full_but_for_the_last_and_make_one_ltx_file() {
        for pages in [1, 254, 255, 256, 700] {
            let mut sink = Pieces::default();
            write(&mut sink, &meta(pages), Origin::IMAGE, Compression::FAST, |put| {
                (1..=pages).try_for_each(|p| put(Pgno::new(p).unwrap(), &noise(p)))
            })
            .unwrap();
            let (end, before) = sink.0.split_last().unwrap();
            assert!(before.iter().all(|piece| *piece == (MAX_CHUNK_BYTES, false)));
            assert!(end.1 && end.0 > 0 && end.0 <= MAX_CHUNK_BYTES);
            let mut decoder = Decoder::new(&sink.1[..]).unwrap();
            let mut page = Vec::new();
            for p in 1..=pages {
                assert_eq!(decoder.next_page(&mut page).unwrap(), Pgno::new(p));
                assert_eq!(page, noise(p));
            }
            decoder.finish().unwrap();
        }
    }

    #[test]
    fn a_kept_segment_is_handed_out_as_it_was_written() {
        let fill = |put: &mut Put<'_>| (1..=300).try_for_each(|p| put(Pgno::new(p).unwrap(), &noise(p)));
        let mut direct = Pieces::default();
        write(&mut direct, &meta(300), Origin::IMAGE, Compression::FAST, fill).unwrap();
        let kept = Kept::collect(|sink| {
            write(sink, &meta(300), Origin::IMAGE, Compression::FAST, fill).map(|()| Some(meta(300)))
        });
        let kept = kept.unwrap().unwrap();
        let mut later = Pieces::default();
        kept.send(&mut later).unwrap();
        assert_eq!((direct.0, direct.1), (later.0, later.1));
    }

    #[test]
    fn an_error_of_the_sink_comes_back_as_such() {
        struct Full;
        impl Sink for Full {
            fn begin(&mut self, _meta: &SegmentMeta) -> io::Result<()> {
                Ok(())
            }
            fn chunk(&mut self, _data: Bytes, _last: bool) -> io::Result<()> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
        }
        let wrote =
            write(&mut Full, &meta(1), Origin::IMAGE, Compression::FAST, |put| put(Pgno::FIRST, &noise(1)));
        assert!(matches!(wrote, Err(CaptureError::Sink(e)) if e.kind() == io::ErrorKind::BrokenPipe));
    }
}
