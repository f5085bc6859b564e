//! What the dataplane must survive from its own machine: bad snapshots, and other DPDK programs.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hugepages::generation::Publisher;
use hugepages::segment::SegmentDir;
use weir_abi::{Root, root_name, table_name};

use super::rig::{Rig, who};
use super::{Context, Scenario};
use crate::command;
use crate::config::{Mode, Protocol, Service};
use crate::interrupt::wait_for;
use crate::random::Random;
use crate::status::Status;
use crate::topology::lab::{Family, Io};
use crate::traffic::http;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("hostile/snapshots", snapshots),
        Scenario::new("hostile/foreign-dpdk-process", foreign),
        Scenario::new("hostile/second-instance", second),
    ]
}

/// Each broken generation is refused with a reason; the old one keeps running, and a good one is taken afterwards.
fn snapshots(context: &Context) -> Result<()> {
    let service = Service::new(Mode::Nat, Protocol::Tcp, Family::Ipv4);
    let mut rig = Rig::start(context, Io::AfXdp, vec![service.clone()])?;
    let good = rig.weir.status()?.generation;
    rig.weir.ctlplane.kill()?;
    let directory = SegmentDir::open_existing(rig.weir.segments())?;
    let publisher = Publisher::open(&directory)?;
    let bytes = directory.read(&root_name(good), 1 << 20)?;
    let root = Root::parse(good, &bytes)?;
    let mut random = Random::new(context.seed, "snapshots");
    let mut generation = good;
    for (what, file) in broken_roots(&root, &bytes, &directory, &mut random)? {
        generation += 1;
        if let Some(bytes) = file(generation) {
            directory.publish(&root_name(generation), &bytes)?;
        }
        publisher.publish(generation);
        let status = wait_for(&format!("{what} to be refused"), Duration::from_secs(5), || {
            rig.weir.dataplane.must_run()?;
            let status = rig.weir.status()?;
            ensure!(!status.acked.contains(&generation), "{what} was adopted");
            Ok(refusal_names(&status, generation).then_some(status))
        })?;
        ensure!(status.acked.iter().all(|&acked| acked == good), "{what}: workers run {:?}", status.acked);
        http::load(&rig.lab.client, service.target(), 10, 2)?.must_be_clean()?;
    }
    // what ctlplane publishes next is taken; it refuses to start beside another publisher
    drop(publisher);
    rig.weir.ctlplane.start_again()?;
    rig.wait_until_adopted().context("after the broken generations")?;
    http::load(&rig.lab.client, service.target(), 10, 2)?.must_be_clean()?;
    rig.finish()
}

fn refusal_names(status: &Status, generation: u64) -> bool {
    status.dataplane.refusal.as_ref().is_some_and(|text| !text.is_empty())
        && status.generation == generation
        && status.dataplane.refused_generation.is_none_or(|refused| refused == generation)
}

/// What to write for the root of a generation; `None` leaves the file out.
type RootOf = Box<dyn Fn(u64) -> Option<Vec<u8>>>;

