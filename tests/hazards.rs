//! What others leave at the path: links, foreign files, newer schemas, numbers that make no sense. And
//! what is left for others: permissions, and locks that no descriptor of ours drops.
#![cfg(target_os = "linux")]
mod support;

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, setgid, setuid};
use quotalite::{Error, Limit, Limiter, SECOND};
use support::processes::{argument, command_under, eventually, number, path, play, spawn};
use support::{Scratch, open_raw, scratch};

#[test]
#[ignore = "the entry of child processes"]
fn child() {
    play(&[
        ("make a file", make_a_file),
        ("open as somebody else", open_as_somebody_else),
        ("count descriptors", count_descriptors),
    ]);
}

const SUFFIXES: [&str; 4] = ["", "-wal", "-shm", "-lock"];

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = directory
        .read_dir()
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_planted_link_is_refused_and_nothing_comes_into_being_where_it_points() {
    for suffix in SUFFIXES {
        for there in [false, true] {
            let (scratch, elsewhere) = (scratch(), scratch());
            let target = elsewhere.path().join("victim");
            if there {
                std::fs::write(&target, "precious").unwrap();
            }
            symlink(&target, scratch.path().join(format!("limits.db{suffix}"))).unwrap();
            match Limiter::open(scratch.file()) {
                Err(Error::Sqlite { .. } | Error::Io { .. }) => {}
                // SQLite removes what stands for the WAL of an empty database, link or not.
                Ok(_) if suffix == "-wal" && there => {}
                opened => panic!("limits.db{suffix}, there: {there}: {opened:?}"),
            }
            let expected: &[&str] = if there { &["victim"] } else { &[] };
            assert_eq!(names(elsewhere.path()), expected, "limits.db{suffix}");
            if there {
                assert_eq!(std::fs::read(&target).unwrap(), b"precious");
            }
        }
    }
}

#[test]
fn what_is_no_file_is_refused_and_nothing_is_made_beside_it() {
    let scratch = scratch();
    std::fs::create_dir(scratch.path().join("directory")).unwrap();
    symlink("nowhere", scratch.path().join("link")).unwrap();
    for (name, why) in [
        ("directory", "a directory"),
        ("link", "a symbolic link, which is not followed"),
        (":memory:", "that is no file; see `Limiter::in_memory`"),
    ] {
        let path = if name == ":memory:" {
            name.into()
        } else {
            scratch.path().join(name)
        };
        let error = Limiter::open(path).unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "{error:?}");
        assert!(error.to_string().ends_with(why), "{error}");
    }
    assert_eq!(names(scratch.path()), ["directory", "link"]);
}

#[test]
fn a_link_in_the_directory_part_is_followed() {
    let (scratch, elsewhere) = (scratch(), scratch());
    let link = scratch.path().join("link");
    symlink(elsewhere.path(), &link).unwrap();
    let limiter = Limiter::open(link.join("limits.db")).unwrap();
    limiter.define(Limit::new("mail").per_second(1)).unwrap();
    assert!(elsewhere.file().exists());
}

fn make_a_file() {
    umask(Mode::from_bits_truncate(0o022));
    let mut builder = Limiter::builder(path("FILE"));
    if let Ok(mode) = u32::from_str_radix(&argument("MODE"), 8) {
        builder = builder.mode(mode);
    }
    let limiter = builder.open().unwrap();
    limiter.define(Limit::new("mail").per_second(1)).unwrap();
    assert!(limiter.try_acquire("mail").unwrap().is_granted());
    for suffix in SUFFIXES {
        let mut file = path("FILE").into_os_string();
        file.push(suffix);
        let mode = std::fs::metadata(&file).unwrap().permissions().mode() & 0o7777;
        assert_eq!(
            format!("{mode:o}"),
            argument("EXPECTED"),
            "{}",
            file.display()
        );
    }
}

/// In a child, because the umask belongs to the process.
#[test]
fn files_are_made_for_their_user_alone_unless_the_group_is_let_in() {
    for (mode, expected) in [("default", "600"), ("660", "660"), ("640", "640")] {
        let scratch = scratch();
        let file = scratch.file();
        let arguments = [
            ("FILE", file.to_str().unwrap()),
            ("MODE", mode),
            ("EXPECTED", expected),
        ];
        spawn("make a file", &arguments).wait_well();
    }
}

