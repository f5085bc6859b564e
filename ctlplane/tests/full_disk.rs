//! File systems that are full or read-only, real ones: what is in force stays, it is said what to do, and it goes on afterwards.
//!
//! The daemon gets a mount namespace of its own, with small file systems for its state and its file: they are gone when it is.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

mod support;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use support::{Daemon, Instance, one_pool};

const TWO: &[(&str, u8, u16)] = &[("one", 1, 100), ("two", 2, 50)];

/// Whether this machine lets us mount: root does.
fn may_mount() -> bool {
    let tried = Command::new("unshare").args(["-m", "mount", "-t", "tmpfs", "weir-test", "/mnt"]).output();
    let may = tried.is_ok_and(|output| output.status.success());
    if !may {
        eprintln!("not tried: only root may mount file systems");
    }
    may
}

/// An instance whose state and file are on file systems of 64 KiB of the daemon's own, mounted with `options`.
fn spawn(options: &str) -> (Instance, std::process::Child) {
    let mut instance = Instance::new(&one_pool(TWO));
    let etc = instance.directory.path().join("etc");
    let template = instance.options.config.clone();
    for directory in [&etc, &instance.options.state_dir] {
        fs::create_dir(directory).unwrap();
    }
    instance.options.config = etc.join("weir.toml");
    let script = format!(
        "mount -t tmpfs -o size=64k,mode=750 weir-test '{etc}' && cp '{template}' '{etc}/weir.toml' && \
         mount -t tmpfs -o size=64k,mode=750{options} weir-test '{state}' && exec \"$0\" \"$@\"",
        etc = etc.display(),
        template = template.display(),
        state = instance.options.state_dir.display(),
    );
    let child = Command::new("unshare")
        .args(["-m", "sh", "-c", &script, env!("CARGO_BIN_EXE_weir-ctlplane")])
        .args(support::arguments(&instance, "off"))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    (instance, child)
}

fn start() -> Daemon {
    let (instance, child) = spawn("");
    Daemon::with(instance, child)
}

/// A path as the daemon sees it.
fn inside(daemon: &Daemon, path: &Path) -> PathBuf {
    let relative = path.strip_prefix("/").unwrap();
    Path::new("/proc").join(daemon.child.id().to_string()).join("root").join(relative)
}

/// Takes all room of the file system that holds a directory; it is free again when the file is removed.
fn fill(directory: &Path) -> PathBuf {
    let path = directory.join("filler");
    let mut file = fs::File::create(&path).unwrap();
    while file.write_all(&[b'x'; 4096]).is_ok() {}
    path
}

fn mount(daemon: &Daemon, program: &str, arguments: &[&str], directory: &Path) {
    let pid = daemon.child.id().to_string();
    let mut command = Command::new("nsenter");
    command.args(["-t", &pid, "-m", program]).args(arguments);
    assert!(command.arg(directory).status().unwrap().success(), "{program} {arguments:?}");
}

/// Lets nobody write there any more. Files that are open for writing stay so, as on a disk that fails.
fn protect(daemon: &Daemon, directory: &Path) {
    mount(daemon, "mount", &["--bind", directory.to_str().unwrap()], directory);
    mount(daemon, "mount", &["-o", "remount,bind,ro"], directory);
}

fn unprotect(daemon: &Daemon, directory: &Path) {
    mount(daemon, "umount", &[], directory);
}

fn set_weight(daemon: &Daemon, weight: u16) -> (u16, Value) {
    daemon.send("POST", "/v1/backends/app/one", &format!("{{\"weight\":{weight}}}"))
}

fn weight(daemon: &Daemon) -> Value {
    daemon.send("GET", "/v1/backends", "").1["pools"][0]["backends"][0]["weight"].clone()
}

/// Nothing that was begun and not finished lies about.
fn has_no_halves(directory: &Path) -> bool {
    let names = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name());
    names.into_iter().all(|name| !name.to_string_lossy().contains(".new"))
}

/// What a daemon that starts with these files has in force.
fn weight_of_files(state: &Path) -> u32 {
    let mut fresh = Instance::new(&one_pool(TWO));
    fresh.options.state_dir = fresh.directory.path().join("copied");
    let copied = Command::new("cp").arg("-r").arg(state).arg(&fresh.options.state_dir).status();
    assert!(copied.unwrap().success());
    let engine = fresh.start();
    fresh.read(engine.generation()).pool("app").backends[0].weight
}

