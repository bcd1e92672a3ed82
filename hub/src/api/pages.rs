//! Pages of a database as messages.

use super::status;
use tonic::Status;
use walhub_common::PageSet;
use walhub_common::restore::frames::Frames;
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

/// Pages as a message.
pub(super) fn message(frames: Frames) -> RestorePagesResponse {
    let pages = frames.blocks.iter().map(|block| block.pgno.get()).collect();
    let lengths = frames.blocks.iter().map(|block| block.bytes).collect();
    let frames = PageFrames { pages, lengths, data: frames.data };
    RestorePagesResponse { message: Some(Message::Frames(frames)) }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