/// A user that owns nothing.
const NOBODY: u32 = 65_534;

fn open_as_somebody_else() {
    setgid(Gid::from_raw(NOBODY)).unwrap();
    setuid(Uid::from_raw(NOBODY)).unwrap();
    match Limiter::open(path("FILE")) {
        Err(Error::Sqlite { .. } | Error::Io { .. }) => {}
        Ok(limiter) => {
            // Whoever may read but not write can look, and is told by an error what it cannot do.
            let asked = limiter.try_acquire("mail");
            assert!(matches!(asked, Err(Error::Sqlite { .. })), "{asked:?}");
        }
        Err(error) => panic!("{error:?}"),
    }
}

#[test]
fn another_user_gets_an_error_and_leaves_nothing_behind() {
    if !Uid::effective().is_root() {
        println!("skipped: only root can become another user");
        return;
    }
    for (directory_mode, file_mode) in [
        (0o755, 0o600),
        (0o755, 0o644),
        (0o555, 0o644),
        (0o777, 0o600),
    ] {
        let scratch = scratch();
        std::fs::set_permissions(scratch.path(), PermissionsExt::from_mode(directory_mode))
            .unwrap();
        let limiter = Limiter::open(scratch.file()).unwrap();
        limiter.define(Limit::new("mail").per_second(100)).unwrap();
        for suffix in ["", "-wal", "-shm", "-lock"] {
            let file = scratch.path().join(format!("limits.db{suffix}"));
            std::fs::set_permissions(&file, PermissionsExt::from_mode(file_mode)).unwrap();
        }
        let file = scratch.file();
        spawn("open as somebody else", &[("FILE", file.to_str().unwrap())]).wait_well();
        for name in names(scratch.path()) {
            let owner = std::fs::metadata(scratch.path().join(&name)).unwrap().uid();
            assert_eq!(owner, 0, "{name}");
        }
        assert!(limiter.try_acquire("mail").unwrap().is_granted());
    }
}

#[test]
fn what_is_no_file_is_refused() {
    let scratch = scratch();
    std::fs::create_dir(scratch.file()).unwrap();
    let opened = Limiter::open(scratch.file());
    assert!(
        matches!(opened, Err(Error::Sqlite { .. } | Error::Io { .. })),
        "{opened:?}"
    );
    let below_a_file = scratch.path().join("plain");
    std::fs::write(&below_a_file, "").unwrap();
    let opened = Limiter::open(below_a_file.join("limits.db"));
    assert!(matches!(opened, Err(Error::Io { .. })), "{opened:?}");
}

/// For each of the files, how many descriptors this process has, and with which access modes.
fn descriptors(file: &Path) -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for entry in Path::new("/proc/self/fd").read_dir().unwrap() {
        let entry = entry.unwrap();
        let Ok(target) = std::fs::read_link(entry.path()) else {
            continue;
        };
        let target = target.to_string_lossy().into_owned();
        if let Some(suffix) = target.strip_prefix(file.to_str().unwrap()) {
            let number = entry.file_name().into_string().unwrap();
            let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap();
            let flags = info
                .lines()
                .find_map(|line| line.strip_prefix("flags:"))
                .unwrap();
            // The last octal digit: 0 reads, 1 writes, 2 does both.
            let access = flags.trim().chars().last().unwrap().to_string();
            found.entry(suffix.to_owned()).or_default().push(access);
        }
    }
    found
}

fn count_descriptors() {
    let file = path("FILE");
    let limiter = Limiter::builder(&file).readers(1).open().unwrap();
    limiter
        .define(Limit::new("mail").per_second(1_000))
        .unwrap();
    let expect = |connections: usize| {
        let found = descriptors(&file);
        // A connection has the database and the WAL; the shared memory is mapped once for all of them.
        let expected: BTreeMap<String, Vec<String>> = [
            ("", connections),
            ("-wal", connections),
            ("-shm", 1),
            ("-lock", 1),
        ]
        .map(|(suffix, count)| (suffix.to_owned(), vec!["2".to_owned(); count]))
        .into();
        assert_eq!(found, expected);
    };
    expect(1);
    for _ in 0..number("COUNT") {
        assert!(limiter.try_acquire("mail").unwrap().is_granted());
    }
    expect(1);
    limiter.usage("mail").unwrap();
    limiter.peek("mail").unwrap();
    expect(2);
    limiter.book("mail").unwrap().cancel().unwrap();
    expect(2);
    drop(limiter);
    // A reader's connection may be closed by the thread that has opened it, a moment later.
    eventually("everything is closed", || descriptors(&file).is_empty());
}

