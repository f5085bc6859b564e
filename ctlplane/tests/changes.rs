//! Changes at run time, history, confirmation, saving, backup: what an operator sees of them, by the engine itself.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

mod support;

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::json;
use support::{FakeDataplane, HEAD, Instance, one_pool};
use weir_abi::TableRef;
use weir_abi::record::AdminState;
use weir_ctlplane::changes::edit::Edit;
use weir_ctlplane::changes::{Origin, Who, unix_ms};
use weir_ctlplane::engine::{BackendChange, Engine, EngineError, Manner};
use weir_ctlplane::state::Admin;

const TWO: &[(&str, u8, u16)] = &[("one", 1, 100), ("two", 2, 50)];

fn edit(op: &str, kind: &str, name: &str, fields: serde_json::Value) -> Edit {
    serde_json::from_value(json!({ "op": op, "kind": kind, "name": name, "fields": fields })).unwrap()
}

fn plain() -> Manner {
    Manner::default()
}

fn confirm(seconds: u64) -> Manner {
    Manner { confirm: Some(Duration::from_secs(seconds)), ..plain() }
}

fn tables(instance: &Instance, engine: &Engine) -> Vec<TableRef> {
    instance.read(engine.generation()).root.tables
}

/// What new flows get: all that is configured, with indices, without what only waits for its flows to end.
fn behaviour(instance: &Instance, engine: &Engine) -> BTreeMap<String, String> {
    let tables = instance.read(engine.generation());
    let mut all = BTreeMap::new();
    for pool in &tables.pools {
        let there = |at: &u16| pool.backends.get(usize::from(*at)).map(|backend| backend.index);
        let backends: Vec<String> = pool
            .backends
            .iter()
            .filter(|backend| backend.admin != AdminState::Removed as u8)
            .map(|b| format!("{} {} {:?} {} {}", b.name, b.index, b.address.ip(), b.weight, b.admin))
            .collect();
        if backends.is_empty() && pool.slots.len() == 1 {
            continue;
        }
        let slots: Vec<_> = pool.slots.iter().map(there).collect();
        all.insert(pool.pool.name.to_string(), format!("{} {backends:?} {slots:?}", pool.pool.index));
    }
    let listeners = tables.listeners.listeners.iter();
    let listeners =
        listeners.map(|l| format!("{} {} {}-{} {}", l.name, l.index, l.port_first, l.port_last, l.pool));
    all.insert("listeners".to_owned(), listeners.collect::<Vec<_>>().join(", "));
    all
}

/// All that a generation says, but for the numbers that names have and what only waits for its flows to end.
fn snapshot(instance: &Instance, generation: u64) -> BTreeMap<String, String> {
    let tables = instance.read(generation);
    let mut all = BTreeMap::from([("node".to_owned(), format!("{:016x}", tables.root.tables[0].id))]);
    let mut names = BTreeMap::new();
    for pool in &tables.pools {
        names.insert(pool.pool.index, pool.pool.name.to_string());
        let mut backends: Vec<String> = pool
            .backends
            .iter()
            .filter(|backend| backend.admin != AdminState::Removed as u8)
            .map(|b| format!("{} {:?} {} {} {}", b.name, b.address.ip(), b.address.port, b.weight, b.admin))
            .collect();
        backends.sort();
        let of = |slot: &u16| pool.backends.get(usize::from(*slot)).map(|backend| backend.name.to_string());
        let slots: Vec<_> = pool.slots.iter().map(of).collect();
        all.insert(
            format!("pool {}", pool.pool.name),
            format!("{} {backends:?} {slots:?}", pool.pool.algorithm),
        );
    }
    for l in &tables.listeners.listeners {
        let vip = tables.listeners.vips[l.vip as usize].address.ip();
        let what =
            format!("{vip:?} {}-{} {} {} {}", l.port_first, l.port_last, l.protocol, l.mode, l.on_down);
        all.insert(format!("listener {}", l.name), format!("{what} {:?}", names.get(&l.pool)));
    }
    all
}

