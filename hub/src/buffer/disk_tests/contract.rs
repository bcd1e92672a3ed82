//! The contract on disk, beside the twin in memory.

use super::*;
use crate::buffer::contract::{Subject, suite};
use crate::buffer::full::{bound_suite, given_up_suite, kept_suite, oversized_suite, squash_suite};
use crate::buffer::memory::MemoryBuffer;
use crate::buffer::model::compare;
use tempfile::TempDir;

struct Disk {
    dir: TempDir,
    options: Options,
    buffer: Option<Arc<DiskBuffer>>,
}

impl Disk {
    fn new(max_bytes: u64, file_bytes: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = Options {
            file_bytes,
            when_full: WhenFull::Squash,
            merger: Arc::new(Fold),
            ..Options::new(dir.path(), max_bytes)
        };
        let buffer = Some(Arc::new(DiskBuffer::open(options.clone()).unwrap()));
        Self { dir, options, buffer }
    }
}

#[async_trait]
impl Subject for Disk {
    fn buffer(&self) -> Arc<dyn WalBuffer> {
        Arc::clone(self.buffer.as_ref().unwrap()) as Arc<dyn WalBuffer>
    }

    async fn reopen(&mut self) {
        self.buffer.take().unwrap().close().await.unwrap();
        self.buffer = Some(Arc::new(DiskBuffer::open(self.options.clone()).unwrap()));
    }

    async fn squash(&self, database: DatabaseId) {
        let buffer = Arc::clone(self.buffer.as_ref().unwrap());
        blocking(move || buffer.inner.squash_one(database)).await.unwrap().unwrap();
    }
}

struct Memory(Arc<MemoryBuffer>);

#[async_trait]
impl Subject for Memory {
    fn buffer(&self) -> Arc<dyn WalBuffer> {
        Arc::clone(&self.0) as Arc<dyn WalBuffer>
    }

    async fn reopen(&mut self) {
        self.0 = Arc::new(self.0.reopen());
    }

    async fn squash(&self, database: DatabaseId) {
        self.0.squash_one(database);
    }
}

#[tokio::test]
async fn keeps_the_contract() {
    suite(&mut Disk::new(1 << 30, 64 << 20)).await;
}

#[tokio::test]
async fn keeps_the_contract_with_tiny_files() {
    suite(&mut Disk::new(1 << 30, 4096)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keeps_its_bound() {
    let mut disk = Disk::new(4 << 20, 256 << 10);
    disk.options.when_full = WhenFull::Block;
    disk.reopen().await;
    bound_suite(&mut disk, 4 << 20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gives_up_restore_points_and_no_data() {
    squash_suite(&mut Disk::new(4 << 20, 64 << 10), 4 << 20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keeps_what_somebody_waits_for() {
    kept_suite(&mut Disk::new(4 << 20, 64 << 10), 4 << 20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_somebody_waits_for_comes_after_what_agents_send() {
    let mut disk = Disk::new(4 << 20, 64 << 10);
    given_up_suite(&mut disk, 4 << 20).await;
    let mut disk = Disk::new(4 << 20, 64 << 10);
    disk.options.when_full = WhenFull::Block;
    disk.reopen().await;
    given_up_suite(&mut disk, 4 << 20).await;
}

#[tokio::test]
async fn refuses_what_can_never_pass() {
    oversized_suite(&mut Disk::new(4 << 20, 256 << 10), 4 << 20).await;
}

#[tokio::test]
async fn answers_as_its_twin_does() {
    for seed in 0..9 {
        let file_bytes = [2_000, 20_000, 64 << 20][seed as usize % 3];
        let mut disk = Disk::new(1 << 30, file_bytes);
        let mut memory = Memory(Arc::new(MemoryBuffer::squashing(1 << 30, Arc::new(Fold))));
        compare(&mut memory, &mut disk, seed, 250).await;
    }
}

#[tokio::test]
async fn two_buffers_on_one_folder_are_refused() {
    let mut disk = Disk::new(1 << 30, 4096);
    let error = DiskBuffer::open(disk.options.clone()).unwrap_err();
    assert_eq!(error.to_string(), format!("another hub uses {}", disk.dir.path().display()));
    disk.reopen().await;
}
