//! The life of an instance: starts, changes, kills, lost files; with a dataplane that only acks.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

mod support;

use std::time::{Duration, Instant};

use support::{FakeDataplane, HEAD, Instance, one_pool, pool};
use weir_abi::columns::{ProxyColumn, TcpColumn, UpstreamColumn};
use weir_abi::proxy::{SendProxy, TcpRecord};
use weir_abi::record::{AdminState, NO_INDEX, NO_POSITION};
use weir_abi::table_name;
use weir_ctlplane::engine::{BackendChange, Engine, EngineError, HealthChange};
use weir_ctlplane::state::Admin;
use weir_ctlplane::status::{Health, Status};

const TWO: &[(&str, u8, u16)] = &[("one", 1, 100), ("two", 2, 50)];

fn weight(engine: &mut Engine, backend: &str, weight: u16) {
    engine.set_backend("app", backend, &[BackendChange::Weight(weight)], false).unwrap();
}

/// Lets more than the quiet time pass, acking what is published.
fn let_time_pass(engine: &mut Engine, dataplane: &mut FakeDataplane, from: Instant) -> Instant {
    let mut now = from;
    for _ in 0..20 {
        now += Duration::from_millis(500);
        engine.tick(now).unwrap();
        dataplane.ack(dataplane.published());
    }
    now
}

#[test]
fn a_restart_comes_back_to_the_same_generation() {
    let instance = Instance::new(&one_pool(TWO));
    let mut engine = instance.start();
    assert_eq!(engine.generation(), 1);
    weight(&mut engine, "two", 70);
    let before = instance.read(2).root;
    drop(engine);
    let engine = instance.start();
    assert_eq!(engine.generation(), 2);
    assert_eq!(engine.snapshots().published(), 2);
    assert_eq!(instance.read(2).root, before, "the root was not written again");
    assert_eq!(instance.read(2).pool("app").backends[1].weight, 70);
}

#[test]
fn a_second_daemon_is_refused() {
    let instance = Instance::new(&one_pool(TWO));
    let _engine = instance.start();
    let error = instance.try_start().unwrap_err().to_string();
    assert!(error.contains("runs already"), "{error}");
}

#[test]
fn the_applied_configuration_outlives_an_edited_file_and_drift_is_told() {
    let instance = Instance::new(&one_pool(TWO));
    let mut engine = instance.start();
    assert!(engine.drift().is_empty());
    weight(&mut engine, "two", 70);
    assert_eq!(engine.drift(), ["app/two was set to weight 70 at run time"]);
    instance.write_config(&one_pool(&[("one", 1, 1)]));
    drop(engine);
    let engine = instance.start();
    assert_eq!(instance.read(engine.generation()).pool("app").backends.len(), 2);
    let drift = engine.drift();
    assert!(drift[0].contains("differs from the applied configuration"), "{drift:?}");
}

#[test]
fn wiped_shared_memory_is_filled_again_with_a_later_generation() {
    let instance = Instance::new(&one_pool(TWO));
    let mut engine = instance.start();
    weight(&mut engine, "two", 70);
    std::fs::remove_dir_all(instance.shm().join("weir-test")).unwrap();
    engine.tick(Instant::now()).unwrap();
    assert_eq!(engine.generation(), 3);
    drop(engine);
    std::fs::remove_dir_all(instance.shm().join("weir-test")).unwrap();
    let engine = instance.start();
    assert_eq!(engine.generation(), 4);
    assert_eq!(instance.read(4).pool("app").backends[1].weight, 70);
}

#[test]
fn a_damaged_table_is_written_again() {
    let instance = Instance::new(&one_pool(TWO));
    drop(instance.start());
    let tables = instance.read(1);
    let path = instance.shm().join("weir-test").join(table_name(tables.root.tables[2].id));
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[100] ^= 1;
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, bytes).unwrap();
    let engine = instance.start();
    assert_eq!(engine.generation(), 2);
    instance.read(2);
}