#[test]
fn changes_are_refused_while_there_is_no_room_for_the_state() {
    if !may_mount() {
        return;
    }
    let daemon = start();
    assert_eq!(set_weight(&daemon, 3).0, 200);
    let state = daemon.instance.options.state_dir.clone();
    let directory = inside(&daemon, &state.join("test"));
    let published = daemon.send("GET", "/v1/status", "").1["generation"].clone();
    for (how, words, remedy) in [
        ("full", "No space left on device", "make room on its file system and try again"),
        ("read-only", "Read-only file system", "mount its file system writable and try again"),
    ] {
        let filler = if how == "full" { Some(fill(&directory)) } else { None };
        if how == "read-only" {
            protect(&daemon, &state.join("test"));
        }
        let whole = one_pool(&[("two", 2, 50)]);
        for (path, body) in
            [("/v1/backends/app/one", "{\"weight\":4}"), ("/v1/apply", &whole), ("/v1/rollback?to=1", "")]
        {
            let (status, answer) = daemon.send("POST", path, body);
            let error = answer["error"].as_str().unwrap_or("");
            assert_eq!(status, 500, "{how} {path}: {answer}");
            for part in [words, remedy, state.to_str().unwrap()] {
                assert!(error.contains(part), "{how} {path}: {error}");
            }
        }
        assert_eq!(weight(&daemon), 3, "{how}");
        let (_, now) = daemon.send("GET", "/v1/status", "");
        assert_eq!(now["generation"], published, "{how}");
        assert_eq!(daemon.last_change()["number"], 2, "{how}");
        assert!(has_no_halves(&directory), "{how}");
        assert_eq!(weight_of_files(&inside(&daemon, &state)), 3, "{how}: a start finds what was in force");
        // room again
        filler.map(fs::remove_file).transpose().unwrap();
        if how == "read-only" {
            unprotect(&daemon, &state.join("test"));
        }
        if how == "full" {
            continue;
        }
        assert_eq!(set_weight(&daemon, 5).0, 200, "{how}");
    }
    assert_eq!(weight(&daemon), 5);
    assert_eq!(weight_of_files(&inside(&daemon, &state)), 5);
    let (_, history) = daemon.send("GET", "/v1/history", "");
    let numbers: Vec<_> =
        history["changes"].as_array().unwrap().iter().map(|c| c["number"].as_u64()).collect();
    assert_eq!(numbers, [Some(3), Some(2), Some(1)], "without a gap");
    assert!(history.get("note").is_none(), "{history}");
}

#[test]
fn history_outgrows_its_room_and_loses_nothing() {
    if !may_mount() {
        return;
    }
    let daemon = start();
    let directory = inside(&daemon, &daemon.instance.options.state_dir.join("test"));
    // changes until there is no room left: the texts of history take it all
    let mut made = 1;
    let refused = (0..64).find_map(|number| {
        let text = format!("{}# {}{number}\n", one_pool(TWO), "x".repeat(3_500));
        let (status, answer) = daemon.send("POST", "/v1/apply", &text);
        if status == 200 {
            made = answer["number"].as_u64().unwrap();
            return None;
        }
        Some(answer["error"].as_str().unwrap().to_owned())
    });
    let error = refused.expect("64 KiB are full before");
    assert!(error.contains("No space left") && error.contains("make room"), "{error}");
    assert_eq!(daemon.last_change()["number"].as_u64(), Some(made));
    assert!(has_no_halves(&directory));
    // with more room it goes on, and all that was answered is remembered
    mount(&daemon, "mount", &["-o", "remount,size=512k"], &daemon.instance.options.state_dir);
    assert_eq!(set_weight(&daemon, 9).0, 200);
    let (status, answer) = daemon.send("POST", "/v1/rollback?to=2", "");
    assert_eq!(status, 200, "{answer}");
    let (_, history) = daemon.send("GET", "/v1/history", "");
    assert_eq!(history["changes"].as_array().unwrap().len() as u64, made + 2);
    assert!(history.get("note").is_none(), "{history}");
}

#[test]
fn a_file_or_a_backup_that_does_not_fit_leaves_the_one_before() {
    if !may_mount() {
        return;
    }
    let daemon = start();
    let etc = daemon.instance.options.config.parent().unwrap().to_owned();
    let (directory, config) = (inside(&daemon, &etc), inside(&daemon, &daemon.instance.options.config));
    let backup = directory.join("backup");
    let said = |arguments: &[&str]| {
        let output = daemon.weir(arguments);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let path = backup.to_str().unwrap();
    assert_eq!(said(&["backup", path]).0, Some(0));
    let before = (fs::read(&backup).unwrap(), fs::read_to_string(&config).unwrap());
    let added = "{\"changes\":[{\"op\":\"add\",\"kind\":\"backend\",\"name\":\"app/three\",\"fields\":{\"address\":\"198.18.1.3\"}}]}";
    assert_eq!(daemon.send("POST", "/v1/changes", added).0, 200);
    for (how, words) in [("full", "No space left on device"), ("read-only", "Read-only file system")] {
        let filler = if how == "full" { Some(fill(&directory)) } else { None };
        if how == "read-only" {
            protect(&daemon, &etc);
        }
        let (code, error) = said(&["backup", path]);
        assert_eq!(code, Some(1), "{how}: {error}");
        assert!(
            error.contains(words) && error.contains(path) && error.contains("no new backup"),
            "{how}: {error}"
        );
        let (code, error) = said(&["save"]);
        assert_eq!(code, Some(1), "{how}: {error}");
        assert!(
            error.contains(words) && error.contains("weir.toml") && error.contains("nothing was saved; m"),
            "{how}: {error}"
        );
        assert_eq!(before, (fs::read(&backup).unwrap(), fs::read_to_string(&config).unwrap()), "{how}");
        assert!(has_no_halves(&directory), "{how}");
        assert_eq!(daemon.send("GET", "/v1/status", "").1["drift"], true, "{how}");
        filler.map(fs::remove_file).transpose().unwrap();
        if how == "read-only" {
            unprotect(&daemon, &etc);
        }
    }
    assert_eq!(said(&["save"]).0, Some(0));
    assert!(fs::read_to_string(&config).unwrap().contains("three"));
    assert_eq!(said(&["backup", path]).0, Some(0));
    assert_ne!(before.0, fs::read(&backup).unwrap());
}

#[test]
fn a_start_without_a_writable_state_directory_says_so() {
    if !may_mount() {
        return;
    }
    let (instance, child) = spawn(",ro");
    let output = child.wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    let state = instance.options.state_dir.display().to_string();
    for part in [state.as_str(), "Read-only file system", "mount its file system writable"] {
        assert!(error.contains(part), "{error}");
    }
}
