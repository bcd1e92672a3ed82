//! Segments made by hand, right and wrong, and a stream to send them on: what an honest agent never sends.

use crate::client::Client;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use walhub_common::ltx::{Encoder, Header, Provenance};
use walhub_common::{Checksum, PageSize, Pgno, Pos, Txid, TxidRange};
use walhub_proto::v1;
use walhub_proto::v1::replicate_request::Message as Request;
use walhub_proto::v1::replicate_response::Message as Answer;

const PAGE_SIZE: PageSize = match PageSize::new(4096) {
    Some(size) => size,
    None => unreachable!(),
};

/// A made-up database and its history.
#[derive(Clone, Debug)]
pub struct History {
    pages: Vec<Vec<u8>>,
    position: Option<Pos>,
}

/// One segment: the facts a message carries beside it, and the LTX bytes.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Transactions.
    pub range: (u64, u64),
    /// Checksum before, 0 at the start of a history.
    pub pre: u64,
    /// Checksum after.
    pub post: u64,
    /// The LTX file.
    pub bytes: Vec<u8>,
}

impl History {
    /// An empty database of `pages` pages; nothing was sent yet.
    pub fn new(pages: usize) -> History {
        History { pages: vec![vec![0; PAGE_SIZE.bytes()]; pages], position: None }
    }

    /// The next segment: writes `fill` into page `page`. The first one holds every page.
    pub fn next(&mut self, page: usize, fill: u8) -> Segment {
        self.write(page, &[fill; PAGE_SIZE.bytes()])
    }

    /// The next segment: `content` is the whole of page `page` from then on. The first one holds every page.
    pub fn write(&mut self, page: usize, content: &[u8]) -> Segment {
        self.pages[page - 1].copy_from_slice(content);
        let pre = self.position;
        let txid = Txid::following(pre.map(|pos| pos.txid));
        let numbers: Vec<usize> = if pre.is_none() { (1..=self.pages.len()).collect() } else { vec![page] };
        let post = self.checksum();
        self.position = Some(Pos { txid, checksum: post });
        self.encode(TxidRange::single(txid), pre.map(|pos| pos.checksum), post, &numbers)
    }

    /// Where the history stands.
    pub fn position(&self) -> Option<Pos> {
        self.position
    }

    fn checksum(&self) -> Checksum {
        (1u32..).zip(&self.pages).fold(Checksum::EMPTY, |sum, (number, page)| {
            sum.toggle(Checksum::of_page(Pgno::new(number).expect("from 1"), page))
        })
    }

    fn encode(&self, range: TxidRange, pre: Option<Checksum>, post: Checksum, numbers: &[usize]) -> Segment {
        let header = Header {
            page_size: PAGE_SIZE,
            commit: self.pages.len() as u32,
            range,
            timestamp_ms: 1_700_000_000_000,
            wal_offset: 32,
            wal_size: 0,
            wal_salts: [0, 0],
            node_id: 0,
            provenance: Some(Provenance { pre, post }),
        };
        let mut encoder = Encoder::new(Vec::new(), header).expect("header");
        for &number in numbers {
            let pgno = Pgno::new(number as u32).expect("from 1");
            encoder.page(pgno, &self.pages[number - 1]).expect("page");
        }
        let (bytes, _) = encoder.finish().expect("trailer");
        Segment {
            range: (range.min().get(), range.max().get()),
            pre: pre.map_or(0, Checksum::get),
            post: post.get(),
            bytes,
        }
    }
}

/// An open stream.
#[derive(Debug)]
pub struct Session {
    client: Client,
    requests: mpsc::Sender<v1::ReplicateRequest>,
    answers: Streaming<v1::ReplicateResponse>,
}

impl Session {
    /// Opens a stream and says hello with `epoch`.
    pub fn open(
        client: &Client,
        epoch: u64,
        instance: &[u8],
    ) -> Result<(Session, v1::Welcome), tonic::Status> {
        let (requests, outgoing) = mpsc::channel(16);
        let hello = v1::Hello {
            takes_orders: false,
            protocol_version: 1,
            agent_version: "by hand".to_owned(),
            epoch,
            instance_id: bytes::Bytes::copy_from_slice(instance),
        };
        let hello = v1::ReplicateRequest { message: Some(Request::Hello(hello)) };
        let mut service = client.replication();
        let answers = client.block_on(async {
            requests.send(hello).await.expect("room for the first message");
            service.replicate(ReceiverStream::new(outgoing)).await
        })?;
        let mut session = Session { client: client.clone(), requests, answers: answers.into_inner() };
        match session.answer()? {
            Answer::Welcome(welcome) => Ok((session, welcome)),
            other => panic!("the hub answered {other:?} to a hello"),
        }
    }