fn damage(instance: &Instance, generation: u64) {
    let name = table_name(instance.read(generation).root.tables[2].id);
    let path = instance.shm().join("weir-test").join(name);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[100] ^= 1;
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, bytes).unwrap();
}

#[test]
fn an_apply_without_a_dataplane_writes_a_damaged_table_again() {
    let instance = Instance::new(&one_pool(TWO));
    let mut engine = instance.start();
    damage(&instance, 1);
    let change = engine.apply(&one_pool(TWO), "f").unwrap();
    assert_eq!((change.generation, change.published.unwrap().tables_written), (2, 1));
    instance.read(2);
    // a table that a change of another pool uses again
    let with_other = format!("{}{}", one_pool(TWO), pool("other", &[("far", 7, 1)]));
    engine.apply(&with_other, "f").unwrap();
    damage(&instance, 3);
    engine.set_backend("other", "far", &[BackendChange::Weight(9)], false).unwrap();
    instance.read(4);
}

#[test]
fn a_refused_generation_is_repaired_by_an_apply_of_the_same_file() {
    let instance = Instance::new(&one_pool(TWO));
    let mut engine = instance.start();
    let mut dataplane = FakeDataplane::start(&instance.segments(), 1);
    damage(&instance, 1);
    dataplane.refuse_as_invalid(1);
    let change = engine.apply(&one_pool(TWO), "f").unwrap();
    assert_eq!((change.generation, change.published.unwrap().tables_written), (2, 1));
    instance.read(2);
    dataplane.ack(2);
    assert!(engine.apply(&one_pool(TWO), "f").unwrap().published.is_none());
}

#[test]
fn a_tick_repairs_each_refused_generation_once() {
    let instance = Instance::new(&one_pool(TWO));
    let mut engine = instance.start();
    let mut dataplane = FakeDataplane::start(&instance.segments(), 1);
    dataplane.ack(1);
    damage(&instance, 1);
    dataplane.refuse(1, "needs a restart");
    engine.tick(Instant::now()).unwrap();
    assert_eq!(engine.generation(), 1, "refused for what a new generation does not mend");
    dataplane.refuse_as_invalid(1);
    engine.tick(Instant::now()).unwrap();
    engine.tick(Instant::now()).unwrap();
    assert_eq!(engine.generation(), 2);
    instance.read(2);
    // refused again though intact: no generation after the other
    dataplane.refuse_as_invalid(2);
    engine.tick(Instant::now()).unwrap();
    engine.tick(Instant::now()).unwrap();
    assert_eq!(engine.generation(), 2);
    // damaged again
    damage(&instance, 2);
    for _ in 0..3 {
        engine.tick(Instant::now()).unwrap();
    }
    assert_eq!(engine.generation(), 3);
    instance.read(3);
}

#[test]
fn lost_state_takes_the_indices_over_from_shared_memory() {
    let instance = Instance::new(&one_pool(&[("zero", 9, 1), ("one", 1, 100), ("two", 2, 50)]));
    let mut engine = instance.start();
    engine.apply(&one_pool(&[("two", 2, 50)]), "f").unwrap();
    let removed = instance.read(2);
    drop(engine);
    std::fs::remove_dir_all(&instance.options.state_dir).unwrap();
    instance.write_config(&one_pool(&[("new", 3, 1), ("two", 2, 50)]));
    let engine = instance.start();
    let tables = instance.read(engine.generation());
    let index = |tables: &support::Tables, name: &str| {
        tables.pool("app").backends.iter().find(|b| b.name.as_str() == name).unwrap().index
    };
    assert_eq!(index(&tables, "two"), index(&removed, "two"));
    assert_eq!(index(&tables, "new"), 3, "indices of removed ones are not given away");
    assert_eq!(tables.listeners.listeners[0].index, removed.listeners.listeners[0].index);
}

#[test]
fn corrupt_state_stops_the_daemon_with_the_file_named() {
    let instance = Instance::new(&one_pool(TWO));
    drop(instance.start());
    let path = instance.options.state_dir.join("test/state.json");
    std::fs::write(&path, "{").unwrap();
    let error = instance.try_start().unwrap_err().to_string();
    assert!(error.contains("state.json is corrupt") && error.contains("move it away"), "{error}");
}

