//! Makes one LTX file of many buffered segments, in bounded memory: for a buffer that is full.

use crate::buffer::squash::{MergeError, Merger, Opens, groups};
use crate::buffer::{SegmentMeta, SegmentRef};
use std::io::{BufReader, Read, Write};
use walhub_common::ltx::{self, Decoder, LtxError, Provenance, Stamp};

const READ_BUFFER: usize = 16 * 1024;

/// The newest version of each page wins; blocks are copied, not compressed again.
#[derive(Debug)]
pub(crate) struct LtxMerger;

type Input = Decoder<Box<dyn Read + Send>>;

impl Merger for LtxMerger {
    fn merge(
        &self,
        segments: &[SegmentRef],
        whole: SegmentMeta,
        open: &Opens<'_>,
        out: &mut dyn Write,
    ) -> Result<(), MergeError> {
        let read = |segment: &SegmentRef| {
            let bytes = open(segment).map_err(|error| MergeError::Failed(error.to_string()))?;
            decoder(Box::new(BufReader::with_capacity(READ_BUFFER, bytes)))
        };
        let mut inputs = Vec::new();
        for group in groups(segments) {
            let fault = |error| fault(&error, segments);
            match &segments[group] {
                [one] => inputs.push(read(one)?),
                several => {
                    let group = several.iter().map(read).collect::<Result<Vec<_>, _>>()?;
                    let mut merged = Vec::new();
                    let time = several.last().map_or(whole.time_ms, |last| last.meta.time_ms);
                    ltx::merge(group, stamp(time), &mut merged).map_err(fault)?;
                    inputs.push(decoder(Box::new(std::io::Cursor::new(merged)))?);
                }
            }
        }
        let merged =
            ltx::merge(inputs, stamp(whole.time_ms), out).map_err(|error| fault(&error, segments))?;
        let provenance = Some(Provenance { pre: whole.pre, post: whole.post });
        if merged.header.range != whole.range || merged.header.provenance != provenance {
            return Err(MergeError::Failed(format!(
                "they give {:?}, the buffer says {:?}",
                merged.header, whole
            )));
        }
        Ok(())
    }
}

fn stamp(timestamp_ms: i64) -> Stamp {
    Stamp { timestamp_ms, ..Stamp::default() }
}

fn decoder(bytes: Box<dyn Read + Send>) -> Result<Input, MergeError> {
    Decoder::new(bytes).map_err(|error| MergeError::Failed(error.to_string()))
}

/// Files of two page sizes cannot be one: what comes before the change can.
fn fault(error: &LtxError, segments: &[SegmentRef]) -> MergeError {
    match *error {
        LtxError::PageSizeChange { first, .. } => {
            MergeError::Only(segments.partition_point(|segment| segment.meta.range.max() <= first.max()))
        }
        _ => MergeError::Failed(error.to_string()),
    }
}
