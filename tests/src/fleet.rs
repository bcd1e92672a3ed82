//! A fleet of simulated nodes: real streams with real certificates, many databases on each, every one of which commits
//! when it is told to.

use crate::certs::{Authority, Who};
use crate::client::Client;
use crate::segments::{History, Session};
use std::collections::HashSet;
use std::time::{Duration, Instant};
use walhub_proto::v1::AckLevel;
use walhub_proto::v1::replicate_response::Message as Answer;

/// Pages of a database.
const PAGES: usize = 4;
const PAGE_BYTES: usize = 4096;

/// See the module doc.
#[derive(Debug)]
pub struct Fleet {
    nodes: Vec<Node>,
}

#[derive(Debug)]
struct Node {
    session: Session,
    histories: Vec<History>,
}

impl Fleet {
    /// `nodes` nodes with `databases` databases each, every one with its first transaction buffered.
    pub fn join(address: &str, authority: &Authority, nodes: usize, databases: usize) -> Fleet {
        let node = |n: usize| {
            let files = authority.issue(Who::Agent(&format!("node-{n}")));
            let (mut session, _) =
                Session::open(&Client::new(address, &files), 0, &[7; 16]).expect("the hub takes the node");
            let mut histories = Vec::new();
            for handle in 1..=databases as u32 {
                session
                    .announce(handle, &format!("db-{handle}"), 0, None)
                    .expect("the hub takes the database");
                histories.push(History::new(PAGES));
            }
            let mut node = Node { session, histories };
            node.commit();
            node
        };
        Fleet { nodes: (0..nodes).map(node).collect() }
    }

    /// Every database commits once a second for `seconds`, the nodes one after the other within each second; returns
    /// when all of it is buffered.
    pub fn commit_for(&mut self, seconds: u32) {
        let (began, nodes) = (Instant::now(), self.nodes.len() as u32);
        for turn in 0..seconds * nodes {
            let due = Duration::from_secs(1) * turn / nodes;
            std::thread::sleep(due.saturating_sub(began.elapsed()));
            self.nodes[(turn % nodes) as usize].commit();
        }
        std::thread::sleep(Duration::from_secs(seconds.into()).saturating_sub(began.elapsed()));
    }
}

impl Node {
    /// One transaction in every database; returns when all are buffered.
    fn commit(&mut self) {
        let mut waiting = HashSet::new();
        for (handle, history) in (1..).zip(&mut self.histories) {
            let txid = history.position().map_or(1, |position| position.txid.get() + 1);
            // Half noise, half zeros: compresses to about a half.
            let page: Vec<u8> = (0..PAGE_BYTES)
                .map(|i| if i % 2 == 0 && i < PAGE_BYTES / 2 { rand::random() } else { 0 })
                .collect();
            let segment = history.write(txid as usize % PAGES + 1, &page);
            self.session.send_segment(handle, &segment);
            waiting.insert((handle, txid));
        }
        while !waiting.is_empty() {
            match self.session.answer().expect("the stream lives") {
                Answer::Ack(ack) if ack.level == AckLevel::Buffered as i32 => {
                    waiting.remove(&(ack.handle, ack.txid));
                }
                Answer::Refused(refused) => panic!("refused: {}", refused.message),
                _ => {}
            }
        }
    }
}
