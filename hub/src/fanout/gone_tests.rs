//! The place itself goes away, and what comes back may be the same one or an empty one.

use super::*;
use std::io;
use std::sync::Mutex;
use walhub_store::destinations::file::Memory;

/// Two databases at one destination, of which only the first does something while the place is away; `back` brings it
/// back.
async fn returns(
    mut bench: Bench,
    back: impl FnOnce(&Path, &Path),
) -> (Bench, [DatabaseId; 2], [Image; 2], u64) {
    bench.start();
    let (root, aside) = (bench.dir.path().join("d0"), bench.dir.path().join("aside"));
    let busy = (bench.register("busy").await, Image::new(9));
    let idle = (bench.register("idle").await, Image::new(5));
    let (ids, mut images) = ([busy.0, idle.0], [busy.1, idle.1]);
    for (id, image) in ids.iter().zip(&mut images) {
        bench.append(*id, &image.first()).await;
        for page in 1..4 {
            bench.append(*id, &image.commit(&[page])).await;
        }
        bench.reaches(0, *id, 4).await;
        bench.reaches(1, *id, 4).await;
    }
    std::fs::rename(&root, &aside).unwrap();
    bench.append(ids[0], &images[0].commit(&[7])).await;
    eventually("the fault to be named", || bench.health(0).contains("is gone")).await;
    bench.reaches(1, ids[0], 5).await;
    let puts = bench.destinations[0].calls(Operation::Put);
    back(&root, &aside);
    (bench, ids, images, puts)
}

impl Bench {
    fn health(&self, lane: usize) -> String {
        self.board.health(lane).last_error
    }
}

#[tokio::test]
async fn an_empty_place_gets_everything_again_also_what_is_idle() {
    let (mut bench, ids, mut images, _) =
        returns(Bench::reliable(2), |root, _| std::fs::create_dir(root).unwrap()).await;
    for (id, image) in ids.iter().zip(&images) {
        eventually("everything to be there again", || {
            bench.held(0, *id) == image.txid() && bench.folder(0, &name(&bench, *id)).exists()
        })
        .await;
    }
    bench.append(ids[1], &images[1].commit(&[2])).await;
    bench.reaches(0, ids[1], 5).await;
    bench.assert_restores(0, "busy", &images[0]);
    bench.assert_restores(0, "idle", &images[1]);
    bench.stop().await;
}

#[tokio::test]
async fn an_empty_place_gets_everything_again_in_packs() {
    let bench = Bench::packed(&[Faults::default(), Faults::default()], &[0]);
    let (mut bench, ids, images, _) = returns(bench, |root, _| std::fs::create_dir(root).unwrap()).await;
    for (name, image) in ["busy", "idle"].iter().zip(&images) {
        let there = async {
            while bench.listed(0, name).await.1.is_empty() {
                tokio::time::sleep(INTERVAL).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), there).await.expect("everything to be there again");
        bench.assert_pack_restores(0, name, image).await;
    }
    for (id, image) in ids.iter().zip(&images) {
        bench.reaches(0, *id, image.txid()).await;
        assert_eq!(bench.row(*id).fault(0), None);
    }
    bench.stop().await;
}

#[tokio::test]
async fn the_same_place_gets_what_is_new_and_nothing_twice() {
    let (mut bench, ids, images, before) =
        returns(Bench::reliable(2), |root, aside| std::fs::rename(aside, root).unwrap()).await;
    bench.reaches(0, ids[0], 5).await;
    let lists = || bench.destinations[0].calls(Operation::List);
    eventually("both to be looked at again", || lists() >= 4).await;
    bench.reaches(0, ids[1], 4).await;
    assert_eq!(bench.files(0, "busy").len(), bench.files(1, "busy").len());
    assert_eq!(bench.files(0, "idle").len(), bench.files(1, "idle").len());
    assert!(
        bench.destinations[0].calls(Operation::Put) <= before + 2,
        "one file, perhaps one refused before"
    );
    bench.assert_restores(0, "busy", &images[0]);
    bench.assert_restores(0, "idle", &images[1]);
    bench.stop().await;
}

#[tokio::test]
async fn an_empty_place_gets_everything_again_also_when_the_hub_was_started_anew_meanwhile() {
    let (mut bench, ids, images, _) = returns(Bench::reliable(2), |_, _| ()).await;
    // It makes the folder.
    bench.restart().await;
    for (lane, id) in [(0, ids[0]), (0, ids[1]), (1, ids[0]), (1, ids[1])] {
        bench.reaches(lane, id, if id == ids[0] { 5 } else { 4 }).await;
    }
    bench.assert_restores(0, "busy", &images[0]);
    bench.assert_restores(0, "idle", &images[1]);
    bench.stop().await;
}

/// The hub's note of a folder's id.
#[derive(Debug, Default)]
struct Note(Mutex<Option<String>>);

impl Memory for Note {
    fn id(&self) -> Option<String> {
        self.0.lock().unwrap().clone()
    }

    fn remember(&self, id: &str) -> io::Result<()> {
        *self.0.lock().unwrap() = Some(id.to_owned());
        Ok(())
    }
}

#[tokio::test]
async fn a_place_that_is_gone_at_the_start_and_comes_back_empty_gets_what_is_idle() {
    let mut bench = Bench::reliable(1);
    let (root, aside) = (bench.dir.path().join("d0"), bench.dir.path().join("aside"));
    let (name, note) = (bench.destinations[0].name().clone(), Arc::new(Note::default()));
    let folder = FileDestination::remembered(name, &FileConfig { path: root.clone() }, Some(note.clone()));
    bench.destinations[0] = Arc::new(Faulty::new(Arc::new(folder), Faults::default(), 7));
    bench.restart().await;
    let (id, mut image) = (bench.register("idle").await, Image::new(5));
    bench.append(id, &image.first()).await;
    bench.append(id, &image.commit(&[2])).await;
    bench.reaches(0, id, 2).await;
    bench.stop().await;
    std::fs::rename(&root, &aside).unwrap();
    bench.restart().await;
    eventually("the fault to be named", || bench.health(0).contains("is gone")).await;
    eventually("it to count no longer", || bench.row(id).durable.is_none()).await;
    assert_eq!(bench.buffer.cursor(bench.destinations[0].name(), id), None);
    std::fs::create_dir_all(root.join("walhub")).unwrap();
    std::fs::write(root.join("walhub/folder.id"), note.id().unwrap()).unwrap();
    bench.reaches(0, id, 2).await;
    bench.assert_restores(0, "idle", &image);
    bench.stop().await;
}

fn name(bench: &Bench, id: DatabaseId) -> String {
    let registered = bench.buffer.databases().into_iter().find(|database| database.id == id);
    registered.unwrap().key.name.to_string()
}
