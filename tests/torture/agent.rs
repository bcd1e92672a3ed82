//! The product under torture: the real agent, streaming to a real hub. What the hub holds is read back transaction by
//! transaction.

use crate::plan::{Fault, Plan};
use crate::replica::{self, Replica};
use crate::tally::Tally;
use crate::writers::built;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use walhub_common::{Checksum, PageSize};
use walhub_proto::v1;
use walhub_proto::v1::restore_pages_response::Message;
use walhub_tests::Cluster;
use walhub_tests::process::tail;

const NODE: &str = "node";
const NAME: &str = "app.db";
/// After a full disk the agent tries again with growing pauses.
const PATIENCE: Duration = Duration::from_secs(90);

/// Whatever follows a database.
pub(crate) trait Subject {
    /// Starts following. The database exists.
    fn start(&mut self);
    /// Lets something happen to it; it follows again when this returns.
    fn suffer(&mut self, fault: Fault, tally: &Tally);
    /// Returns when everything committed was captured, with all of it applied to `replica`. Nobody writes meanwhile.
    fn catch_up(&mut self, live: &[u8], replica: &mut Replica, tally: &Tally) -> Result<(), String>;
    /// Ends in order.
    fn stop(&mut self);
}

pub(crate) struct Agent {
    cluster: Cluster,
    full: PathBuf,
}

impl Agent {
    pub(crate) fn new(plan: &Plan, folder: &Path, database: &Path) -> Agent {
        let mut cluster = Cluster::new("torture");
        cluster.add_folder("near");
        cluster.agent(NODE, &[(NAME, database)]);
        let frames = plan.checkpoint_frames;
        cluster.agent_lines(
            NODE,
            &format!("checkpoint-frames: {frames}\nwal-limit: 16MiB\npoll-interval: 500ms\n"),
        );
        let full = folder.join("disk-full");
        let state = cluster.path(format!("{NODE}-state"));
        cluster.agent_environment(
            NODE,
            &[
                ("LD_PRELOAD", &built("full.so")),
                ("WALHUB_TORTURE_STATE", &state),
                ("WALHUB_TORTURE_FULL", &full),
            ],
        );
        cluster.start_hub();
        Agent { cluster, full }
    }

    fn position(&self) -> (u64, u64) {
        self.cluster.buffered(NODE, NAME).unwrap_or_default()
    }

    /// Everything after the replica's TXID, up to `txid`.
    fn fetch(&self, replica: &mut Replica, txid: u64, tally: &Tally) -> Result<(), String> {
        if replica.txid >= txid {
            return Ok(());
        }
        let client = self.cluster.client();
        let text = |status: tonic::Status| format!("reading back from the hub: {}", status.message());
        let files = client.files(NODE, NAME, "buffer").map_err(text)?.files;
        let mut ranges: Vec<v1::TxidRange> = files.into_iter().filter_map(|file| file.range).collect();
        ranges.retain(|range| range.max > replica.txid && range.max <= txid);
        ranges.sort_by_key(|range| range.max);
        let mut service = client.restore().max_decoding_message_size(1 << 30);
        for range in ranges {
            let point = v1::RestoreRequest {
                database: Some(v1::DatabaseRef { agent: NODE.to_owned(), name: NAME.to_owned() }),
                target: Some(v1::restore_request::Target::Txid(range.max)),
                after_txid: replica.txid,
                source: "buffer".to_owned(),
            };
            let request =
                v1::RestorePagesRequest { point: Some(point), wanted: Vec::new(), verify_files: true };
            let (mut plan, mut frames) = (None, Vec::new());
            client.block_on(async {
                let mut stream = service.restore_pages(request).await.map_err(text)?.into_inner();
                while let Some(response) = stream.message().await.map_err(text)? {
                    match response.message {
                        Some(Message::Plan(found)) => plan = Some(found),
                        Some(Message::Frames(some)) => frames.push(some),
                        None => {}
                    }
                }
                Ok::<(), String>(())
            })?;
            let plan = plan.ok_or("pages without a plan")?;
            replica.apply_pages(&plan, &frames)?;
            tally.add(&tally.txids, 1);
        }
        Ok(())
    }