#[test]
fn edits_are_in_force_told_as_drift_saved_and_discarded() {
    let text = one_pool(TWO).replace("port = 80", "port = 80 # web");
    let instance = Instance::new(&text);
    let mut engine = instance.start();
    let change = engine.edit(
        &[
            edit("add", "backend", "app/three", json!({ "address": "198.18.1.3:8080", "weight": 7 })),
            edit("set", "listener", "web-http", json!({ "port": "80-81" })),
            edit("remove", "backend", "app/one", json!({})),
        ],
        &plain(),
    );
    assert_eq!(change.unwrap().number, 2);
    engine.set_backend("app", "two", &[BackendChange::Weight(9)], false).unwrap();
    assert_eq!(
        engine.drift(),
        [
            "listener web-http: port 80 \u{2192} 80-81",
            "backend app/one removed",
            "backend app/three added: address 198.18.1.3:8080, weight 7",
            "app/two was set to weight 9 at run time",
        ]
    );
    let before = (engine.generation(), tables(&instance, &engine));
    let path = &instance.options.config;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o604)).unwrap();
    engine.save(false).unwrap();
    assert_eq!((engine.generation(), tables(&instance, &engine)), before, "saving moves no packet");
    assert!(engine.drift().is_empty(), "{:?}", engine.drift());
    let saved = std::fs::read_to_string(path).unwrap();
    assert!(saved.contains("port = \"80-81\" # web") && saved.contains("weight = 9"), "{saved}");
    assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o604);
    assert_eq!(
        std::fs::read_dir(instance.directory.path()).unwrap().count(),
        3,
        "nothing half-written is left"
    );
    // the saved file alone makes the same
    let fresh = Instance::new(&saved);
    let fresh_engine = fresh.start();
    let without_indices = |text: BTreeMap<String, String>| text.keys().cloned().collect::<Vec<_>>();
    assert_eq!(
        without_indices(behaviour(&fresh, &fresh_engine)),
        without_indices(behaviour(&instance, &engine))
    );
    // and what comes after it can be dropped
    engine.edit(&[edit("remove", "backend", "app/three", json!({}))], &plain()).unwrap();
    engine.set_backend("app", "two", &[BackendChange::Weight(1)], false).unwrap();
    engine.discard(&plain()).unwrap();
    assert!(engine.drift().is_empty());
    assert_eq!(instance.read(engine.generation()).pool("app").backends[0].weight, 9);
}

#[test]
fn an_edited_file_is_not_overwritten_unless_forced() {
    let instance = Instance::new(&one_pool(TWO));
    let mut engine = instance.start();
    engine.set_backend("app", "two", &[BackendChange::Weight(9)], false).unwrap();
    instance.write_config(&format!("{}# mine\n", one_pool(TWO)));
    assert!(matches!(engine.save(false), Err(EngineError::FileChanged { .. })));
    assert!(std::fs::read_to_string(&instance.options.config).unwrap().contains("# mine"));
    engine.save(true).unwrap();
    assert!(!std::fs::read_to_string(&instance.options.config).unwrap().contains("# mine"));
    assert!(engine.drift().is_empty());
}

#[test]
fn what_does_not_validate_changes_nothing_and_names_the_argument() {
    let instance = Instance::new(&one_pool(TWO));
    let mut engine = instance.start();
    let before = engine.state().clone();
    let good = edit("add", "backend", "app/x", json!({ "address": "198.18.1.9" }));
    for (bad, says) in [
        (edit("set", "backend", "app/one", json!({ "wieght": 5 })), "wieght=5: unknown field wieght"),
        (
            edit("set", "backend", "app/one", json!({ "weight": 70_000 })),
            "weight=70000: weight = 70000 is out of range",
        ),
        (edit("set", "backend", "app/one", json!({ "address": "nowhere" })), "address=nowhere: "),
        (
            edit("set", "listener", "web-http", json!({ "pool": "apq" })),
            "pool=apq: there is no pool named \"apq\"",
        ),
        (edit("add", "pool", "no good", json!({})), "no good: "),
        (edit("remove", "pool", "app", json!({})), "1 error"),
        (edit("remove", "backend", "app/onee", json!({})), "no backend app/onee; did you mean app/one?"),
        (edit("add", "backend", "app/two", json!({ "address": "198.18.1.8" })), "a backend app/two already"),
    ] {
        let error = engine.edit(&[good.clone(), bad.clone()], &plain()).unwrap_err().to_string();
        assert!(error.contains(says), "{bad:?}: {error}");
        assert_eq!(*engine.state(), before);
    }
    let last = engine.edit(
        &[edit("remove", "backend", "app/one", json!({})), edit("remove", "backend", "app/two", json!({}))],
        &plain(),
    );
    assert!(matches!(last, Err(EngineError::LastUsable { .. })), "{last:?}");
    let outpaced = engine.edit(&[good], &Manner { expect: Some(7), ..plain() });
    assert!(matches!(outpaced, Err(EngineError::Outpaced { expected: 7, found: 1 })), "{outpaced:?}");
    assert_eq!(*engine.state(), before);
}