fn broken_roots(
    root: &Root,
    bytes: &[u8],
    directory: &SegmentDir,
    random: &mut Random,
) -> Result<Vec<(String, RootOf)>> {
    let mut list: Vec<(String, RootOf)> = Vec::new();
    let mut add = |what: &str, file: RootOf| list.push((what.to_owned(), file));
    add("a root that is missing", Box::new(|_| None));
    add("an empty root", Box::new(|_| Some(Vec::new())));
    let noise: Vec<u8> = (0..256).map(|_| random.next() as u8).collect();
    add("a root of noise", Box::new(move |_| Some(noise.clone())));
    // the root of this generation, right in itself
    let renumbered = {
        let root = root.clone();
        move |generation| Root { generation, ..root.clone() }
    };
    let old = bytes.to_vec();
    add("a root of another generation", Box::new(move |_| Some(old.clone())));
    for at in [0usize, 8, 12, 16, 24, 40] {
        let renumbered = renumbered.clone();
        let bit = random.below(8);
        add(
            &format!("a root with bit {bit} of byte {at} flipped"),
            Box::new(move |generation| {
                let mut bytes = renumbered(generation).encode();
                bytes[at] ^= 1 << bit;
                Some(bytes)
            }),
        );
    }
    let cut = renumbered.clone();
    add(
        "a root that is cut off",
        Box::new(move |generation| {
            let mut bytes = cut(generation).encode();
            bytes.truncate(bytes.len() - 5);
            Some(bytes)
        }),
    );
    for (position, reference) in root.tables.iter().enumerate() {
        let table = directory.read(&table_name(reference.id), 1 << 26)?;
        let at = 32 + random.below(table.len() - 32);
        let bit = random.below(8);
        let mut flipped = table.clone();
        flipped[at] ^= 1 << bit;
        let mut versioned = table.clone();
        versioned[8] ^= 0x40;
        let cases = [
            (format!("table {position} with bit {bit} of byte {at} flipped"), flipped),
            (format!("table {position} of another version"), versioned),
            (format!("table {position} cut off"), table[..table.len() / 2].to_vec()),
        ];
        for (number, (what, bytes)) in cases.into_iter().enumerate() {
            // under a name of its own: the good table stays what it is
            let id = reference.id ^ (1 << (8 * number + position));
            directory.publish(&table_name(id), &bytes)?;
            let renumbered = renumbered.clone();
            add(
                &what,
                Box::new(move |generation| {
                    let mut root = renumbered(generation);
                    root.tables[position].id = id;
                    Some(root.encode())
                }),
            );
        }
    }
    let missing = renumbered.clone();
    add(
        "a table that is missing",
        Box::new(move |generation| {
            let mut root = missing(generation);
            root.tables[0].id ^= 0xdead_beef;
            Some(root.encode())
        }),
    );
    add(
        "a root without its node table",
        Box::new(move |generation| {
            let mut root = renumbered(generation);
            root.tables.remove(0);
            Some(root.encode())
        }),
    );
    Ok(list)
}

/// A DPDK program that starts beside Weir, even `--in-memory`, sweeps the hugetlbfs: Weir's flow table must survive.
fn foreign(context: &Context) -> Result<()> {
    let service = Service::new(Mode::Nat, Protocol::Tcp, Family::Ipv4);
    let mut rig = Rig::start(context, Io::AfXdp, vec![service.clone()])?;
    let mut kept = rig.connect(&service)?;
    let name = who(&mut kept)?;
    for memory in [&["--in-memory"][..], &["--file-prefix", "weir-foreign"][..]] {
        let mut testpmd = std::process::Command::new("timeout");
        testpmd.args(["20", "dpdk-testpmd", "--no-pci", "-l", "0,1", "-m", "64", "--vdev", "net_null0"]);
        testpmd.args(memory).args(["--", "--total-num-mbufs=2048", "--nb-cores=1"]);
        // it ends by itself when its input ends
        testpmd.arg("-i");
        command::run_with_input(&mut testpmd, Some("quit\n")).context("testpmd")?;
        ensure!(who(&mut kept)? == name, "a connection left its backend");
    }
    // what the foreign process swept would be missed now
    rig.weir.kill_dataplane()?;
    rig.weir.restart_dataplane(&rig.lab)?;
    rig.weir.wait_until_serving(&rig.lab)?;
    ensure!(who(&mut kept)? == name, "a connection left its backend after the restart");
    ensure!(rig.weir.status()?.worker_sum("flows_recovered") > 0, "no flow was recovered");
    drop(kept);
    rig.finish()
}

/// Another instance that is given the same interfaces says so and ends; the first carries on as if nothing had been.
fn second(context: &Context) -> Result<()> {
    let service = Service::new(Mode::Nat, Protocol::Tcp, Family::Ipv4);
    let rig = Rig::start(context, Io::AfXdp, vec![service.clone()])?;
    let shared = rig.run.path("second");
    let own = SegmentDir::open(&shared).and_then(|_| SegmentDir::open(shared.join("weir-second")))?;
    let first = SegmentDir::open_existing(rig.weir.segments())?;
    for name in first.list()?.iter().filter(|name| name.starts_with("root-") || name.starts_with("table-")) {
        own.publish(name, &first.read(name, 64 << 20)?)?;
    }
    let mut program = rig.lab.lb.command("timeout");
    program.arg("20").arg(&context.binaries.dataplane);
    program.args(["--no-huge", "--instance", "second", "--shm-dir"]).arg(&shared);
    let output = program.output().context("could not start a second weir-dataplane")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1), "the second instance ended with {}: {said}", output.status);
    ensure!(said.contains("another weir-dataplane uses this interface"), "the second instance said: {said}");
    http::load(&rig.lab.client, service.target(), 50, 4)?.must_be_clean()?;
    rig.finish()
}