#[test]
fn a_process_has_the_files_open_once_per_connection_and_never_beside_sqlite() {
    let scratch = scratch();
    let file = scratch.file();
    let arguments = [("FILE", file.to_str().unwrap()), ("COUNT", "100")];
    spawn("count descriptors", &arguments).wait_well();
}

/// Descriptors that were closed again cannot be seen in `/proc`, so this looks at the calls.
#[test]
fn nothing_opens_the_files_but_sqlite() {
    let scratch = scratch();
    let (file, trace) = (scratch.file(), scratch.path().join("trace"));
    let strace = [
        "strace",
        "-f",
        "-e",
        "trace=open,openat,openat2,creat",
        "-o",
        trace.to_str().unwrap(),
    ];
    let arguments = [("FILE", file.to_str().unwrap()), ("COUNT", "100")];
    let mut command = command_under(&strace, "count descriptors", &arguments);
    match command.status() {
        Err(error) => {
            println!("skipped: strace cannot be run: {error}");
            return;
        }
        Ok(status) => assert!(status.success(), "{status}"),
    }
    let trace = std::fs::read_to_string(trace).unwrap();
    for (suffix, most) in [("", 2), ("-wal", 2), ("-shm", 1), ("-lock", 2)] {
        let name = format!("\"{}{suffix}\"", file.display());
        let opens: Vec<&str> = trace
            .lines()
            .filter(|line| line.contains(&name) && !line.contains("ENOENT"))
            .collect();
        assert_eq!(opens.len(), most, "{name}: {opens:#?}");
        for open in opens {
            assert!(
                open.contains("O_RDWR") && open.contains("O_NOFOLLOW"),
                "{open}"
            );
            assert!(open.contains("O_CLOEXEC"), "{open}");
        }
    }
}

fn bytes_of_all(scratch: &Scratch) -> Vec<(String, Vec<u8>)> {
    names(scratch.path())
        .into_iter()
        .filter(|name| name != "limits.db-lock")
        .map(|name| {
            let bytes = std::fs::read(scratch.path().join(&name)).unwrap();
            (name, bytes)
        })
        .collect()
}

#[track_caller]
fn assert_same(after: &[(String, Vec<u8>)], before: &[(String, Vec<u8>)], story: &str) {
    let names = |files: &[(String, Vec<u8>)]| -> Vec<String> {
        files.iter().map(|(name, _)| name.clone()).collect()
    };
    assert_eq!(names(after), names(before), "{story}");
    for ((name, after), (_, before)) in after.iter().zip(before) {
        let differ: Vec<usize> = (0..after.len().max(before.len()))
            .filter(|&byte| after.get(byte) != before.get(byte))
            .collect();
        assert!(
            differ.is_empty(),
            "{story}: {name} differs at {:?}",
            &differ[..differ.len().min(20)]
        );
    }
}

#[test]
fn a_database_of_somebody_else_is_refused_and_left_as_it_was() {
    let theirs = [
        "CREATE TABLE theirs (a)",
        "PRAGMA journal_mode = WAL; CREATE TABLE theirs (a)",
        "PRAGMA user_version = 7",
        "PRAGMA application_id = 12345",
        "PRAGMA auto_vacuum = FULL; CREATE TABLE theirs (a)",
    ];
    for sql in theirs {
        let scratch = scratch();
        open_raw(&scratch.file()).execute_batch(sql).unwrap();
        let before = bytes_of_all(&scratch);
        let opened = Limiter::open(scratch.file());
        assert!(
            matches!(opened, Err(Error::ForeignFile { .. })),
            "{sql}: {opened:?}"
        );
        assert_same(&bytes_of_all(&scratch), &before, sql);
    }
}

#[test]
fn a_file_that_is_no_database_is_refused_and_left_as_it_was() {
    let scratch = scratch();
    std::fs::write(scratch.file(), "dear diary, ".repeat(1_000)).unwrap();
    let before = bytes_of_all(&scratch);
    let opened = Limiter::open(scratch.file());
    assert!(matches!(opened, Err(Error::Sqlite { .. })), "{opened:?}");
    assert_same(&bytes_of_all(&scratch), &before, "all");
}