#[test]
fn a_dry_run_tells_what_moves_and_moves_nothing() {
    let instance = Instance::new(&one_pool(TWO));
    let mut engine = instance.start();
    let dataplane = FakeDataplane::start(&instance.segments(), 1);
    dataplane.set_backend_flows(0, 12);
    let before = engine.state().clone();
    let manner = Manner { dry_run: true, ..plain() };
    let change = engine.apply_as(&one_pool(&[("two", 2, 50), ("three", 3, 50)]), "f", &manner).unwrap();
    assert_eq!(*engine.state(), before);
    let plan = change.plan.unwrap();
    assert_eq!(
        plan.differences.lines(),
        ["backend app/one removed", "backend app/three added: address 198.18.1.3:8080, weight 50"]
    );
    let blast = plan.blast;
    assert_eq!((blast.listeners.len(), blast.listeners[0].why.as_str()), (1, "its pool app changed"));
    assert!((66.0..=100.0).contains(&blast.pools[0].slots_moved_percent), "{blast:?}");
    let one = blast.backends.iter().find(|backend| backend.name == "app/one").unwrap();
    assert_eq!((one.change.as_str(), one.flows, blast.flows), ("removed", Some(12), Some(12)));
    let none = engine.apply_as(&one_pool(TWO), "f", &manner).unwrap().plan.unwrap();
    assert!(none.differences.is_empty() && none.blast.pools.is_empty() && none.blast.listeners.is_empty());
}

#[test]
fn who_changed_what_is_remembered_over_restarts() {
    let instance = Instance::new(&one_pool(TWO));
    let mut engine = instance.start();
    engine.attribute(Origin::new(Who::user(0), "weir backend weight app/two 9", Some("for the fair")));
    engine.set_backend("app", "two", &[BackendChange::Weight(9)], false).unwrap();
    engine.attribute(Origin::new(Who::user(0), "weir apply f", None));
    engine.apply(&one_pool(&[("two", 2, 50)]), "f").unwrap();
    drop(engine);
    let mut engine = instance.start();
    let told: Vec<_> =
        engine.history().entries().map(|e| (e.number, e.who.name.clone(), e.how.clone())).collect();
    assert_eq!((told[0].0, told[0].1.as_str()), (1, "weir-ctlplane"));
    assert_eq!(told[1], (2, "root".to_owned(), "weir backend weight app/two 9".to_owned()));
    assert_eq!(told.len(), 3);
    assert_eq!(engine.history().entry(2).unwrap().comment.as_deref(), Some("for the fair"));
    let lines = engine.differences(1, 3).unwrap().lines();
    assert_eq!(lines, ["backend app/one removed", "backend app/two: weight 50 \u{2192} 9"]);
    engine.rollback(1, &plain()).unwrap();
    assert_eq!(engine.history().last(), 4);
    assert!(engine.differences(1, 4).unwrap().is_empty());
    assert!(matches!(
        engine.rollback(9, &plain()),
        Err(EngineError::UnknownChange { first: 1, last: 4, .. })
    ));
}

#[test]
fn what_is_not_confirmed_is_taken_back_also_by_the_next_daemon() {
    let instance = Instance::new(&one_pool(TWO));
    let mut engine = instance.start();
    let before = behaviour(&instance, &engine);
    engine.edit(&[edit("set", "backend", "app/two", json!({ "weight": 9 }))], &confirm(60)).unwrap();
    // what is changed meanwhile goes back with it
    engine.set_backend("app", "one", &[BackendChange::State(Admin::Drain)], false).unwrap();
    let deadline = engine.waiting().unwrap().deadline_unix_ms;
    engine.expire(deadline - 1).unwrap();
    assert!(engine.waiting().is_some());
    drop(engine);
    let mut engine = instance.start();
    engine.expire(deadline).unwrap();
    assert!(engine.waiting().is_none());
    assert_eq!(behaviour(&instance, &engine), before);
    let last = engine.history().entries().last().unwrap().clone();
    assert_eq!(
        (last.who.name.as_str(), last.how.as_str()),
        ("weir-ctlplane", "not confirmed in time: back to change 1")
    );
    // confirmed, it stays
    engine.apply_as(&one_pool(&[("one", 1, 3)]), "f", &confirm(1)).unwrap();
    engine.confirm().unwrap();
    engine.expire(unix_ms() + 100_000).unwrap();
    assert_eq!(instance.read(engine.generation()).pool("app").backends[0].weight, 3);
    assert!(matches!(engine.confirm(), Err(EngineError::NothingToConfirm)));
}

