//! Agents in processes of their own, which can be killed: POSIX locks belong to a process, so only its end lets go of
//! them as a crash does. The hub is a file of segments that survives.

use crate::child::{App, Process, serve};
use crate::hub::{Discard, Place, Replica};
use bytes::Bytes;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, TryRecvError};
use std::time::Duration;
use walhub_agent::capture::{
    Absent, AttachError, Capture, CaptureError, Next, Options, SegmentMeta, Sink, Standing,
};
use walhub_common::ltx::Header;
use walhub_common::{Checksum, Pos, Txid};

/// Segments in a file: length, facts and bytes of each.
pub(crate) struct HubLog {
    file: File,
    pub(crate) position: Option<Pos>,
    /// Last TXID, checksum after it, place of the bytes.
    index: Vec<(Txid, Checksum, u64, u64)>,
    open: Option<(SegmentMeta, Vec<u8>)>,
}

impl HubLog {
    /// Reads what is there; a record that was not finished is cut off.
    pub(crate) fn open(path: &Path) -> HubLog {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap();
        let mut log = HubLog { file, position: None, index: Vec::new(), open: None };
        let length = log.file.metadata().unwrap().len();
        let mut at = 0;
        while at + 8 <= length {
            let mut size = [0; 8];
            log.file.seek(SeekFrom::Start(at)).unwrap();
            log.file.read_exact(&mut size).unwrap();
            let size = u64::from_le_bytes(size);
            if at + 8 + size > length {
                break;
            }
            let mut header = [0; 100];
            log.file.read_exact(&mut header).unwrap();
            let header = Header::decode(&header).unwrap();
            log.note(header.range.max(), header.provenance.unwrap().post, at + 8, size);
            at += 8 + size;
        }
        log.file.set_len(at).unwrap();
        log.file.seek(SeekFrom::End(0)).unwrap();
        log
    }

    fn note(&mut self, txid: Txid, post: Checksum, at: u64, size: u64) {
        self.position = Some(Pos { txid, checksum: post });
        self.index.push((txid, post, at, size));
    }

    fn bytes(&mut self, n: usize) -> Vec<u8> {
        let (_, _, at, size) = self.index[n];
        let mut bytes = vec![0; usize::try_from(size).unwrap()];
        self.file.seek(SeekFrom::Start(at)).unwrap();
        self.file.read_exact(&mut bytes).unwrap();
        self.file.seek(SeekFrom::End(0)).unwrap();
        bytes
    }

    /// Segments that end after a transaction.
    pub(crate) fn segments_after(&mut self, txid: Option<Txid>) -> Vec<Vec<u8>> {
        let first = self.index.partition_point(|(at, ..)| Some(*at) <= txid);
        (first..self.index.len()).map(|n| self.bytes(n)).collect()
    }

    /// The replica that it makes.
    pub(crate) fn replica(&mut self) -> Replica {
        let mut replica = Replica::default();
        self.apply_to(&mut replica);
        replica
    }

    /// Applies what came since.
    pub(crate) fn apply_to(&mut self, replica: &mut Replica) {
        let from = self.index.partition_point(|(txid, ..)| Some(*txid) <= replica.position.map(|p| p.txid));
        for n in from..self.index.len() {
            let bytes = self.bytes(n);
            let meta = SegmentMeta::of(&Header::decode(&bytes).unwrap()).unwrap();
            replica.apply(&meta, &bytes);
        }
    }
}

impl Sink for HubLog {
    fn begin(&mut self, meta: &SegmentMeta) -> io::Result<()> {
        assert_eq!(meta.range.min(), Txid::following(self.position.map(|p| p.txid)), "{meta:?}");
        assert_eq!(meta.pre, self.position.map(|p| p.checksum), "{meta:?}");
        self.open = Some((*meta, Vec::new()));
        Ok(())
    }