#[test]
fn a_bad_first_file_is_refused_with_its_findings() {
    let instance = Instance::new("[[pool]]\nname = 3\n");
    let Err(EngineError::Config { reports, .. }) = instance.try_start() else { panic!("it started") };
    assert!(reports.iter().any(|report| report.message.contains("name is an integer")));
    std::fs::remove_file(&instance.options.config).unwrap();
    assert!(matches!(instance.try_start(), Err(EngineError::Read { .. })));
}

#[test]
fn a_removed_backend_stays_until_its_flows_end_and_its_index_until_that_is_acked() {
    let instance = Instance::new(&one_pool(TWO));
    let mut engine = instance.start();
    let mut dataplane = FakeDataplane::start(&instance.segments(), 2);
    dataplane.ack(1);
    dataplane.set_backend_flows(0, 5);
    engine.apply(&one_pool(&[("two", 2, 50)]), "f").unwrap();
    dataplane.ack(2);
    let tables = instance.read(2);
    let backends = &tables.pool("app").backends;
    assert_eq!((backends[0].index, backends[1].index), (1, 0));
    assert_eq!((backends[1].admin, backends[1].weight), (AdminState::Removed as u8, 0));
    assert!(tables.pool("app").slots.iter().all(|slot| *slot == 0));

    let now = let_time_pass(&mut engine, &mut dataplane, Instant::now());
    assert_eq!(engine.generation(), 2, "it has flows");
    engine.apply(&one_pool(&[("two", 2, 50), ("three", 3, 1)]), "f").unwrap();
    dataplane.ack(3);
    assert_eq!(instance.read(3).pool("app").backends[1].index, 2, "0 may be held by flows");

    dataplane.set_backend_flows(0, 0);
    engine.tick(now + Duration::from_millis(500)).unwrap();
    engine.tick(now + Duration::from_millis(1_500)).unwrap();
    assert_eq!(engine.generation(), 3, "it was quiet for one second only");
    engine.tick(now + Duration::from_millis(3_000)).unwrap();
    assert_eq!(engine.generation(), 4);
    assert_eq!(instance.read(4).pool("app").backends.len(), 2);
    engine.apply(&one_pool(&[("two", 2, 50), ("three", 3, 1), ("four", 4, 1)]), "f").unwrap();
    assert_eq!(instance.read(5).pool("app").backends[2].index, 3, "no worker acked generation 4 yet");

    dataplane.ack(5);
    engine.tick(now + Duration::from_millis(3_500)).unwrap();
    engine.apply(&one_pool(&[("two", 2, 50), ("three", 3, 1), ("four", 4, 1), ("five", 5, 1)]), "f").unwrap();
    let generation = engine.generation();
    assert_eq!(instance.read(generation).pool("app").backends[3].index, 0, "now it is free");
}

#[test]
fn a_backend_that_comes_back_has_its_index_again() {
    let instance = Instance::new(&one_pool(TWO));
    let mut engine = instance.start();
    let mut dataplane = FakeDataplane::start(&instance.segments(), 1);
    dataplane.ack(1);
    let first = instance.read(1).root.tables;
    engine.apply(&one_pool(&[("one", 1, 100)]), "f").unwrap();
    dataplane.ack(2);
    engine.tick(Instant::now()).unwrap();
    engine.apply(&one_pool(TWO), "f").unwrap();
    assert_eq!(instance.read(3).root.tables, first);
    let now = let_time_pass(&mut engine, &mut dataplane, Instant::now());
    assert_eq!(engine.generation(), 3, "nothing was let go");
    // and removed again it has its two seconds again
    engine.apply(&one_pool(&[("one", 1, 100)]), "f").unwrap();
    dataplane.ack(4);
    engine.tick(now + Duration::from_millis(500)).unwrap();
    assert_eq!(engine.generation(), 4);
}