#[test]
fn a_fresh_node_comes_up_from_a_backup_with_the_same_tables() {
    let instance = Instance::new(&one_pool(&[("zero", 9, 1), ("one", 1, 100), ("two", 2, 50)]));
    let mut engine = instance.start();
    engine.apply(&one_pool(TWO), "f").unwrap();
    engine.set_backend("app", "two", &[BackendChange::Weight(9)], false).unwrap();
    engine
        .edit(&[edit("add", "backend", "app/three", json!({ "address": "198.18.1.3" }))], &plain())
        .unwrap();
    let text = serde_json::to_string(&engine.backup().unwrap()).unwrap();
    let fresh = Instance::new(&format!("{HEAD}[[pool]]\nname = \"app\"\n"));
    let mut other = fresh.start();
    other.restore(serde_json::from_str(&text).unwrap()).unwrap();
    assert_eq!(tables(&fresh, &other), tables(&instance, &engine));
    assert_eq!(other.history().last(), engine.history().last() + 1);
    assert_eq!(other.drift()[1..], engine.drift()[1..]);
    drop(other);
    let mut other = fresh.start();
    assert_eq!(tables(&fresh, &other), tables(&instance, &engine));
    other.rollback(1, &plain()).unwrap();
    engine.rollback(1, &plain()).unwrap();
    assert_eq!(behaviour(&fresh, &other), behaviour(&instance, &engine));
    // damaged, it changes nothing
    let before = other.state().clone();
    for (from, to) in
        [("weir-backup", "weir-other"), ("198.18.1.1", "198.18.1.7"), ("\"schema\":1", "\"schema\":9")]
    {
        let error = other.restore(serde_json::from_str(&text.replace(from, to)).unwrap()).unwrap_err();
        assert!(matches!(error, EngineError::Backup(_)), "{error}");
    }
    assert_eq!(*other.state(), before);
}

#[test]
fn a_damaged_history_is_said_and_what_is_in_force_stays() {
    let instance = Instance::new(&one_pool(TWO));
    let mut engine = instance.start();
    engine.set_backend("app", "two", &[BackendChange::Weight(9)], false).unwrap();
    engine.tick(std::time::Instant::now()).unwrap();
    let before = tables(&instance, &engine);
    drop(engine);
    let path = instance.options.state_dir.join("test/history.log");
    std::fs::write(&path, "nonsense\n").unwrap();
    let mut engine = instance.start();
    assert_eq!(tables(&instance, &engine), before);
    assert!(engine.history().trouble().unwrap().contains("is damaged"));
    // what waited for it in the state is still known
    assert_eq!(engine.history().entries().count(), 2);
    engine.set_backend("app", "two", &[BackendChange::Weight(8)], false).unwrap();
    let number = engine.history().last();
    engine.rollback(number - 1, &plain()).unwrap();
    assert_eq!(tables(&instance, &engine), before);
    // gone, too
    drop(engine);
    std::fs::remove_file(&path).unwrap();
    let engine = instance.start();
    assert_eq!(tables(&instance, &engine), before);
    assert!(engine.history().last() > number);
}

/// A change of the property below: on backends b0 to b5 of two pools.
#[derive(Clone, Debug)]
enum Step {
    Add(u8, u8, u16),
    Remove(u8, u8),
    Weight(u8, u8, u16),
    Set(u8, u8, u16),
    State(u8, u8, u8),
    Port(u16),
    Algorithm(u8, bool),
    AddListener(u16),
    RemoveListener,
    Rollback(u8),
    Restart,
    Save,
    Discard,
}

fn step() -> impl Strategy<Value = Step> {
    let which = || (0u8..2, 0u8..6);
    prop_oneof![
        3 => (which(), 0u16..200).prop_map(|((p, b), w)| Step::Add(p, b, w)),
        2 => which().prop_map(|(p, b)| Step::Remove(p, b)),
        2 => (which(), 0u16..200).prop_map(|((p, b), w)| Step::Weight(p, b, w)),
        2 => (which(), 1u16..200).prop_map(|((p, b), w)| Step::Set(p, b, w)),
        2 => (which(), 0u8..3).prop_map(|((p, b), s)| Step::State(p, b, s)),
        1 => (1u16..1_000).prop_map(Step::Port),
        1 => (0u8..2, any::<bool>()).prop_map(|(p, hash)| Step::Algorithm(p, hash)),
        2 => (8_000u16..8_009).prop_map(Step::AddListener),
        1 => Just(Step::RemoveListener),
        2 => any::<u8>().prop_map(Step::Rollback),
        1 => Just(Step::Restart),
        1 => Just(Step::Save),
        1 => Just(Step::Discard),
    ]
}

