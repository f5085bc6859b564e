//! `weir-dataplane`: takes the NICs from the kernel and forwards every packet. It decides nothing: what it does comes from the
//! snapshot that `weir-ctlplane` published in shared memory, and it goes on without it.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use clap::Parser;
use hugepages::segment::SegmentDir;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use weir_dataplane::{launch, management};

/// Weir's packet process. It reads no configuration file: weir-ctlplane publishes what it runs.
#[derive(Debug, Parser)]
#[command(name = "weir-dataplane", version, about, max_term_width = 110)]
struct Arguments {
    /// Name of the instance; several on one machine need different ones.
    #[arg(long, default_value = "weir", value_parser = instance_name)]
    instance: String,
    /// Directory for memory that is shared with weir-ctlplane (tmpfs).
    #[arg(long, value_name = "DIR", default_value = "/dev/shm")]
    shm_dir: PathBuf,
    /// Mount of hugetlbfs for the flow tables [default: the one with the largest pages]
    #[arg(long, value_name = "DIR")]
    hugepages_dir: Option<PathBuf>,
    /// Use ordinary memory: slower, for laptops and tests.
    #[arg(long)]
    no_huge: bool,
    /// How much to say on standard error: error, warn, info, debug or trace.
    #[arg(long, default_value = "info")]
    log: tracing::level_filters::LevelFilter,
}

fn instance_name(text: &str) -> Result<String, String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if text.is_empty() || text.len() > 32 || !text.bytes().all(plain) {
        return Err("1 to 32 letters, digits, '-' or '_'".to_owned());
    }
    Ok(text.to_owned())
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let writer = std::io::stderr;
    tracing_subscriber::fmt().with_max_level(arguments.log).with_writer(writer).with_target(false).init();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn std::error::Error>> {
    #[cfg(target_arch = "x86_64")]
    if !std::arch::is_x86_feature_detected!("avx2") {
        return Err("this CPU has no AVX2: Weir is built for x86-64-v3 (any server CPU since 2013)".into());
    }
    let stop = Arc::new(AtomicU32::new(0));
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    let told = Arc::clone(&stop);
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for _ in signals.forever() {
            told.fetch_add(1, Ordering::Relaxed);
        }
    })?;
    let own = format!("weir-{}", arguments.instance);
    let shared = SegmentDir::open(arguments.shm_dir.join(&own))?;
    let tables = if arguments.no_huge { None } else { Some(hugepages_dir(arguments)?.join(&own)) };
    let tables = tables.map(SegmentDir::open).transpose()?;
    let place = launch::Place {
        instance: &arguments.instance,
        shared: &shared,
        tables: tables.as_ref().unwrap_or(&shared),
        no_huge: arguments.no_huge,
        log_level: dpdk::eal::LogLevel::Warning,
    };
    management::run(&place, &stop)?;
    Ok(())
}

fn hugepages_dir(arguments: &Arguments) -> Result<PathBuf, Box<dyn std::error::Error>> {
    if let Some(directory) = &arguments.hugepages_dir {
        return Ok(directory.clone());
    }
    let host = hugepages::reserve::Host::system();
    match host.best_mount()? {
        Some(mount) => Ok(mount.path),
        None => Err("no hugetlbfs is mounted: run `weir hugepages reserve --size 2M --count 512`, or start with --no-huge".into()),
    }
}