#[test]
fn without_a_dataplane_nothing_is_let_go() {
    let instance = Instance::new(&one_pool(TWO));
    let mut engine = instance.start();
    engine.apply(&one_pool(&[("two", 2, 50)]), "f").unwrap();
    let mut now = Instant::now();
    for _ in 0..20 {
        now += Duration::from_secs(1);
        engine.tick(now).unwrap();
    }
    assert_eq!(engine.generation(), 2);
    assert_eq!(instance.read(2).pool("app").backends.len(), 2);
}

#[test]
fn a_removed_pool_lives_on_for_its_flows() {
    let with_two = format!("{}{}", one_pool(TWO), pool("other", &[("far", 7, 1)]));
    let instance = Instance::new(&with_two);
    let mut engine = instance.start();
    let mut dataplane = FakeDataplane::start(&instance.segments(), 1);
    dataplane.ack(1);
    dataplane.set_backend_flows(2, 1);
    engine.apply(&one_pool(TWO), "f").unwrap();
    dataplane.ack(2);
    let tables = instance.read(2);
    let left = tables.pool("other");
    assert_eq!((left.backends[0].index, left.backends[0].admin), (2, AdminState::Removed as u8));
    assert_eq!(left.slots, [NO_POSITION]);
    dataplane.set_backend_flows(2, 0);
    let_time_pass(&mut engine, &mut dataplane, Instant::now());
    assert_eq!(instance.read(engine.generation()).pools.len(), 1);
    assert_eq!(engine.state().indices.pools.len(), 1);
}

#[test]
fn a_listeners_index_is_not_given_away_while_flows_hold_it() {
    let instance = Instance::new(&one_pool(TWO));
    let mut engine = instance.start();
    let mut dataplane = FakeDataplane::start(&instance.segments(), 1);
    dataplane.ack(1);
    dataplane.set(0, "listener", 0, 1, 3);
    engine.apply(&one_pool(TWO).replace("\"nat\"", "\"fullnat\""), "f").unwrap();
    dataplane.ack(2);
    assert_eq!(instance.read(2).listeners.listeners[0].index, 1, "another mode is another listener");
    let now = let_time_pass(&mut engine, &mut dataplane, Instant::now());
    assert_eq!(engine.state().indices.listeners.len(), 2);
    dataplane.set(0, "listener", 0, 1, 0);
    let_time_pass(&mut engine, &mut dataplane, now);
    assert_eq!(engine.state().indices.listeners.len(), 1);
    assert_eq!(engine.generation(), 2, "the tables did not change");
}

#[test]
fn indices_run_out_with_a_clear_error_and_nothing_changes() {
    let head = HEAD.replace("workers = 1", "workers = 1\nmax_backends = 2");
    let instance = Instance::new(&format!("{head}{}", pool("app", TWO)));
    let mut engine = instance.start();
    let next = format!("{head}{}", pool("app", &[("one", 1, 1), ("three", 3, 1)]));
    let error = engine.apply(&next, "f").unwrap_err().to_string();
    assert!(error.contains("max_backends = 2") && error.contains("1 removed"), "{error}");
    assert_eq!(engine.generation(), 1);
    assert_eq!(engine.model().pools[0].backends[1].name, "two");
}

#[test]
fn the_last_usable_backend_is_kept_unless_forced() {
    let instance = Instance::new(&one_pool(TWO));
    let mut engine = instance.start();
    engine.set_backend("app", "one", &[BackendChange::State(Admin::Drain)], false).unwrap();
    for change in
        [BackendChange::State(Admin::Drain), BackendChange::State(Admin::Maint), BackendChange::Weight(0)]
    {
        let refused = engine.set_backend("app", "two", &[change], false);
        assert!(matches!(refused, Err(EngineError::LastUsable { .. })));
    }
    engine.set_backend("app", "two", &[BackendChange::State(Admin::Maint)], true).unwrap();
    let tables = instance.read(engine.generation());
    assert!(tables.pool("app").slots.iter().all(|slot| *slot == NO_POSITION));
    let error = engine.set_backend("app", "tow", &[BackendChange::Weight(1)], false).unwrap_err();
    assert_eq!(error.to_string(), "there is no backend app/tow; did you mean app/two?");
}

