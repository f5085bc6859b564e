//! Finds the system's DPDK, generates the bindings and compiles the shim.
//!
//! A machine that lacks something gets one sentence naming the Debian package.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

/// The libraries whose symbols are called. Drivers are loaded by EAL itself from its plugin directory.
const LIBRARIES: [&str; 6] = ["rte_eal", "rte_ethdev", "rte_mbuf", "rte_mempool", "rte_ring", "rte_net"];

const FUNCTIONS: &[&str] = &[
    "rte_eal_init",
    "rte_eal_cleanup",
    "rte_eal_hotplug_add",
    "rte_eal_hotplug_remove",
    "rte_thread_register",
    "rte_thread_unregister",
    "rte_strerror",
    "rte_get_tsc_hz",
    "rte_version",
    "rte_socket_count",
    "rte_eth_dev_get_port_by_name",
    "rte_eth_dev_info_get",
    "rte_eth_dev_configure",
    "rte_eth_dev_adjust_nb_rx_tx_desc",
    "rte_eth_rx_queue_setup",
    "rte_eth_tx_queue_setup",
    "rte_eth_dev_start",
    "rte_eth_dev_stop",
    "rte_eth_dev_close",
    "rte_eth_dev_socket_id",
    "rte_eth_dev_get_mtu",
    "rte_eth_macaddr_get",
    "rte_eth_link_get_nowait",
    "rte_eth_promiscuous_enable",
    "rte_eth_allmulticast_enable",
    "rte_eth_stats_get",
    "rte_eth_stats_reset",
    "rte_eth_xstats_get",
    "rte_eth_xstats_get_names",
    "rte_eth_dev_rss_reta_query",
    "rte_eth_dev_rss_hash_conf_get",
    "rte_pktmbuf_pool_create",
    "rte_mempool_avail_count",
    "rte_mempool_in_use_count",
    "rte_mempool_free",
    "rte_mbuf_dynfield_register",
    "rte_ring_create",
    "rte_ring_free",
    "weir_.*",
];

const TYPES: &[&str] = &[
    "rte_mbuf",
    "rte_eth_conf",
    "rte_eth_dev_info",
    "rte_eth_link",
    "rte_eth_stats",
    "rte_eth_xstat",
    "rte_eth_xstat_name",
    "rte_eth_rss_conf",
    "rte_eth_rss_reta_entry64",
];

const CONSTANTS: &[&str] = &["WEIR_.*", "RTE_MAX_LCORE", "RTE_MAX_QUEUES_PER_PORT"];

/// Only passed by pointer; their insides are DPDK's business.
const OPAQUE: &[&str] = &["rte_mempool", "rte_ring", "rte_device", "rte_memzone"];

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=shim.c");
    println!("cargo::rerun-if-changed=shim.h");
    println!("cargo::rerun-if-env-changed=PKG_CONFIG");
    println!("cargo::rerun-if-env-changed=PKG_CONFIG_PATH");
    println!("cargo::rerun-if-env-changed=LIBCLANG_PATH");
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            println!("cargo::error={reason}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), String> {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set: run this through cargo")?);
    let compile_flags = pkg_config("--cflags")?;
    let link_flags = pkg_config("--libs-only-L")?;

    bindings(&compile_flags)?
        .write_to_file(out.join("bindings.rs"))
        .map_err(|error| format!("cannot write bindings.rs into {}: {error}", out.display()))?;

    let mut shim = cc::Build::new();
    shim.file("shim.c").opt_level(2).warnings(false);
    for flag in &compile_flags {
        shim.flag(flag);
    }
    shim.try_compile("weir_dpdk_shim")
        .map_err(|error| format!("cannot compile shim.c against DPDK's headers: {error}"))?;

    for directory in link_flags.iter().filter_map(|flag| flag.strip_prefix("-L")) {
        println!("cargo::rustc-link-search=native={directory}");
    }
    for library in LIBRARIES {
        println!("cargo::rustc-link-lib=dylib={library}");
    }
    Ok(())
}

fn pkg_config(what: &str) -> Result<Vec<String>, String> {
    let program = std::env::var("PKG_CONFIG").unwrap_or_else(|_| "pkg-config".to_owned());
    let output = Command::new(&program).args([what, "libdpdk"]).output().map_err(|error| {
        format!("cannot run {program} ({error}); install it: apt-get install pkg-config libdpdk-dev")
    })?;
    if !output.status.success() {
        return Err(format!(
            "{program} doesn't know libdpdk; install DPDK's headers: apt-get install libdpdk-dev"
        ));
    }
    Ok(String::from_utf8_lossy(&output.stdout).split_whitespace().map(str::to_owned).collect())
}

fn bindings(compile_flags: &[String]) -> Result<bindgen::Bindings, String> {
    let mut builder = bindgen::Builder::default()
        .header("shim.h")
        .clang_args(compile_flags)
        .rust_edition(bindgen::RustEdition::Edition2024)
        .use_core()
        .derive_debug(false)
        .derive_default(false)
        .layout_tests(true)
        .prepend_enum_name(false)
        .generate_comments(false);
    for name in FUNCTIONS {
        builder = builder.allowlist_function(name);
    }
    for name in TYPES {
        builder = builder.allowlist_type(name);
    }
    for name in CONSTANTS {
        builder = builder.allowlist_var(name);
    }
    for name in OPAQUE {
        builder = builder.opaque_type(name);
    }
    // bindgen panics instead of returning an error when libclang can't be loaded.
    std::panic::set_hook(Box::new(|_| {}));
    let generated = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| builder.generate()));
    let _ = std::panic::take_hook();
    match generated {
        Ok(Ok(bindings)) => Ok(bindings),
        Ok(Err(error)) => {
            Err(format!("bindgen can't read DPDK's headers (libdpdk-dev 22.11 is tested): {error}"))
        }
        Err(cause) => {
            let cause = cause
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| cause.downcast_ref::<&str>().copied())
                .unwrap_or("no reason given")
                .replace('\n', " ");
            Err(format!("bindgen can't load libclang ({cause}); install it: apt-get install libclang-dev"))
        }
    }
}