#[test]
fn a_file_of_a_newer_version_is_refused_and_left_as_it_was() {
    let scratch = scratch();
    drop(Limiter::open(scratch.file()).unwrap());
    open_raw(&scratch.file())
        .execute_batch("PRAGMA user_version = 999")
        .unwrap();
    let before = bytes_of_all(&scratch);
    let opened = Limiter::open(scratch.file());
    assert!(
        matches!(
            opened,
            Err(Error::NewerSchema {
                found: 999,
                known: 14,
                ..
            })
        ),
        "{opened:?}"
    );
    assert_same(&bytes_of_all(&scratch), &before, "all");
}

/// The schema is migrated by another process while this one has the file open.
#[test]
fn a_file_that_becomes_newer_while_it_is_open_is_refused_from_then_on() {
    let scratch = scratch();
    let limiter = Limiter::open(scratch.file()).unwrap();
    limiter.define(Limit::new("mail").per_second(1)).unwrap();
    open_raw(&scratch.file())
        .execute_batch("PRAGMA user_version = 999; UPDATE clock SET definitions = definitions + 1")
        .unwrap();
    assert!(matches!(
        Limiter::open(scratch.file()),
        Err(Error::NewerSchema { .. })
    ));
    let told = limiter.try_acquire("mail");
    assert!(matches!(told, Err(Error::NewerSchema { .. })), "{told:?}");
    let charges: i64 = scratch.sqlite("SELECT count(*) FROM charge");
    assert_eq!(charges, 0);
}

#[test]
fn a_definition_that_makes_no_sense_is_damage_and_no_panic() {
    let edits = [
        "UPDATE rate SET capacity = -1",
        "UPDATE rate SET capacity = 0",
        "UPDATE rate SET capacity = 9223372036854775807",
        "UPDATE rate SET window_ns = 0",
        "UPDATE rate SET window_ns = -9223372036854775808",
        "UPDATE rate SET window_ns = 9223372036854775807",
        "UPDATE limit_definition SET pad_ns = -1",
        "UPDATE limit_definition SET pad_ns = 9223372036854775807",
        "UPDATE limit_definition SET resolution_ns = -1",
        "UPDATE limit_definition SET resolution_ns = 9223372036854775807",
        "DELETE FROM rate",
        "UPDATE clock SET boot_id = 'nonsense'",
    ];
    for edit in edits {
        let scratch = scratch();
        {
            let limiter = Limiter::open(scratch.file()).unwrap();
            limiter.define(Limit::new("mail").per_second(1)).unwrap();
        }
        open_raw(&scratch.file()).execute_batch(edit).unwrap();
        let limiter = match Limiter::open(scratch.file()) {
            Ok(limiter) => limiter,
            Err(error) => {
                assert!(matches!(error, Error::Damaged { .. }), "{edit}: {error}");
                continue;
            }
        };
        let results = [
            limiter.try_acquire("mail").map(drop),
            limiter.acquire_within("mail", SECOND).map(drop),
            limiter.peek("mail").map(drop),
            limiter.usage("mail").map(drop),
            limiter.limit("mail").map(drop),
            limiter.limits().map(drop),
            limiter.define(Limit::new("mail").per_second(1)).map(drop),
        ];
        for (call, result) in results.into_iter().enumerate() {
            assert!(
                matches!(result, Err(Error::Damaged { .. })),
                "{edit}: call {call}: {result:?}"
            );
        }
    }
}

/// Else a charge could lie before one that was made while its own caller waited for the lock.
#[test]
fn the_present_is_the_moment_at_which_the_lock_is_had() {
    let (scratch, limiter, clock) = support::on_file();
    limiter.define(Limit::new("mail").per_second(1)).unwrap();
    let raw = open_raw(&scratch.file());
    raw.execute_batch("BEGIN IMMEDIATE").unwrap();
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| limiter.try_acquire("mail").unwrap().granted().unwrap().at());
        // Real time: it is waiting for the lock by then.
        std::thread::sleep(SECOND / 10);
        clock.advance(10 * SECOND);
        let now = limiter.now().unwrap();
        raw.execute_batch("ROLLBACK").unwrap();
        assert_eq!(asked.join().unwrap(), now);
    });
}