#[test]
fn overrides_outlive_an_apply_unless_the_file_says_something_new() {
    let instance = Instance::new(&one_pool(TWO));
    let mut engine = instance.start();
    weight(&mut engine, "one", 7);
    weight(&mut engine, "two", 8);
    // another backend, and a new weight for two: the file is newer about two only
    engine.apply(&one_pool(&[("one", 1, 100), ("two", 2, 60), ("three", 3, 1)]), "f").unwrap();
    let weights: Vec<u32> = {
        let tables = instance.read(engine.generation());
        tables.pool("app").backends.iter().map(|b| b.weight).collect()
    };
    assert_eq!(weights, [7, 60, 1]);
    weight(&mut engine, "one", 100);
    assert!(engine.state().overrides.is_empty(), "the file's own value is no override");
}

#[test]
fn static_changes_are_named_while_a_dataplane_runs() {
    let instance = Instance::new(&one_pool(TWO));
    let mut engine = instance.start();
    let changed = one_pool(TWO).replace("workers = 1", "workers = 2").replace("null:", "af_xdp:eth1");
    assert!(engine.dry_run(&changed, "f").unwrap().needs_restart.is_empty(), "nobody runs");
    let _dataplane = FakeDataplane::start(&instance.segments(), 1);
    let change = engine.dry_run(&changed, "f").unwrap();
    // an interface brings the exception path along, which null: has not
    let named = ["workers: CPUs", "port wan: device: null:", "port wan: exception: off"];
    assert_eq!(change.needs_restart.len(), named.len(), "{:?}", change.needs_restart);
    for (found, start) in change.needs_restart.iter().zip(named) {
        assert!(found.starts_with(start), "{found}");
    }
    assert_eq!(engine.generation(), 1);
    let change = engine.apply(&changed, "f").unwrap();
    assert_eq!((change.generation, change.needs_restart.len()), (2, named.len()));
}

#[test]
fn only_the_fields_of_a_port_that_differ_are_named() {
    let lan = "[[port]]\nname = \"lan\"\ndevice = \"null:\"\n";
    let instance = Instance::new(&format!("{}{lan}", one_pool(TWO)));
    let mut engine = instance.start();
    let _dataplane = FakeDataplane::start(&instance.segments(), 1);
    let change = engine.dry_run(&format!("{}{lan}queues = 1\nmtu = 9000\n", one_pool(TWO)), "f").unwrap();
    assert_eq!(change.needs_restart, ["port lan: mtu: 1500 to 9000", "port lan: queues: default to 1"]);
    let change = engine.dry_run(&one_pool(TWO), "f").unwrap();
    assert_eq!(change.needs_restart, ["ports: wan, lan to wan"]);
}

#[test]
fn an_apply_of_the_same_publishes_nothing() {
    let instance = Instance::new(&one_pool(TWO));
    let mut engine = instance.start();
    let change = engine.apply(&format!("# a comment\n{}", one_pool(TWO)), "f").unwrap();
    assert!(change.published.is_none());
    assert_eq!(engine.generation(), 1);
    drop(engine);
    assert!(instance.start().state().config.starts_with("# a comment"));
}

#[test]
fn retired_files_go_and_those_in_use_stay() {
    let instance = Instance::new(&one_pool(TWO));
    let mut engine = instance.start();
    let mut dataplane = FakeDataplane::start(&instance.segments(), 1);
    dataplane.ack(1);
    for value in 1..=10 {
        weight(&mut engine, "two", value);
    }
    instance.read(1);
    instance.read(11);
    dataplane.ack(11);
    engine.tick(Instant::now()).unwrap();
    let names = instance.segments().list().unwrap();
    let roots: Vec<_> = names.iter().filter(|name| name.starts_with("root-")).collect();
    assert_eq!(roots, ["root-10", "root-11"]);
    assert_eq!(names.iter().filter(|name| name.starts_with("table-")).count(), 4);
    instance.read(10);
}