    /// Sends any message.
    pub fn send(&self, message: Request) {
        let message = v1::ReplicateRequest { message: Some(message) };
        // A closed stream shows itself at the next answer.
        let _ = self.client.block_on(self.requests.send(message));
    }

    /// The next answer.
    pub fn answer(&mut self) -> Result<Answer, tonic::Status> {
        let answers = &mut self.answers;
        let within = Duration::from_secs(30);
        match self.client.block_on(async { tokio::time::timeout(within, answers.message()).await }) {
            Ok(Ok(Some(response))) => Ok(response.message.expect("an answer says something")),
            Ok(Ok(None)) => Err(tonic::Status::unavailable("the hub ended the stream without a status")),
            Ok(Err(status)) => Err(status),
            Err(_) => panic!("no answer from the hub within 30 s"),
        }
    }

    /// Announces a database; the hub's answer, or its refusal.
    pub fn announce(
        &mut self,
        handle: u32,
        name: &str,
        lineage: u64,
        position: Option<Pos>,
    ) -> Result<v1::DatabaseOpened, v1::Refused> {
        let position = walhub_proto::convert::position_to_wire(position);
        self.send(Request::Open(v1::OpenDatabase {
            handle,
            name: name.to_owned(),
            lineage,
            position: Some(position),
            path: "/by/hand".to_owned(),
        }));
        loop {
            match self.answer().expect("the stream lives") {
                Answer::Opened(opened) if opened.handle == handle => return Ok(opened),
                Answer::Refused(refused) if refused.handle == handle => return Err(refused),
                Answer::Ack(_) => {}
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    /// Sends a segment in one chunk.
    pub fn send_segment(&self, handle: u32, segment: &Segment) {
        self.send(Request::Segment(chunk(handle, segment, 0, true, segment.bytes.clone())));
    }

    /// Waits for the promise that `txid` is buffered, or the refusal of that handle.
    pub fn outcome(&mut self, handle: u32, txid: u64) -> Result<(), v1::Refused> {
        loop {
            match self.answer().expect("the stream lives") {
                Answer::Ack(ack)
                    if ack.handle == handle
                        && ack.level == v1::AckLevel::Buffered as i32
                        && ack.txid >= txid =>
                {
                    return Ok(());
                }
                Answer::Refused(refused) if refused.handle == handle => return Err(refused),
                Answer::Ack(_) => {}
                other => panic!("unexpected {other:?}"),
            }
        }
    }
}

/// One chunk of a segment.
pub fn chunk(handle: u32, segment: &Segment, number: u32, last: bool, data: Vec<u8>) -> v1::SegmentChunk {
    v1::SegmentChunk {
        handle,
        range: Some(v1::TxidRange { min: segment.range.0, max: segment.range.1 }),
        pre_checksum: segment.pre,
        post_checksum: segment.post,
        agent_time_ms: 1_700_000_000_000,
        chunk: number,
        last,
        data: data.into(),
        ..v1::SegmentChunk::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use walhub_common::ltx::Verifier;

    #[test]
    fn honest_segments_are_what_they_claim() {
        let mut history = History::new(4);
        let mut before = 0;
        for fill in 1..=3 {
            let segment = history.next(2, fill);
            assert_eq!((segment.range, segment.pre), ((u64::from(fill), u64::from(fill)), before));
            let mut verifier = Verifier::new(1 << 20);
            verifier.push(&segment.bytes).expect("bytes");
            let verified = verifier.finish().expect("whole file");
            assert_eq!(verified.header.provenance.expect("ours").post.get(), segment.post);
            assert_eq!(verified.image_checksum.map(Checksum::get), (fill == 1).then_some(segment.post));
            before = segment.post;
        }
    }
}