    fn chunk(&mut self, data: Bytes, last: bool) -> io::Result<()> {
        let (_, bytes) = self.open.as_mut().unwrap();
        bytes.extend_from_slice(&data);
        if last {
            let (meta, bytes) = self.open.take().unwrap();
            let at = self.file.stream_position()?;
            let mut record = (bytes.len() as u64).to_le_bytes().to_vec();
            record.extend_from_slice(&bytes);
            self.file.write_all(&record)?;
            self.note(meta.range.max(), meta.post, at + 8, bytes.len() as u64);
        }
        Ok(())
    }
}

/// Brings hub and capture to one position, as the agent's resume does.
pub(crate) fn resume(capture: &mut Capture, hub: &mut HubLog) -> Result<(), CaptureError> {
    let mut exhausted = false;
    loop {
        let (ours, theirs) = (capture.position(), hub.position);
        match (capture.standing(), ours, theirs) {
            (_, _, None) => {
                capture.snapshot(hub)?;
            }
            (Standing::Fresh, ..) | (_, None, _) => roll_forward(capture, hub)?,
            (_, Some(o), Some(h)) if h.txid < o.txid => {
                capture.delta_since(Some(h), hub)?;
            }
            (standing, Some(o), Some(h)) if h.txid == o.txid => {
                assert_eq!(o.checksum, h.checksum, "a fork at {}", h.txid);
                if standing == Standing::Aligned {
                    return Ok(());
                }
                capture.heal(hub)?;
            }
            (Standing::Aligned, ..) if !exhausted => match capture.next(&mut Discard)? {
                Next::Sent(meta) => {
                    let known = hub.index.iter().find(|(txid, ..)| *txid == meta.range.max());
                    assert!(
                        known.is_none_or(|(_, post, ..)| *post == meta.post),
                        "replayed differently: {meta:?}"
                    );
                    capture.acked(meta.range.max());
                }
                Next::UpToDate => exhausted = true,
                Next::Lost(_) => {}
            },
            _ => roll_forward(capture, hub)?,
        }
    }
}

fn roll_forward(capture: &mut Capture, hub: &mut HubLog) -> Result<(), CaptureError> {
    let after = capture.position().map(|p| p.txid);
    let newer = hub.segments_after(after);
    hub.replica().roll_with(capture, newer.iter().map(|bytes| &bytes[..]))
}

/// The agent's process: `start FOLDER FRAMES`, then `sync` and `detach`.
pub(crate) fn main() {
    let (to_agent, commands) = mpsc::channel();
    let (to_parent, replies) = mpsc::channel();
    std::thread::spawn(move || {
        run(&commands, &to_parent);
    });
    serve(|command, rest| {
        to_agent.send((command.to_owned(), rest.to_owned())).map_err(|_| "the agent ended".to_owned())?;
        replies.recv().map_err(|_| "the agent died".to_owned())
    });
}

fn run(commands: &mpsc::Receiver<(String, String)>, replies: &mpsc::Sender<String>) {
    let Ok((_, start)) = commands.recv() else { return };
    let (folder, frames) = start.split_once(' ').unwrap();
    let folder = PathBuf::from(folder);
    let options = Options {
        path: folder.join("app.db"),
        state_dir: folder.join("state"),
        checkpoint_frames: frames.parse().unwrap(),
        compression: walhub_common::ltx::Compression::FAST,
        wal_limit_bytes: 64 << 20,
    };
    replies.send(String::new()).unwrap();
    let mut hub = HubLog::open(&folder.join("hub.log"));
    let mut asked = false;
    loop {
        let capture = match Capture::attach(options.clone()) {
            Ok(capture) => capture,
            Err(AttachError::Absent(_)) => {
                std::thread::sleep(Duration::from_millis(5));
                continue;
            }
            Err(e) => panic!("attach: {e}"),
        };
        match follow(capture, &mut hub, commands, replies, &mut asked) {
            Ok(true) => return,
            Ok(false) => {}
            Err(CaptureError::Moved) => {}
            Err(CaptureError::Sqlite(e)) if e.is_busy() => {}
            Err(e) => panic!("capture: {e}"),
        }
    }
}

