//! How much the buffer takes on this machine: `buffer_bench [FOLDER] [SECONDS] [APPENDERS] [BYTES]`; all of a table
//! without the last two.
//!
//! Appenders, one database each, append single-chunk segments one after the other; a lane takes them all beside it, so
//! that old log files are given back. Acks are timed from the call to the return.

use bytes::Bytes;
use futures_util::future::join_all;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use walhub_common::task::TaskGroup;
use walhub_common::{Checksum, DatabaseKey, DestinationName, Pos, Txid, TxidRange};
use walhub_hub::buffer::disk::{DiskBuffer, Options};
use walhub_hub::buffer::{BufferError, Chunk, DatabaseId, EveryDatabase, SegmentMeta, WalBuffer};

const MAX_BYTES: u64 = 4 << 30;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let seconds = arguments.next().map_or(Ok(3), |text| text.parse())?;
    println!("appenders  segment  segments/s    MB/s  ack p50 ms  ack p99 ms  segments/sync");
    let appenders =
        arguments.next().map_or_else(|| Ok(vec![1, 256]), |text| text.parse().map(|n| vec![n]))?;
    let sizes = vec![300, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20];
    let sizes = arguments.next().map_or(Ok(sizes), |text| text.parse().map(|n| vec![n]))?;
    for appenders in appenders {
        for bytes in sizes.iter().copied() {
            let dir = folder.join(format!("buffer-bench-{}", std::process::id()));
            let done = measure(&dir, appenders, bytes, Duration::from_secs(seconds)).await;
            std::fs::remove_dir_all(&dir)?;
            done?;
        }
    }
    Ok(())
}

async fn measure(dir: &Path, appenders: u64, bytes: usize, time: Duration) -> anyhow::Result<()> {
    let buffer = Arc::new(DiskBuffer::open(Options::new(dir, MAX_BYTES))?);
    let lane = DestinationName::new("bench")?;
    buffer.trim(EveryDatabase::by(std::slice::from_ref(&lane))).await?;
    let tasks = TaskGroup::new("bench");
    let started = Instant::now();
    let mut running = Vec::new();
    for n in 0..appenders {
        let key: DatabaseKey = format!("bench/db{n}").parse()?;
        let id = buffer.register(&key, None, "/bench").await?.id;
        let (buffer, lane) = (Arc::clone(&buffer), lane.clone());
        running.push(tasks.spawn(async move { append(&*buffer, &lane, id, bytes, started + time).await }));
    }
    let mut acks = Vec::new();
    for ended in join_all(running).await {
        acks.extend(ended??);
    }
    let elapsed = started.elapsed().as_secs_f64();
    acks.sort_unstable();
    let usage = buffer.usage();
    let at = |percent: usize| acks[(acks.len() - 1) * percent / 100].as_secs_f64() * 1e3;
    println!(
        "{appenders:9}  {bytes:7}  {:10.0}  {:6.1}  {:10.2}  {:10.2}  {:13.1}",
        acks.len() as f64 / elapsed,
        usage.segment_bytes as f64 / elapsed / 1e6,
        at(50),
        at(99),
        usage.segments as f64 / usage.syncs as f64,
    );
    buffer.close().await?;
    Ok(())
}

async fn append(
    buffer: &dyn WalBuffer,
    lane: &DestinationName,
    id: DatabaseId,
    bytes: usize,
    until: Instant,
) -> Result<Vec<Duration>, BufferError> {
    let data = Bytes::from(vec![0x5a; bytes]);
    let mut position: Option<Pos> = None;
    let mut acks = Vec::new();
    while Instant::now() < until {
        let txid = Txid::following(position.map(|p| p.txid));
        let post = Checksum::new(1 << 63 | txid.get()).expect("BUG: bit 63 is set");
        let meta = SegmentMeta {
            range: TxidRange::single(txid),
            pre: position.map(|p| p.checksum),
            post,
            time_ms: 0,
            agent_time_ms: 0,
        };
        let chunk = Chunk { database: id, meta, number: 0, last: true, data: data.clone() };
        let called = Instant::now();
        buffer.append(chunk).await?;
        acks.push(called.elapsed());
        position = Some(Pos { txid, checksum: post });
        buffer.set_cursor(lane, id, txid)?;
    }
    Ok(acks)
}