fn pool_name(pool: u8) -> &'static str {
    if pool == 0 { "app" } else { "other" }
}

fn take(engine: &mut Engine, step: &Step) -> Result<(), EngineError> {
    let force = Manner { force: true, ..plain() };
    let name = |pool: u8, backend: u8| format!("{}/b{backend}", pool_name(pool));
    match *step {
        Step::Add(p, b, w) => {
            let fields = json!({ "address": format!("198.18.{}.{}", p + 1, b + 1), "weight": w });
            engine.edit(&[edit("add", "backend", &name(p, b), fields)], &force)
        }
        Step::Remove(p, b) => engine.edit(&[edit("remove", "backend", &name(p, b), json!({}))], &force),
        Step::Weight(p, b, w) => {
            engine.set_backend(pool_name(p), &format!("b{b}"), &[BackendChange::Weight(w)], true)
        }
        Step::Set(p, b, w) => {
            let fields = json!({ "weight": w, "address": format!("198.18.{}.{}:{w}", p + 1, b + 1) });
            engine.edit(&[edit("set", "backend", &name(p, b), fields)], &force)
        }
        Step::State(p, b, s) => {
            let state = [Admin::Ready, Admin::Drain, Admin::Maint][usize::from(s)];
            engine.set_backend(pool_name(p), &format!("b{b}"), &[BackendChange::State(state)], true)
        }
        Step::Port(port) => {
            engine.edit(&[edit("set", "listener", "web-http", json!({ "port": port }))], &force)
        }
        Step::Algorithm(p, hash) => {
            let word = if hash { json!("source-hash") } else { json!(null) };
            engine.edit(&[edit("set", "pool", pool_name(p), json!({ "algorithm": word }))], &force)
        }
        Step::AddListener(port) => {
            let fields =
                json!({ "vip": "web", "port": port, "protocol": "udp", "mode": "nat", "pool": "other" });
            engine.edit(&[edit("add", "listener", "extra", fields)], &force)
        }
        Step::RemoveListener => engine.edit(&[edit("remove", "listener", "extra", json!({}))], &force),
        Step::Rollback(to) => engine.rollback(1 + u64::from(to) % engine.history().last(), &force),
        Step::Save => engine.save(true),
        Step::Discard => engine.discard(&force),
        Step::Restart => Ok(weir_ctlplane::engine::Change::default()),
    }
    .map(drop)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_changes_end_like_their_file_and_every_rollback_brings_its_tables_back(
        steps in prop::collection::vec(step(), 1..20)
    ) {
        let other = "[[pool]]\nname = \"other\"\nslots = 251\n";
        let instance = Instance::new(&format!("{HEAD}[[pool]]\nname = \"app\"\nslots = 251\n{other}"));
        let mut engine = instance.start();
        let mut after = BTreeMap::from([(1, behaviour(&instance, &engine))]);
        for step in &steps {
            if matches!(step, Step::Restart) {
                drop(engine);
                engine = instance.start();
            }
            let before = engine.state().clone();
            match take(&mut engine, step) {
                Ok(()) => {}
                // of what is not there, or there already: nothing happened
                Err(EngineError::Edit(_) | EngineError::UnknownBackend { .. }) => {
                    prop_assert_eq!(engine.state(), &before);
                }
                Err(error) => prop_assert!(false, "{step:?}: {error}"),
            }
            after.insert(engine.history().last(), behaviour(&instance, &engine));
        }
        // the same as a file, applied once
        let text = engine.running_text().unwrap();
        let generation = engine.generation();
        prop_assert!(engine.apply(&text, "f").unwrap().published.is_none(), "the text says what is in force");
        prop_assert_eq!(engine.generation(), generation);
        let fresh = Instance::new(&text);
        let fresh_engine = fresh.start();
        prop_assert_eq!(
            snapshot(&instance, engine.generation()),
            snapshot(&fresh, fresh_engine.generation())
        );
        // each change of history, in any order
        let numbers: Vec<u64> = after.keys().copied().rev().collect();
        for number in numbers {
            engine.rollback(number, &Manner { force: true, ..plain() }).unwrap();
            prop_assert_eq!(&behaviour(&instance, &engine), &after[&number], "change {}", number);
        }
    }
}