/// Follows until told to detach (`true`) or until the database must be attached anew.
fn follow(
    mut capture: Capture,
    hub: &mut HubLog,
    commands: &mpsc::Receiver<(String, String)>,
    replies: &mpsc::Sender<String>,
    asked: &mut bool,
) -> Result<bool, CaptureError> {
    resume(&mut capture, hub)?;
    let mut unacked = 0;
    let mut newest = hub.position.map(|p| p.txid);
    loop {
        match commands.try_recv() {
            Ok((command, _)) if command == "sync" => *asked = true,
            Ok((command, _)) if command == "detach" => {
                capture.detach()?;
                replies.send(String::new()).unwrap();
                return Ok(true);
            }
            Ok(other) => panic!("unknown command {other:?}"),
            Err(TryRecvError::Disconnected) => return Ok(true),
            Err(TryRecvError::Empty) => {}
        }
        let next = match capture.next(hub) {
            Err(CaptureError::Torn) => Next::UpToDate,
            next => next?,
        };
        match next {
            Next::Sent(meta) => {
                newest = Some(meta.range.max());
                unacked += 1;
            }
            Next::UpToDate => {}
            Next::Lost(_) => resume(&mut capture, hub)?,
        }
        // Acks come late and together.
        if let Some(txid) = newest
            && (unacked > 7 || next == Next::UpToDate)
        {
            capture.acked(txid);
            unacked = 0;
            match capture.maintain() {
                Err(CaptureError::Torn) => {}
                maintained => {
                    maintained?;
                }
            }
        }
        if next == Next::UpToDate && !capture.header_moved() {
            if std::mem::take(asked) {
                assert_eq!(capture.position(), hub.position);
                replies.send(capture.position().unwrap().to_string()).unwrap();
            }
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

/// The parent's side.
pub(crate) struct Agent(pub(crate) Process);

impl Agent {
    pub(crate) fn start(place: &Place) -> Agent {
        let mut process = Process::start("agent");
        process.ask(&format!("start {} {}", place.db().parent().unwrap().display(), place.frames));
        Agent(process)
    }

    /// Returns when the hub has everything that is committed.
    pub(crate) fn sync(&mut self) -> String {
        self.0.ask("sync")
    }
}

pub(crate) fn hub_log(place: &Place) -> HubLog {
    HubLog::open(&place.db().with_file_name("hub.log"))
}

#[test]
fn agents_that_are_killed_lose_and_double_nothing() {
    let place = Place::with_frames(40);
    let mut app = App::create(&place.db(), "");
    for round in 0..12 {
        let mut agent = Agent::start(&place);
        if round % 3 == 0 {
            agent.sync();
        }
        for _ in 0..20 {
            app.insert();
        }
        std::thread::sleep(Duration::from_millis(round % 4 * 3));
        agent.0.kill();
        for _ in 0..round {
            app.insert();
        }
        if round % 4 == 3 {
            app.sql("PRAGMA wal_checkpoint(TRUNCATE)");
            app.insert();
        }
    }
    let mut agent = Agent::start(&place);
    agent.sync();
    hub_log(&place).replica().assert_is_live(&place.db());
    agent.0.ask("detach");
}

#[test]
fn a_second_agent_waits_and_takes_over_when_the_first_is_killed() {
    let place = Place::new();
    let mut app = App::create(&place.db(), "");
    let mut first = Agent::start(&place);
    first.sync();
    let taken = Capture::attach(place.options());
    let Err(AttachError::Absent(taken @ Absent::TakenByAnotherAgent(_))) = taken else { panic!("{taken:?}") };
    assert!(taken.to_string().contains(&format!("held by process {}", first.0.id())), "{taken}");
    first.0.kill();
    app.insert();
    let mut capture = place.attach();
    let mut hub = hub_log(&place);
    resume(&mut capture, &mut hub).unwrap();
    assert!(matches!(capture.next(&mut hub).unwrap(), Next::Sent(_)));
    hub.replica().assert_is_live(&place.db());
}
