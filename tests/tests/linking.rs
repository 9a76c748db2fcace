//! What is linked to what, and which process opens plugins.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use fwp_test_support::{executable, fixture};
use fwp_tests::process::{children, engine_of, lines, mapped, needed, send, wait_until};
use fwp_tests::{Case, build};

#[test]
fn the_host_answers_at_once() {
    let case = Case::new();
    let fastest = (0..10).map(|_| {
        let start = Instant::now();
        let output = Command::new(case.host()).arg("--help").output().unwrap();
        assert!(output.status.success() && !output.stdout.is_empty());
        start.elapsed()
    });
    let fastest = fastest.min().unwrap();
    assert!(fastest < Duration::from_millis(50), "{fastest:?}");
}

#[test]
fn only_the_engine_is_linked_to_libtorch() {
    let libraries = build();
    let foreign = |name: &str| ["torch", "c10", "cuda", "nvidia", "gomp"].iter().any(|f| name.contains(f));
    for file in libraries.into_iter().chain([executable("fwp-host")]) {
        let needed = needed(&file);
        assert!(needed.iter().any(|n| n.starts_with("libc.so")), "{}: {needed:?}", file.display());
        assert!(!needed.iter().any(|n| foreign(n)), "{}: {needed:?}", file.display());
    }
    // The other side of the same test: it would see libtorch where it is.
    let engine = needed(&executable("fwp-engine"));
    assert!(engine.iter().any(|n| n.starts_with("libtorch")) && engine.iter().any(|n| n.starts_with("libc10")), "{engine:?}");
}

fn plugins(pid: u32) -> Vec<String> {
    mapped(pid).into_iter().filter(|n| n.starts_with("libfwp_") || n == "plugin.so").collect()
}

#[test]
fn a_process_that_trains_has_never_opened_a_plugin() {
    let case = Case::new();
    // One of the parts comes by its path, as a user's own does.
    let own = case.path("plugin.so");
    std::fs::copy(fixture("twin_a"), &own).unwrap();
    let mut host = case
        .command("train --recipe memory.toml --run-dir out --progress none --steps 100000")
        .args(["--set", &format!("update_rule.plugin={}", own.display())])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let engine = engine_of(&mut host);
    let metrics = case.path("out/metrics.jsonl");
    let pid = host.id();
    for step in [1, 20, 60] {
        wait_until(&mut host, "it trains", || lines(&metrics) >= step);
        // Reading the maps works: the engine has libtorch, the host has not.
        assert!(mapped(engine).iter().any(|n| n.starts_with("libtorch_cpu")));
        assert!(mapped(pid).iter().any(|n| n == "fwp-host") && !mapped(pid).iter().any(|n| n.starts_with("libtorch")));
        assert_eq!((plugins(engine), plugins(pid)), (vec![], vec![]));
    }
    send("TERM", pid);
    assert_eq!(host.wait().unwrap().code(), Some(7));
}

#[test]
fn a_plugin_is_opened_in_a_child_of_the_host_that_ends() {
    let case = Case::new();
    let own = case.path("plugin.so");
    std::fs::copy(fixture("hostile"), &own).unwrap();
    // It sleeps while it describes itself, so that there is time to look.
    let mut host = case
        .command("train --recipe memory.toml --run-dir out --set update_rule.mode=sleep")
        .args(["--set", &format!("update_rule.plugin={}", own.display())])
        .env("FWP_PLUGIN_TIMEOUT", "3")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let pid = host.id();
    let mut child = 0;
    wait_until(&mut host, "a child has the plugin open", || {
        let with_plugin = children(pid).into_iter().find(|c| plugins(*c).contains(&"plugin.so".to_string()));
        child = with_plugin.unwrap_or_default();
        child != 0
    });
    assert_eq!(plugins(pid), Vec::<String>::new());
    assert_eq!(host.wait().unwrap().code(), Some(4));
    assert!(plugins(child).is_empty(), "the child has ended with the host");
}
