//! Pages of a database as messages.

use super::status;
use tonic::Status;
use walhub_common::PageSet;
use walhub_common::restore::frames::{Frames, FramesBuilder};
use walhub_proto::v1::restore_pages_response::Message;
use walhub_proto::v1::{PageFrames, PageSpan, RestorePagesResponse};

/// The pages that nobody asked for, of a database of `commit` pages.
pub(super) fn unwanted(wanted: &[PageSpan], commit: u32) -> Result<PageSet, Status> {
    let mut unwanted = PageSet::empty(commit);
    let mut next = 1;
    for span in wanted {
        let last = span.first.checked_add(span.count).filter(|_| span.count > 0 && span.first >= next);
        let Some(end) = last else {
            return Err(status::invalid("wanted", "spans of pages must ascend, and none may be empty"));
        };
        unwanted.insert_run(next..=span.first - 1);
        next = end;
    }
    if !wanted.is_empty() {
        unwanted.insert_run(next..=commit);
    }
    Ok(unwanted)
}

/// Bytes of blocks in one message, at most; a page that is larger goes alone.
pub(super) const MESSAGE_BYTES: usize = 1024 * 1024;
/// Pages in one message, at most: their numbers and lengths take 10 bytes each.
const MESSAGE_PAGES: usize = 4096;

/// Pages as messages.
pub(super) fn messages(frames: &Frames) -> Vec<RestorePagesResponse> {
    let mut messages = Vec::new();
    let mut builder = FramesBuilder::default();
    for (pgno, block) in frames.iter() {
        let full = builder.bytes() + block.len() > MESSAGE_BYTES || builder.pages() == MESSAGE_PAGES;
        if full && !builder.is_empty() {
            messages.push(message(builder.take()));
        }
        builder.push(pgno, block);
    }
    if !builder.is_empty() {
        messages.push(message(builder.take()));
    }
    messages
}

fn message(frames: Frames) -> RestorePagesResponse {
    let pages = frames.blocks.iter().map(|block| block.pgno.get()).collect();
    let lengths = frames.blocks.iter().map(|block| block.bytes).collect();
    let frames = PageFrames { pages, lengths, data: frames.data };
    RestorePagesResponse { message: Some(Message::Frames(frames)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use walhub_common::Pgno;

    #[test]
    fn what_is_not_wanted_is_the_rest() {
        let span = |first, count| PageSpan { first, count };
        let wanted = |spans: &[PageSpan]| {
            unwanted(spans, 10).map(|set| set.gaps().flatten().collect::<Vec<_>>()).map_err(|e| e.code())
        };
        assert_eq!(wanted(&[]).unwrap(), (1..=10).collect::<Vec<_>>());
        assert_eq!(wanted(&[span(1, 2), span(3, 1), span(9, 5)]).unwrap(), [1, 2, 3, 9, 10]);
        assert_eq!(wanted(&[span(20, 1)]).unwrap(), [0; 0]);
        for bad in [&[span(0, 2)][..], &[span(2, 0)], &[span(3, 2), span(4, 1)], &[span(u32::MAX, 2)]] {
            assert_eq!(wanted(bad).unwrap_err(), tonic::Code::InvalidArgument);
        }
    }

    #[test]
    fn no_message_is_larger_than_it_may_be() {
        let mut builder = FramesBuilder::default();
        for number in 1..=6000 {
            let bytes = if number == 7 { 70_000 } else { number % 600 };
            builder.push(Pgno::new(number as u32).unwrap(), &vec![number as u8; bytes]);
        }
        let frames = builder.take();
        let mut again = Vec::new();
        for message in messages(&frames) {
            let Some(Message::Frames(frames)) = message.message else { panic!("no frames") };
            let bytes = frames.data.len() + 10 * frames.pages.len();
            assert!(bytes + 100 <= walhub_common::limits::MAX_MESSAGE_BYTES);
            let mut at = 0;
            for (page, bytes) in frames.pages.iter().zip(&frames.lengths) {
                again.push((*page, frames.data.slice(at..at + *bytes as usize)));
                at += *bytes as usize;
            }
            assert_eq!(at, frames.data.len());
        }
        let expected: Vec<_> =
            frames.iter().map(|(pgno, block)| (pgno.get(), bytes::Bytes::copy_from_slice(block))).collect();
        assert!(again == expected);
    }
}