#[test]
fn one_weight_among_500_pools_costs_one_table() {
    let mut text = HEAD.to_owned();
    for number in 0..500 {
        let name = if number == 0 { "app".to_owned() } else { format!("pool-{number}") };
        text.push_str(&format!("[[pool]]\nname = \"{name}\"\nslots = 1009\n"));
        for backend in 0..100 {
            let (high, low) = (number / 200 + 1, number % 200 + 1);
            text.push_str(&format!(
                "[[pool.backend]]\nname = \"b{backend}\"\naddress = \"198.18.{}.{low}:{}\"\n",
                high,
                1000 + backend
            ));
        }
    }
    let instance = Instance::new(&text);
    let mut engine = instance.start();
    assert_eq!(engine.slot_tables_built(), 500);
    let before: Vec<_> = instance.read(1).root.tables;
    let change = engine.set_backend("app", "b7", &[BackendChange::Weight(3)], false).unwrap();
    let published = change.published.unwrap();
    assert_eq!((published.tables_written, published.tables), (1, 502));
    assert_eq!(engine.slot_tables_built(), 501);
    let after = instance.read(2).root.tables;
    assert_eq!(before.iter().zip(&after).filter(|(left, right)| left != right).count(), 1);
}

#[test]
fn status_reads_shared_memory_alone() {
    let instance = Instance::new(&one_pool(TWO));
    let nothing = Status::read(instance.shm(), "test");
    assert_eq!(nothing.health(), Health::Unreachable);
    let engine = instance.start();
    assert_eq!(Status::read(instance.shm(), "test").health(), Health::Degraded);
    let mut dataplane = FakeDataplane::start(&instance.segments(), 2);
    dataplane.ack(1);
    dataplane.set(0, "worker", 0, 0, 10);
    dataplane.set(0, "worker", 0, 1, 7);
    dataplane.set(1, "worker", 0, 1, 1);
    dataplane.set(0, "port", 0, 0, 4);
    dataplane.set(1, "port", 0, 0, 5);
    dataplane.set(1, "drop", 0, 1, 9);
    dataplane.set_backend_flows(1, 6);
    let status = Status::read(instance.shm(), "test");
    assert_eq!(status.health(), Health::Good, "{:?}", status.complaints());
    assert_eq!((status.generation, status.acked.clone()), (1, vec![1, 1]));
    assert_eq!((status.workers[0].balance, status.workers[1].balance), (3, -1));
    assert_eq!((status.ports[0].counters["rx_packets"], status.drops["martian"]), (9, 9));
    let backend = &status.pools[0].backends[1];
    assert_eq!((backend.address.as_str(), backend.counters["flows_active"]), ("198.18.1.2:8080", 6));
    assert!((backend.slot_share - 1.0 / 3.0).abs() < 0.01);
    assert_eq!(status.listeners[0].pool, "app");
    drop(engine);
    let status = Status::read(instance.shm(), "test");
    assert_eq!((status.health(), status.ctlplane.state.as_str()), (Health::Degraded, "down"));
    dataplane.refuse(2, "needs a restart");
    drop(dataplane);
    let status = Status::read(instance.shm(), "test");
    assert_eq!(status.dataplane.refusal.as_deref(), Some("needs a restart"));
    assert_eq!(status.health(), Health::Unreachable);
}

/// `HEAD` with its listener proxied.
fn proxied(text: &str) -> String {
    text.replace("mode = \"nat\"", "mode = \"proxy\"")
}

#[test]
fn l4_configurations_have_no_records_of_proxies() {
    let instance = Instance::new(&one_pool(TWO));
    let _engine = instance.start();
    let tables = instance.read(1);
    assert_eq!(tables.root.tables.len(), 3, "node, listeners, one pool");
    assert!(tables.listeners.proxies.is_empty() && tables.listeners.trusted.is_empty());
    assert_eq!(tables.listeners.listeners[0].proxy, NO_INDEX);
    assert_eq!(tables.pools[0].pool.upstream, TcpRecord::POOL);
}

