//! The agent dies, or its power is cut, at every point where it writes state: page map, spool, epoch. Every life begins with
//! what the one before left, brings the hub and the database to one position, and in the end the replica is the live
//! database. Nothing is ever sent in full twice.

use crate::agents::{HubLog, resume};
use crate::child::App;
use crate::hub::{Place, Replica, pages};
use crate::power_disk::{End, PowerDisk};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::io;
use std::sync::Arc;
use walhub_agent::capture::{Capture, CaptureError, Next, Standing};
use walhub_agent::disk::Disk;
use walhub_agent::ship::window::Coverage;
use walhub_agent::spool::{Room, Spool};
use walhub_agent::state_dir::{StateDir, StateDirError};

/// Pages of the database, about.
const PAGES: u32 = 120;

/// What ended a life.
#[derive(Debug)]
struct Died;

/// Only the power may fail here.
fn survived<T, E: std::fmt::Debug>(disk: &PowerDisk, result: Result<T, E>) -> Result<T, Died> {
    match result {
        Ok(value) => Ok(value),
        Err(_) if disk.is_dead() => Err(Died),
        Err(e) => panic!("a failure with the power on: {e:?}"),
    }
}

/// One place through many lives.
struct World {
    place: Place,
    app: App,
    hub: HubLog,
    replica: Replica,
    disk: PowerDisk,
    dice: StdRng,
    /// The epoch that was promised last.
    epoch: u64,
    /// The hub's base has arrived and the page map behind it was saved.
    founded: bool,
    spooled: u64,
    largest_catch_up: usize,
}

impl World {
    fn new(seed: u64) -> World {
        let place = Place::with_frames(20);
        let mut app = App::create(&place.db(), "PRAGMA page_size=1024");
        app.sql(&format!(
            "INSERT INTO t(a) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < {PAGES}) \
             SELECT randomblob(900) FROM n"
        ));
        let hub = HubLog::open(&place.db().with_file_name("hub.log"));
        World {
            place,
            app,
            hub,
            replica: Replica::default(),
            disk: PowerDisk::default(),
            dice: StdRng::seed_from_u64(seed),
            epoch: 0,
            founded: false,
            spooled: 0,
            largest_catch_up: 0,
        }
    }

    fn write(&mut self) {
        let row = self.dice.random_range(1..PAGES);
        let sql = match self.dice.random_range(0..5) {
            0 => "INSERT INTO t(a) VALUES (randomblob(300))".to_owned(),
            1 => format!("DELETE FROM t WHERE id = {row}"),
            2 => format!("BEGIN; UPDATE t SET a = randomblob(900) WHERE id = {row}; ROLLBACK;"),
            _ => format!("UPDATE t SET a = randomblob(700) WHERE id = {row}"),
        };
        self.app.sql(&sql);
    }

    /// A life from its start to its death, of which only the state on disk is left.
    fn live(&mut self) -> Result<(), Died> {
        let disk = self.disk.clone();
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        let root = self.place.state().with_file_name("agent-state");
        let state = match StateDir::open_on(&root, shared.clone()) {
            Err(StateDirError::Epoch { path }) => panic!("the epoch was lost: {}", path.display()),
            other => survived(&disk, other)?,
        };
        if state.epoch() == 0 {
            assert_eq!(self.epoch, 0, "an epoch that was promised is gone");
            survived(&disk, state.adopt_epoch(1))?;
        }
        assert!(state.epoch() > self.epoch, "the epoch must rise with every start");
        self.epoch = state.epoch();

        let room = Room::new(1 << 20);
        let mut capture = survived(&disk, Capture::attach_on(shared.clone(), self.place.options()))?;
        let folder = self.place.state().join("spool");
        let mut spool = survived(&disk, Spool::open(shared.clone(), &folder, room))?;
        assert!(!self.founded || capture.standing() != Standing::Fresh, "the page map was lost");
        let before = self.hub.position;
        self.unspool(&mut spool)?;
        survived(&disk, resume(&mut capture, &mut self.hub))?;
        self.founded = true;
        self.look_at_catch_up(before);
        let position = capture.position().expect("it is aligned");
        spool.acked(position.txid);
        capture.acked(position.txid);

        for _ in 0..self.dice.random_range(1..12) {
            for _ in 0..self.dice.random_range(0..4) {
                self.write();
            }
            if self.dice.random_bool(0.3) {
                self.offline(&mut capture, &mut spool)?;
                continue;
            }
            self.unspool(&mut spool)?;
            let mut newest = self.hub.position;
            while let Next::Sent(meta) = survived(&disk, capture.next(&mut self.hub))? {
                newest = Some(meta.position());
            }
            if self.dice.random_bool(0.7)
                && let Some(position) = newest
            {
                capture.acked(position.txid);
                spool.acked(position.txid);
            }
            survived(&disk, capture.maintain())?;
        }
        if self.dice.random_bool(0.3) {
            drop(spool);
            survived(&disk, capture.detach())?;
        }
        Ok(())
    }

