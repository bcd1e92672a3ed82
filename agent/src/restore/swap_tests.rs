//! A process that dies between any two steps, the agent's next start, and one that comes after it; files that nobody expects.

#[cfg(test)]
mod tests {
    use crate::capture::{lock, settle};
    use crate::discover::KEPT;
    use crate::restore::swap::{NotSwapped, Step, Swap, beside, mend};
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};
    use rusqlite::Connection;
    use std::fs;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::path::{Path, PathBuf};
    use std::process::{Child, Command, Stdio};
    use tempfile::TempDir;
    use walhub_common::Checksum;

    /// What there is before.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    enum Old {
        Nothing,
        /// Only a log that somebody forgot.
        Log,
        Damaged,
        /// With a log that cannot be copied into it.
        DamagedWithLog,
        /// Sound, with transactions in its log, and the hub has just that.
        Captured,
        /// Sound, with transactions in its log, and the hub has another state, or none.
        Unknown,
        /// As a process leaves it that was killed in the middle of a transaction, with a rollback journal.
        Torn,
    }

    const ALL: [Old; 7] =
        [Old::Nothing, Old::Log, Old::Damaged, Old::DamagedWithLog, Old::Captured, Old::Unknown, Old::Torn];
    const STEPS: [Step; 6] =
        [Step::Settled, Step::Summed, Step::Linked, Step::LogsGone, Step::Renamed, Step::Synced];
    const NEW_ROWS: i64 = 7;

    struct Scene {
        dir: TempDir,
        old: Old,
        rows: i64,
        garbage: Vec<u8>,
        safety: Option<Checksum>,
    }

    fn filled(path: &Path, rows: i64, page_size: u32) -> Connection {
        let db = Connection::open(path).unwrap();
        db.pragma_update(None, "page_size", page_size).unwrap();
        db.execute_batch(
            "PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF; PRAGMA wal_autocheckpoint=0; CREATE TABLE t(x)",
        )
        .unwrap();
        for row in 0..rows {
            db.execute("INSERT INTO t VALUES (?1)", [row]).unwrap();
        }
        db
    }

    /// Looks at a copy, so that the look changes nothing.
    fn rows(path: &Path) -> i64 {
        let dir = tempfile::tempdir().unwrap();
        let copy = dir.path().join("copy.db");
        for suffix in ["", "-wal", "-journal"] {
            let _ = fs::copy(beside(path, suffix), beside(&copy, suffix));
        }
        let db = Connection::open(&copy).unwrap();
        let sound: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(sound, "ok");
        db.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap()
    }

    impl Scene {
        fn new(old: Old, random: &mut StdRng) -> Scene {
            let dir = tempfile::tempdir().unwrap();
            let garbage = (0..random.random_range(600..20_000)).map(|_| random.random()).collect();
            let rows = random.random_range(10..300);
            let page_size = 512 << random.random_range(0..7);
            let mut scene = Scene { dir, old, rows, garbage, safety: None };
            let (path, made) = (scene.path(), scene.dir.path().join("made.db"));
            match old {
                Old::Nothing => {}
                Old::Log => fs::write(beside(&path, "-wal"), &scene.garbage).unwrap(),
                Old::Damaged | Old::DamagedWithLog => {
                    fs::write(&path, &scene.garbage).unwrap();
                    if old == Old::DamagedWithLog {
                        fs::write(beside(&path, "-wal"), &scene.garbage[7..]).unwrap();
                    }
                }
                Old::Captured | Old::Unknown => {
                    // As a killed application leaves it: what was committed last lies in the log.
                    let live = filled(&made, rows, page_size);
                    fs::copy(&made, &path).unwrap();
                    fs::copy(beside(&made, "-wal"), beside(&path, "-wal")).unwrap();
                    drop(live);
                    if old == Old::Captured {
                        settle(&made).unwrap();
                        scene.safety = lock(&made).unwrap().unwrap().sum().unwrap();
                        assert!(scene.safety.is_some());
                    } else if random.random() {
                        scene.safety = Checksum::new(1 << 63 | 5);
                    }
                }
                Old::Torn => {
                    let live = filled(&made, rows, page_size);
                    live.execute_batch(
                        "PRAGMA journal_mode=DELETE; PRAGMA cache_size=1; BEGIN; DELETE FROM t",
                    )
                    .unwrap();
                    live.execute_batch("INSERT INTO t SELECT randomblob(900) FROM (SELECT 1 UNION SELECT 2), pragma_function_list")
                    .unwrap();
                    assert!(beside(&made, "-journal").exists());
                    fs::copy(&made, &path).unwrap();
                    fs::copy(beside(&made, "-journal"), beside(&path, "-journal")).unwrap();
                }
            }
            scene
        }

        fn path(&self) -> PathBuf {
            self.dir.path().join("app.db")
        }

        /// A new file, of another page size, made again as a process makes it that begins anew.
        fn swap(&self) -> Swap {
            let staged = self.dir.path().join("staged");
            let _ = fs::remove_file(&staged);
            drop(filled(&staged, NEW_ROWS, 8192));
            // Once the new file is there, that is what the hub has.
            let is_new = fs::read(self.path()).is_ok_and(|bytes| bytes == fs::read(&staged).unwrap());
            let sum = || lock(&staged).unwrap().unwrap().sum().unwrap();
            let safety = if is_new { sum() } else { self.safety };
            Swap { staged, path: self.path(), id: "../job 1.0".into(), safety }
        }

        fn files(&self) -> Vec<String> {
            let names = fs::read_dir(self.dir.path()).unwrap();
            let mut names: Vec<String> =
                names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.retain(|name| !name.starts_with("made") && !name.starts_with("staged"));
            names.sort();
            names
        }

        /// The old database under a name, with everything that belongs to it.
        fn assert_old(&self, path: &Path, at: &str) {
            match self.old {
                Old::Nothing => assert!(!path.exists(), "{at}"),
                Old::Log => {
                    assert!(!path.exists(), "{at}");
                    assert_eq!(fs::read(beside(path, "-wal")).unwrap(), self.garbage, "{at}");
                }
                Old::Damaged => assert_eq!(fs::read(path).unwrap(), self.garbage, "{at}"),
                Old::DamagedWithLog => {
                    assert_eq!(fs::read(path).unwrap(), self.garbage, "{at}");
                    assert_eq!(fs::read(beside(path, "-wal")).unwrap(), self.garbage[7..], "{at}");
                }
                Old::Captured | Old::Unknown | Old::Torn => assert_eq!(rows(path), self.rows, "{at}"),
            }
        }

        fn assert_new(&self, at: &str) {
            assert_eq!(rows(&self.path()), NEW_ROWS, "{at}");
            for suffix in ["-wal", "-journal", "-shm"] {
                assert!(!beside(&self.path(), suffix).exists(), "{at}: {:?}", self.files());
            }
        }

        /// What was there before is at the hub, or kept whole, once; nothing else lies there.
        fn assert_nothing_is_lost(&self, at: &str) {
            let kept = self.dir.path().join(format!("app.db..._job_1.0{KEPT}"));
            let expected = match self.old {
                Old::Nothing | Old::Captured => vec![],
                Old::Log => vec!["-wal"],
                Old::Damaged | Old::Unknown | Old::Torn => vec![""],
                Old::DamagedWithLog => vec!["", "-wal"],
            };
            let mut names: Vec<PathBuf> = expected.iter().map(|suffix| beside(&kept, suffix)).collect();
            names.push(self.path());
            names.sort();
            let found: Vec<PathBuf> = self.files().iter().map(|name| self.dir.path().join(name)).collect();
            assert_eq!(found, names, "{at}");
            if !expected.is_empty() {
                self.assert_old(&kept, at);
            }
        }
    }

    /// As if the process were killed there: nothing is put away.
    fn die(swap: &Swap, at: Step) {
        let mut gate = |step: Step| assert!(step != at, "killed");
        let died = catch_unwind(AssertUnwindSafe(|| swap.walk(&mut gate)));
        assert!(died.is_err(), "{at:?} is a step");
    }

    fn opened_by_another(path: &Path) -> Child {
        let open = fs::File::open(path).unwrap();
        Command::new("sleep").arg("600").stdin(Stdio::from(open)).spawn().unwrap()
    }

    fn end(mut child: Child) {
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn the_new_file_takes_the_name_and_what_was_there_is_not_lost() {
        let mut random = StdRng::seed_from_u64(1);
        for old in ALL {
            let scene = Scene::new(old, &mut random);
            let swapped = scene.swap().run().unwrap();
            scene.assert_new(&format!("{old:?}"));
            scene.assert_nothing_is_lost(&format!("{old:?}"));
            assert_eq!(swapped.proven, old == Old::Captured);
            assert_eq!(swapped.kept.is_some(), !matches!(old, Old::Nothing | Old::Captured), "{old:?}");
        }
    }

    #[test]
    fn a_process_killed_between_any_two_steps_leaves_the_old_or_the_new_database_and_the_next_one_ends_it() {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let all = catch_unwind(|| {
            for seed in 0..2 {
                let mut random = StdRng::seed_from_u64(seed);
                for (old, died_at) in ALL.iter().flat_map(|old| STEPS.map(|step| (*old, step))) {
                    let mut at = format!("seed {seed}: {old:?}, died after {died_at:?}");
                    let scene = Scene::new(old, &mut random);
                    die(&scene.swap(), died_at);
                    let renamed = matches!(died_at, Step::Renamed | Step::Synced);
                    // The agent starts, or the order is carried out again without that.
                    let starts = random.random_range(0..3);
                    for _ in 0..starts {
                        at += ", mended";
                        mend(&scene.path()).unwrap();
                    }
                    let log_aside = died_at == Step::LogsGone
                        && (old == Old::Log || (old == Old::DamagedWithLog && starts == 0));
                    if renamed {
                        scene.assert_new(&at);
                    } else if !log_aside {
                        scene.assert_old(&scene.path(), &at);
                    }
                    if random.random() {
                        at += ", killed again";
                        die(&scene.swap(), STEPS[random.random_range(0..STEPS.len())]);
                    }
                    let swapped = scene.swap().run().unwrap();
                    scene.assert_new(&at);
                    let kept = swapped.kept.is_some();
                    assert_eq!(kept, !matches!(old, Old::Nothing | Old::Captured), "{at}");
                    scene.assert_nothing_is_lost(&at);
                }
            }
        });
        std::panic::set_hook(hook);
        if let Err(failed) = all {
            std::panic::resume_unwind(failed);
        }
    }

    #[test]
    fn an_agent_that_starts_after_a_kill_leaves_nothing_of_the_swap_but_one_whole_database() {
        let mut random = StdRng::seed_from_u64(9);
        for old in [Old::Damaged, Old::DamagedWithLog, Old::Captured, Old::Unknown] {
            for died_at in [Step::Linked, Step::LogsGone] {
                let scene = Scene::new(old, &mut random);
                die(&scene.swap(), died_at);
                assert!(mend(&scene.path()).unwrap(), "{old:?}, {died_at:?}");
                scene.assert_old(&scene.path(), &format!("{old:?}, {died_at:?}"));
                let left: Vec<_> =
                    scene.files().into_iter().filter(|name| name.contains(".walhub-")).collect();
                assert!(left.is_empty(), "{left:?}");
                assert!(!mend(&scene.path()).unwrap(), "there is nothing any more");
            }
        }
    }

    #[test]
    fn a_file_that_somebody_has_open_is_left_alone_and_they_are_named() {
        let mut random = StdRng::seed_from_u64(2);
        for old in [Old::Damaged, Old::DamagedWithLog, Old::Captured, Old::Unknown] {
            let scene = Scene::new(old, &mut random);
            let before = scene.files();
            let child = opened_by_another(&scene.path());
            let name = format!("process {} (sleep)", child.id());
            let refused = scene.swap().run();
            end(child);
            let error = refused.unwrap_err().to_string();
            assert!(error.contains(&name), "{error}");
            assert_eq!(scene.files(), before, "{old:?}");
        }
        // A connection of SQLite, which no other process has: seen by its lock alone.
        let scene = Scene::new(Old::Captured, &mut random);
        let live = Connection::open(scene.path()).unwrap();
        let count = || live.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0)).unwrap();
        assert_eq!(count(), scene.rows);
        let error = scene.swap().run().unwrap_err();
        assert!(matches!(error, NotSwapped::Open(..)), "{error}");
        assert_eq!(count(), scene.rows);
    }

    #[test]
    fn whoever_opens_the_old_file_in_the_middle_gets_it_back() {
        let mut random = StdRng::seed_from_u64(3);
        for old in [Old::Damaged, Old::DamagedWithLog, Old::Captured, Old::Unknown, Old::Torn] {
            for came_at in [Step::Settled, Step::Linked, Step::LogsGone] {
                let at = format!("{old:?}, came after {came_at:?}");
                let scene = Scene::new(old, &mut random);
                let mut came = None;
                let swap = scene.swap();
                let refused = swap.walk(&mut |step| {
                    if step == came_at {
                        came = Some(opened_by_another(&scene.path()));
                    }
                });
                end(came.unwrap());
                let error = refused.unwrap_err();
                assert!(
                    matches!(&error, NotSwapped::Open(who, _) if who.contains("(sleep)")),
                    "{at}: {error}"
                );
                scene.assert_old(&scene.path(), &at);
                let left: Vec<_> =
                    scene.files().into_iter().filter(|name| name.contains(".walhub-")).collect();
                assert!(left.is_empty(), "{at}: {left:?}");
            }
        }
    }

    #[test]
    fn who_came_and_went_with_a_transaction_is_not_overwritten() {
        let mut random = StdRng::seed_from_u64(4);
        for leaves_a_log in [false, true] {
            let scene = Scene::new(Old::Captured, &mut random);
            let swapped = scene.swap().walk(&mut |step| {
                if step == Step::Settled {
                    let app = Connection::open(scene.path()).unwrap();
                    app.execute("INSERT INTO t VALUES (1)", []).unwrap();
                    let log = fs::read(beside(&scene.path(), "-wal")).unwrap();
                    drop(app);
                    if leaves_a_log {
                        fs::write(beside(&scene.path(), "-wal"), log).unwrap();
                    }
                }
            });
            if leaves_a_log {
                assert!(matches!(swapped, Err(NotSwapped::Open(..))), "{swapped:?}");
                assert_eq!(rows(&scene.path()), scene.rows + 1);
            } else {
                let kept = swapped.unwrap().kept.expect("the hub does not have that transaction");
                assert_eq!((rows(&kept), rows(&scene.path())), (scene.rows + 1, NEW_ROWS));
            }
        }
    }

    #[test]
    fn a_second_order_keeps_a_second_file_and_what_cannot_be_replaced_stays() {
        let mut random = StdRng::seed_from_u64(5);
        let scene = Scene::new(Old::Damaged, &mut random);
        let first = scene.swap().run().unwrap().kept.unwrap();
        fs::write(scene.path(), "damaged again").unwrap();
        let second = scene.swap().run().unwrap().kept.unwrap();
        assert_ne!(first, second);
        assert_eq!(fs::read(first).unwrap(), scene.garbage);
        assert_eq!(fs::read(second).unwrap(), b"damaged again");
        // The rename fails: all goes back.
        let scene = Scene::new(Old::DamagedWithLog, &mut random);
        let (swap, before) = (scene.swap(), scene.files());
        let failed = swap.walk(&mut |step| {
            if step == Step::LogsGone {
                fs::remove_file(&swap.staged).unwrap();
            }
        });
        assert!(matches!(failed, Err(NotSwapped::Disk(..))), "{failed:?}");
        scene.assert_old(&scene.path(), "the rename failed");
        assert_eq!(scene.files(), before);
    }
}