#[test]
fn a_proxy_setting_costs_the_listeners_table_and_a_limit_its_pool() {
    let start = proxied(&one_pool(TWO));
    let instance = Instance::new(&start);
    let mut engine = instance.start();
    let built = engine.slot_tables_built();
    let patient = start.replace("pool = \"app\"\n", "pool = \"app\"\ntimeouts = { idle = \"2h\" }\n");
    let written = |change: weir_ctlplane::engine::Change| change.published.unwrap().tables_written;
    assert_eq!(written(engine.apply(&patient, "f").unwrap()), 1);
    assert_eq!(instance.read(2).listeners.proxies[0].idle_ms, 7_200_000);
    let limited = patient.replace("weight = 100\n", "weight = 100\nmax_connections = 7\n");
    assert_ne!(limited, patient);
    assert_eq!(written(engine.apply(&limited, "f").unwrap()), 1);
    assert_eq!(instance.read(3).pools[0].backends[0].max_connections, 7);
    let headed = limited.replace("name = \"app\"\n", "name = \"app\"\nsend_proxy = \"v2\"\n");
    assert_eq!(written(engine.apply(&headed, "f").unwrap()), 1);
    assert_eq!(instance.read(4).pools[0].pool.send_proxy, SendProxy::V2 as u8);
    assert_eq!(engine.slot_tables_built(), built, "no slot moves for any of that");
}

#[test]
fn the_size_of_the_tcp_engine_needs_a_restart_and_its_memory_does_not() {
    let start = one_pool(TWO);
    let instance = Instance::new(&start);
    let mut engine = instance.start();
    let _dataplane = FakeDataplane::start(&instance.segments(), 1);
    let with = |line: &str| start.replace("workers = 1\n", &format!("workers = 1\n{line}\n"));
    let change = engine.apply(&with("tcp_memory = \"1GiB\""), "f").unwrap();
    assert_eq!(change.needs_restart, Vec::<String>::new());
    assert_eq!(instance.read(2).node.node.tcp_memory_bytes, 1 << 30);
    let change = engine.apply(&with("tcp_connections = 1000000"), "f").unwrap();
    assert_eq!(change.needs_restart, ["tcp_connections: 65536 to 1000000"]);
}

#[test]
fn a_removed_backend_stays_until_its_proxied_connections_end() {
    let instance = Instance::new(&proxied(&one_pool(TWO)));
    let mut engine = instance.start();
    let mut dataplane = FakeDataplane::start(&instance.segments(), 2);
    dataplane.ack(1);
    let active = UpstreamColumn::Active as usize;
    // a gauge over both workers: one opened three, the other closed one of them
    dataplane.set(0, UpstreamColumn::GROUP, 1, active, 3);
    dataplane.set(1, UpstreamColumn::GROUP, 1, active, 1u64.wrapping_neg());
    engine.apply(&proxied(&one_pool(&TWO[..1])), "f").unwrap();
    dataplane.ack(dataplane.published());
    let mut now = let_time_pass(&mut engine, &mut dataplane, Instant::now());
    assert_eq!(instance.read(engine.generation()).pool("app").backends.len(), 2, "two connections are open");
    dataplane.set(0, UpstreamColumn::GROUP, 1, active, 1);
    for _ in 0..4 {
        now = let_time_pass(&mut engine, &mut dataplane, now);
    }
    assert_eq!(instance.read(engine.generation()).pool("app").backends.len(), 1);
}