    /// The hub is away: transactions go to the spool, and the log is copied.
    fn offline(&mut self, capture: &mut Capture, spool: &mut Spool) -> Result<(), Died> {
        let disk = self.disk.clone();
        let mut batch = survived(&disk, spool.begin())?;
        loop {
            match capture.next(&mut batch) {
                Ok(Next::Sent(_)) => self.spooled += 1,
                Ok(_) => break,
                Err(CaptureError::Sink(e)) => return survived(&disk, Err::<(), io::Error>(e)),
                Err(e) => return survived(&disk, Err::<(), _>(e)),
            }
        }
        if let Some(end) = survived(&disk, spool.append(batch))? {
            capture.acked(end.txid);
        }
        survived(&disk, capture.clear_log()).map(|_| ())
    }

    /// The hub is back: what was spooled goes first.
    fn unspool(&mut self, spool: &mut Spool) -> Result<(), Died> {
        while spool.coverage(self.hub.position) == Coverage::Resendable {
            let segments = survived(&self.disk, spool.segments_after(self.hub.position))?;
            let mut segments = segments.expect("it said that it holds them");
            while let Some(sent) = survived(&self.disk, segments.send_next(&mut self.hub))? {
                sent.expect("one history");
            }
        }
        assert!(!matches!(spool.coverage(self.hub.position), Coverage::Fork { .. }), "two histories");
        Ok(())
    }

    /// What a resume sent: never everything again.
    fn look_at_catch_up(&mut self, before: Option<walhub_common::Pos>) {
        if before.is_none() {
            return;
        }
        let sent = self.hub.segments_after(before.map(|p| p.txid));
        let most = sent.iter().map(|bytes| pages(bytes).len()).max().unwrap_or(0);
        self.largest_catch_up = self.largest_catch_up.max(most);
        assert!(most < PAGES as usize / 2, "{most} pages were sent again");
    }

    fn assert_equal(&mut self) {
        let mut capture = self.place.attach();
        resume(&mut capture, &mut self.hub).unwrap();
        self.hub.apply_to(&mut self.replica);
        self.replica.drain(&mut capture);
        self.replica.assert_is_live(&self.place.db());
    }
}

fn lives(seed: u64, count: u32) {
    let mut world = World::new(seed);
    let (mut cuts, mut kills, mut in_operation) = (0, 0, 0);
    for life in 0..count {
        let most = world.dice.random_range(1..=24);
        world.disk.cut_after(most);
        let ended = world.live();
        in_operation += u32::from(ended.is_err());
        let end = if world.dice.random_bool(0.5) { End::Kill } else { End::PowerCut };
        match end {
            End::Kill => kills += 1,
            End::PowerCut => cuts += 1,
        }
        let dice = &mut world.dice;
        world.disk.restart(end, |n| dice.random_range(0..n));
        // Sometimes the application goes on alone.
        for _ in 0..world.dice.random_range(0..3) {
            world.write();
        }
        assert!(world.disk.operations() > 0, "seed {seed}, life {life}: nothing was written");
    }
    world.assert_equal();
    assert!(in_operation > count / 2, "seed {seed}: only {in_operation} lives ended within an operation");
    println!(
        "seed {seed}: {count} lives, {kills} kills, {cuts} power cuts, {in_operation} within an operation, \
         {} transactions spooled, {} TXIDs, at most {} pages in one catch-up",
        world.spooled,
        world.replica.position.unwrap().txid.get(),
        world.largest_catch_up,
    );
}

/// 500 deaths; a seed that fails is printed and can be given by `WALHUB_POWER_SEED`.
#[test]
fn no_death_while_writing_state_loses_anything_or_sends_everything_again() {
    if let Ok(seed) = std::env::var("WALHUB_POWER_SEED") {
        return lives(seed.parse().unwrap(), 25);
    }
    for seed in 1..=20 {
        println!("seed {seed}");
        lives(seed, 25);
    }
}
