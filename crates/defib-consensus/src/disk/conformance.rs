//! The same expectations of the real and of the simulated disk.

use super::*;

fn conforms(disk: &mut impl Disk) {
    assert_eq!(disk.list().unwrap(), []);
    disk.create("b").unwrap();
    disk.create("a").unwrap();
    assert_eq!(disk.create("a").unwrap_err().source.kind(), io::ErrorKind::AlreadyExists);

    disk.write_at("a", 4, b"data").unwrap();
    assert_eq!(disk.read("a").unwrap(), b"\0\0\0\0data");
    disk.write_at("a", 2, b"xxxx").unwrap();
    assert_eq!(disk.read("a").unwrap(), b"\0\0xxxxta");
    disk.sync("a").unwrap();
    disk.truncate("a", 3).unwrap();
    assert_eq!(disk.read("a").unwrap(), b"\0\0x");
    disk.truncate("a", 5).unwrap();
    assert_eq!(disk.read("a").unwrap(), b"\0\0x\0\0");
    let info = |name: &str, length| FileInfo { name: name.to_owned(), length };
    assert_eq!(disk.list().unwrap(), [info("a", 5), info("b", 0)]);

    disk.rename("a", "b").unwrap();
    disk.sync_directory().unwrap();
    assert_eq!(disk.read("b").unwrap(), b"\0\0x\0\0");
    disk.write_at("b", 0, b"after rename").unwrap();
    assert_eq!(disk.read("b").unwrap(), b"after rename");
    for operation in [
        disk.read("a").map(drop),
        disk.write_at("a", 0, b"x"),
        disk.sync("a"),
        disk.truncate("a", 1),
        disk.rename("a", "c"),
        disk.remove("a"),
    ] {
        let error = operation.unwrap_err();
        assert_eq!(error.source.kind(), io::ErrorKind::NotFound, "{error}");
    }
    disk.remove("b").unwrap();
    assert_eq!(disk.list().unwrap(), []);
}

#[test]
fn the_simulated_disk_conforms() {
    conforms(&mut MemoryDisk::new());
}

#[test]
fn the_real_disk_conforms() {
    let directory = tempfile::tempdir().unwrap();
    conforms(&mut FileDisk::open(directory.path().join("new").join("deep")).unwrap());
}

#[test]
fn a_crash_keeps_exactly_what_was_synced() {
    let observer = MemoryDisk::new();
    let mut disk = observer.clone();
    disk.create("kept").unwrap();
    disk.write_at("kept", 0, b"synced").unwrap();
    disk.sync("kept").unwrap();
    disk.sync_directory().unwrap();
    disk.write_at("kept", 0, b"unsynced").unwrap();
    disk.create("lost").unwrap();
    observer.crash(Crash::LoseAll);
    assert_eq!(disk.read("kept").unwrap(), b"synced");
    assert_eq!(disk.list().unwrap().len(), 1);

    disk.write_at("kept", 0, b"unsynced").unwrap();
    observer.crash(Crash::KeepAll);
    assert_eq!(disk.read("kept").unwrap(), b"unsynced");
}

#[test]
fn a_torn_crash_mixes_old_and_new_sectors() {
    let mut mixed = 0;
    for seed in 0..50 {
        let mut disk = MemoryDisk::new();
        disk.create("file").unwrap();
        disk.write_at("file", 0, &[1; 4096]).unwrap();
        disk.sync("file").unwrap();
        disk.sync_directory().unwrap();
        disk.write_at("file", 0, &[2; 4096]).unwrap();
        disk.crash(Crash::Torn { seed });
        let bytes = disk.read("file").unwrap();
        assert!(bytes.chunks(512).all(|sector| sector == [1; 512] || sector == [2; 512]));
        mixed += u32::from(bytes.contains(&1) && bytes.contains(&2));
    }
    assert!(mixed > 20, "only {mixed} of 50 were torn");
}

#[test]
fn planned_faults_happen() {
    let mut disk = MemoryDisk::new();
    disk.create("file").unwrap();
    disk.set_space(Some(100));
    assert!(disk.write_at("file", 0, &[1; 101]).unwrap_err().is_full());
    disk.write_at("file", 0, &[1; 100]).unwrap();
    disk.fail_next_sync();
    assert_eq!(disk.sync("file").unwrap_err().operation, "sync");
    disk.crash_after(1);
    disk.write_at("file", 0, &[2; 1]).unwrap();
    disk.write_at("file", 0, &[3; 1]).unwrap_err();
    assert!(disk.is_down());
    disk.read("file").unwrap_err();
}