#[test]
fn status_tells_of_terminated_tcp_only_where_there_is_some() {
    let instance = Instance::new(&one_pool(TWO));
    let mut engine = instance.start();
    let mut dataplane = FakeDataplane::start(&instance.segments(), 2);
    dataplane.ack(1);
    dataplane.set(0, TcpColumn::GROUP, 0, TcpColumn::ConnectionsCapacity as usize, 65_536);
    let status = Status::read(instance.shm(), "test");
    assert!(status.tcp.is_none() && status.workers[0].tcp.is_empty());
    assert!(status.listeners[0].proxy.is_empty() && status.pools[0].backends[0].upstream.is_empty());
    let json = serde_json::to_string(&status).unwrap();
    assert!(!json.contains("half_open") && !json.contains("\"upstream\""), "{json}");

    engine.apply(&proxied(&one_pool(TWO)), "f").unwrap();
    dataplane.ack(2);
    let index = instance.read(2).listeners.listeners[0].index;
    dataplane.set(0, TcpColumn::GROUP, 0, TcpColumn::Established as usize, 5);
    dataplane.set(1, TcpColumn::GROUP, 0, TcpColumn::Established as usize, 1u64.wrapping_neg());
    dataplane.set(1, TcpColumn::GROUP, 0, TcpColumn::ResetsLimit as usize, 3);
    dataplane.set(1, ProxyColumn::GROUP, index, ProxyColumn::ConnectionsActive as usize, 2);
    dataplane.set(0, UpstreamColumn::GROUP, 1, UpstreamColumn::Retries as usize, 9);
    let status = Status::read(instance.shm(), "test");
    let tcp = status.tcp.as_ref().unwrap();
    assert_eq!((tcp.counters["established"], tcp.counters["resets_limit"]), (4, 3));
    assert_eq!(tcp.memory_ceiling, 256 << 20, "one worker is configured");
    assert_eq!((status.workers[0].tcp["established"], status.workers[1].tcp["resets_limit"]), (5, 3));
    assert_eq!(
        (status.listeners[0].mode.as_str(), status.listeners[0].proxy["connections_active"]),
        ("proxy", 2)
    );
    assert_eq!(status.pools[0].backends[1].upstream["retries"], 9);
    let json = serde_json::to_string(&status).unwrap();
    let back: Status = serde_json::from_str(&json).unwrap();
    assert_eq!(back.tcp.unwrap().counters, tcp.counters);
    // the last listener gone, its connections still there
    engine.apply(&one_pool(TWO), "f").unwrap();
    let status = Status::read(instance.shm(), "test");
    assert_eq!(status.tcp.unwrap().counters["established"], 4);
    assert_eq!(status.pools[0].backends[1].upstream["retries"], 9);
}

fn health(backend: &str, down: bool) -> HealthChange {
    let reason = if down { "connection refused" } else { "2 checks in a row passed" };
    HealthChange { pool: "app".to_owned(), backend: backend.to_owned(), down, reason: reason.to_owned() }
}

#[test]
fn health_takes_slots_away_until_nobody_is_left_and_is_never_kept() {
    let instance = Instance::new(&one_pool(TWO));
    let mut engine = instance.start();
    let change = engine.set_health(&[health("one", true), health("gone", true)]).unwrap();
    assert_eq!(change.generation, 2);
    let tables = instance.read(2);
    let app = tables.pool("app");
    assert_eq!((app.backends[0].down, app.backends[1].down), (1, 0));
    assert!(app.slots.iter().all(|slot| *slot == 1));
    assert!(engine.set_health(&[health("one", true)]).unwrap().published.is_none());
    // all of them: health is ignored
    engine.set_health(&[health("two", true)]).unwrap();
    let tables = instance.read(3);
    assert!(tables.pool("app").backends.iter().all(|backend| backend.down == 0));
    assert_eq!(tables.root.tables, instance.read(3).root.tables);
    // an administrative state leaves one, and that one is down: it fails open alone
    engine.set_backend("app", "one", &[BackendChange::State(Admin::Maint)], false).unwrap();
    let tables = instance.read(4);
    assert!(tables.pool("app").slots.iter().all(|slot| *slot == 1));
    engine.set_backend("app", "one", &[BackendChange::State(Admin::Ready)], false).unwrap();
    engine.set_health(&[health("two", false)]).unwrap();
    assert_eq!(instance.read(engine.generation()).pool("app").backends[0].down, 1);
    drop(engine);
    let engine = instance.start();
    let tables = instance.read(engine.generation());
    assert!(tables.pool("app").backends.iter().all(|backend| backend.down == 0), "it is found out again");
}
