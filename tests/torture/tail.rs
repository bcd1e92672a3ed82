//! The canary: a follower that trusts the log file. It takes commit frames whose salts and checksums are right for
//! commits, and never looks at the wal-index. Everything else it does right: it keeps a read mark, so that nothing it has
//! not read is overwritten by a restart of the log. The torture must find it out.

use crate::agent::Subject;
use crate::plan::Fault;
use crate::replica::Replica;
use crate::tally::Tally;
use rusqlite::Connection;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;
use walhub_common::ltx::{Encoder, Header, Provenance, name};
use walhub_common::wal::{FRAME_HEADER_BYTES, WAL_HEADER_BYTES, WalHeader, WalPosition, WalReader};
use walhub_common::{Checksum, PageSize, Pgno, Txid, TxidRange};

/// `walhub-torture tail DB FOLDER`: one LTX file per commit into FOLDER; `ready` when it follows, and a TXID for each
/// line on stdin once everything in the file was read.
pub(crate) fn main(database: &Path, folder: &Path) {
    // Opened before SQLite opens it, and never closed: that would drop SQLite's locks.
    let file = File::open(database).expect("database");
    let app = Connection::open(database).expect("open");
    app.busy_timeout(Duration::from_secs(5)).expect("busy timeout");
    // A frame in the log, so that the mark is at one.
    app.execute_batch("PRAGMA wal_autocheckpoint=0; UPDATE t SET a = randomblob(20) WHERE id = 1;")
        .expect("first frame");
    app.execute_batch("BEGIN; SELECT count(*) FROM t;").expect("read mark");
    let mut follower = Follower::new(file, database, folder);
    println!("ready");
    let (to_us, asked) = mpsc::sync_channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if to_us.send(line).is_err() {
                return;
            }
        }
        std::process::exit(0);
    });
    loop {
        let sync = asked.try_recv().is_ok();
        while follower.step() {}
        if sync {
            println!("{}", follower.txid);
        }
        std::thread::sleep(Duration::from_micros(300));
    }
}

struct Follower {
    wal: File,
    big_endian: bool,
    page_size: PageSize,
    at: WalPosition,
    pages: Vec<Vec<u8>>,
    sum: Checksum,
    txid: u64,
    folder: PathBuf,
}

impl Follower {
    fn new(file: File, database: &Path, folder: &Path) -> Follower {
        let wal = File::open(format!("{}-wal", database.display())).expect("log");
        let mut header = [0; WAL_HEADER_BYTES];
        wal.read_exact_at(&mut header, 0).expect("header of the log");
        let header = WalHeader::parse(&header).expect("header of the log");
        let mut image = vec![0; file.metadata().expect("size").len() as usize];
        file.read_exact_at(&mut image, 0).expect("database");
        std::mem::forget(file);
        let pages = image.chunks(header.page_size.bytes()).map(<[u8]>::to_vec).collect();
        Follower {
            wal,
            big_endian: header.big_endian,
            page_size: header.page_size,
            at: header.start(),
            pages,
            sum: Checksum::EMPTY,
            txid: 0,
            folder: folder.to_owned(),
        }
    }

    /// One commit from the file; false when there is none (yet).
    fn step(&mut self) -> bool {
        let mut reader = WalReader::resume(self.page_size, self.big_endian, self.at);
        let mut frame = vec![0; reader.frame_bytes()];
        let mut written = std::collections::BTreeMap::new();
        while self.wal.read_exact_at(&mut frame, reader.offset()).is_ok() {
            let Ok((_, read)) = reader.push(&frame) else { return false };
            written.insert(read.pgno, frame[FRAME_HEADER_BYTES..].to_vec());
            if let Some(commit) = read.commit {
                self.at = reader.position();
                self.take(commit, written);
                return true;
            }
        }
        false
    }

    fn take(&mut self, commit: u32, written: std::collections::BTreeMap<Pgno, Vec<u8>>) {
        let before = self.pages.len();
        self.pages.resize(commit as usize, vec![0; self.page_size.bytes()]);
        let mut changed: Vec<Pgno> = written.keys().copied().filter(|pgno| pgno.get() <= commit).collect();
        for (pgno, page) in written {
            if let Some(slot) = self.pages.get_mut(pgno.index()) {
                *slot = page;
            }
        }
        let grown = (before.min(commit as usize) + 1..=commit as usize).filter_map(|n| Pgno::new(n as u32));
        changed.extend(grown);
        if self.txid == 0 {
            changed = (1..=commit).filter_map(Pgno::new).collect();
        }
        changed.sort_unstable();
        changed.dedup();
        let pre = (self.txid > 0).then_some(self.sum);
        self.sum = crate::replica::checksum(&self.pages.concat(), self.page_size);
        self.txid += 1;
        self.write(commit, pre, &changed);
    }

    fn write(&self, commit: u32, pre: Option<Checksum>, changed: &[Pgno]) {
        let range = TxidRange::single(Txid::new(self.txid).expect("from 1"));
        let header = Header {
            page_size: self.page_size,
            commit,
            range,
            timestamp_ms: 1,
            wal_offset: 32,
            wal_size: 0,
            wal_salts: [0, 0],
            node_id: 0,
            provenance: Some(Provenance { pre, post: self.sum }),
        };
        let mut encoder = Encoder::new(Vec::new(), header).expect("header");
        for pgno in changed {
            encoder.page(*pgno, &self.pages[pgno.index()]).expect("page");
        }
        let (bytes, _) = encoder.finish().expect("trailer");
        std::fs::write(self.folder.join(name::file_name(range)), bytes).expect("segment");
    }
}

/// The runner's side.
pub(crate) struct Tail {
    database: PathBuf,
    folder: PathBuf,
    child: Option<(Child, BufReader<ChildStdout>)>,
}

impl Tail {
    pub(crate) fn new(folder: &Path, database: &Path) -> Tail {
        let folder = folder.join("tail");
        std::fs::create_dir(&folder).expect("folder");
        Tail { database: database.to_owned(), folder, child: None }
    }

    fn line(&mut self) -> String {
        let (_, output) = self.child.as_mut().expect("started");
        let mut line = String::new();
        output.read_line(&mut line).expect("a line");
        line.trim().to_owned()
    }
}

impl Subject for Tail {
    fn start(&mut self) {
        let mut child = Command::new(std::env::current_exe().expect("own path"))
            .arg("tail")
            .args([&self.database, &self.folder])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start the tail");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        self.child = Some((child, output));
        assert_eq!(self.line(), "ready");
    }

    fn suffer(&mut self, fault: Fault, _: &Tally) {
        unreachable!("BUG: {fault:?} in a plan without faults of the agent");
    }

    fn catch_up(&mut self, live: &[u8], replica: &mut Replica, tally: &Tally) -> Result<(), String> {
        let (child, _) = self.child.as_mut().expect("started");
        child.stdin.as_mut().expect("piped").write_all(b"sync\n").expect("the tail lives");
        let synced: u64 = self.line().parse().map_err(|_| "the tail died".to_owned())?;
        while replica.txid < synced {
            let next = TxidRange::single(Txid::new(replica.txid + 1).expect("from 1"));
            let file = std::fs::read(self.folder.join(name::file_name(next))).map_err(|e| e.to_string())?;
            replica.apply(&file)?;
            tally.add(&tally.txids, 1);
        }
        match replica.differing(live) {
            pages if pages.is_empty() => Ok(()),
            pages => Err(format!("difference: at TXID {synced} pages differ: {pages:?}")),
        }
    }

    fn stop(&mut self) {
        if let Some((mut child, _)) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.stop();
    }
}