    fn refused(&self) -> u64 {
        let counter = PathBuf::from(format!("{}.refused", self.full.display()));
        std::fs::metadata(counter).map_or(0, |metadata| metadata.len())
    }
}

impl Subject for Agent {
    fn start(&mut self) {
        self.cluster.start_agent(NODE);
    }

    fn suffer(&mut self, fault: Fault, tally: &Tally) {
        match fault {
            Fault::Kill { away_ms } => {
                self.cluster.kill_agent(NODE);
                tally.add(&tally.agent_kills, 1);
                std::thread::sleep(Duration::from_millis(away_ms));
                self.cluster.start_agent(NODE);
            }
            Fault::Freeze { ms } => {
                let process = self.cluster.agent_process(NODE);
                process.signal("STOP");
                tally.add(&tally.agent_freezes, 1);
                std::thread::sleep(Duration::from_millis(ms));
                process.signal("CONT");
            }
            Fault::DiskFull { ms } => {
                let before = self.refused();
                std::fs::write(&self.full, b"").expect("a full disk");
                tally.add(&tally.disks_full, 1);
                std::thread::sleep(Duration::from_millis(ms));
                std::fs::remove_file(&self.full).expect("room again");
                tally.add(&tally.writes_refused, self.refused() - before);
            }
            // An agent that just started, or lets go of the file at this moment, refuses these.
            Fault::Pause { ms } => {
                if self.cluster.agent_command(NODE, &["pause", NAME, "--for", "20s"]).code == 0 {
                    tally.add(&tally.pauses, 1);
                    std::thread::sleep(Duration::from_millis(ms));
                    self.cluster.agent_command(NODE, &["resume", NAME]);
                }
            }
            Fault::Shrink => {
                let shrunk = self.cluster.agent_command(NODE, &["checkpoint", NAME, "--shrink"]);
                tally.add(&tally.shrinks, u64::from(shrunk.code == 0));
            }
        }
    }

    fn catch_up(&mut self, live: &[u8], replica: &mut Replica, tally: &Tally) -> Result<(), String> {
        let expected = image_checksum(live);
        let begun = Instant::now();
        let mut restarted = false;
        let synced = loop {
            if self.cluster.agent_process(NODE).ended().is_some() && !std::mem::replace(&mut restarted, true)
            {
                // It could not start while its disk was full: whoever supervises it starts it again.
                self.cluster.kill_agent(NODE);
                self.cluster.start_agent(NODE);
            }
            let answer = self.cluster.agent_command(NODE, &["sync", NAME, "--timeout", "20s"]);
            if answer.code == 0 || begun.elapsed() > PATIENCE {
                break answer;
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        let (txid, sum) = self.position();
        self.fetch(replica, txid, tally)?;
        if replica.sum().get() != sum {
            return Err(format!("the hub is at {sum:016x}, what it gives back sums up to {}", replica.sum()));
        }
        if sum != expected.get() {
            let log = tail(&self.cluster.agent_process(NODE).log(), 30);
            return Err(format!(
                "difference: after a sync ({}: {}{}) the hub is at TXID {txid} with {sum:016x}, the live database is \
                 {expected}; pages differ: {:?}\nthe agent says:\n{log}",
                synced.code,
                synced.stdout,
                synced.stderr,
                replica.differing(live)
            ));
        }
        Ok(())
    }

    fn stop(&mut self) {
        self.cluster.stop_agent(NODE);
        self.cluster.stop_hub();
    }
}

/// Checksum of an image whose first page says the page size.
fn image_checksum(image: &[u8]) -> Checksum {
    let stored = image.get(16..18).map_or(0, |bytes| u32::from(u16::from_be_bytes([bytes[0], bytes[1]])));
    let page_size = PageSize::new(if stored == 1 { 65536 } else { stored });
    page_size.map_or(Checksum::EMPTY, |page_size| replica::checksum(image, page_size))
}
