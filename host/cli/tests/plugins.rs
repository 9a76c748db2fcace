//! Finding, refusing and asking plugins, as a user sees it.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use fwp_test_support::{fixture, lonely_host, plugin};
use serde_json::Value;

/// A host beside which nothing lies, and a folder for plugins.
struct Case {
    folder: tempfile::TempDir,
    host: PathBuf,
}

impl Case {
    fn new() -> Case {
        let folder = tempfile::tempdir().unwrap();
        let host = lonely_host(Path::new(env!("CARGO_BIN_EXE_fwp-host")), &folder.path().join("bin"));
        std::fs::create_dir(folder.path().join("plugins")).unwrap();
        Case { folder, host }
    }

    fn plugins(&self) -> PathBuf {
        self.folder.path().join("plugins")
    }

    /// Puts a file into the plugin folder.
    fn put(&self, from: &Path, name: &str) -> PathBuf {
        let path = self.plugins().join(name);
        std::fs::copy(from, &path).unwrap();
        path
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.plugins().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.host);
        command
            .args(arguments)
            .env_remove("FWP_PLUGIN_PATH")
            .env("HOME", self.folder.path())
            .env_remove("XDG_DATA_HOME")
            .env("FWP_PLUGIN_TIMEOUT", "5");
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).arg("--plugin-path").arg(self.plugins()).output().unwrap()
    }

    fn list(&self) -> Value {
        let output = self.run(&["plugins", "list", "--json"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The causes of refusal, each with the name of its file.
    fn refused(&self) -> Vec<(String, String)> {
        let list = self.list();
        let refused = list["refused"].as_array().unwrap();
        refused
            .iter()
            .map(|r| {
                let file = r["library"].as_str().unwrap().rsplit('/').next().unwrap().to_string();
                assert!(!r["remedy"].as_str().unwrap().is_empty(), "{r}");
                (file, r["cause"].as_str().unwrap().to_string())
            })
            .collect()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn program(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(&output.stderr));
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    shown["program"].as_str().unwrap().to_string()
}

/// abi_stable's usual way of opening gives the first library of a kind for every later one.
#[test]
fn several_plugins_of_one_kind_are_each_themselves() {
    let case = Case::new();
    case.put(&fixture("twin_a"), "a.so");
    case.put(&fixture("twin_b"), "b.so");
    let list = case.list();
    // One child lists both.
    let names: Vec<&str> = list["parts"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["twin-a", "twin-b"]);
    let a = program(&case.run(&["plugins", "show", "twin-a", "--json"]));
    let b = program(&case.run(&["plugins", "show", "twin-b", "--json"]));
    assert!(a.contains("2 *") && !a.contains("3 *"), "{a}");
    assert!(b.contains("3 *") && !b.contains("2 *"), "{b}");
}

#[test]
fn a_job_of_several_libraries_is_answered_by_each_of_them() {
    let case = Case::new();
    let (a, b) = (case.put(&fixture("twin_a"), "a.so"), case.put(&fixture("twin_b"), "b.so"));
    let dims = serde_json::json!({"heads": 1, "key_raw": 4, "key": 4, "value": 4, "layers": 1, "max_len": 16});
    let library = |path: &Path, name: &str| {
        let request = serde_json::json!({"kind": "update-rule", "name": name, "config": {}, "ask": {"rule": {"dims": dims}}});
        let bytes: Vec<u8> = path.as_os_str().as_encoded_bytes().to_vec();
        serde_json::json!({"path": {"Unix": bytes}, "questions": [{"describe": request}]})
    };
    let job = serde_json::json!({"libraries": [library(&a, "twin-a"), library(&b, "twin-b")]});
    let mut child = case
        .command(&["__describe", "5"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), job.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    // Frames: kind, library, question, length, bytes.
    let mut rest = &output.stdout[..];
    let mut answers = Vec::new();
    while rest.len() >= 17 {
        let length = u64::from_le_bytes(rest[9..17].try_into().unwrap()) as usize;
        if rest[0] == 3 {
            answers.push(rest[17..17 + length].to_vec());
        }
        rest = &rest[17 + length..];
    }
    let constants = |bytes: &[u8]| [2.0_f64, 3.0].map(|c| bytes.windows(8).any(|w| w == c.to_bits().to_le_bytes()));
    assert_eq!(answers.len(), 2);
    assert_eq!(constants(&answers[0]), [true, false]);
    assert_eq!(constants(&answers[1]), [false, true]);
}

#[test]
fn what_is_no_plugin_is_refused_with_cause_and_remedy() {
    let case = Case::new();
    let good = std::fs::read(plugin("fwp-rule-delta")).unwrap();
    case.write("good.so", &good);
    for percent in [1, 50, 99] {
        case.write(&format!("cut-{percent:02}.so"), &good[..good.len() * percent / 100]);
    }
    case.write("cut-head.so", &good[..40]);
    let patched = |at: usize, bytes: &[u8]| {
        let mut copy = good.clone();
        copy[at..at + bytes.len()].copy_from_slice(bytes);
        copy
    };
    let other: u16 = if cfg!(target_arch = "aarch64") { 62 } else { 183 };
    case.write("machine.so", &patched(18, &other.to_le_bytes()));
    case.write("bits.so", &patched(4, &[1]));
    case.write("endian.so", &patched(5, &[2]));
    case.write("object.so", &patched(16, &1_u16.to_le_bytes()));
    case.write("empty.so", b"");
    case.write("random.so", &(0..9999_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect::<Vec<_>>());
    std::fs::create_dir(case.plugins().join("folder.so")).unwrap();
    symlink("loop.so", case.plugins().join("loop.so")).unwrap();
    symlink("nothing", case.plugins().join("gone.so")).unwrap();
    case.put(&fixture("bare"), "bare.so");
    case.put(&fixture("unresolved"), "unresolved.so");
    case.put(&fixture("other_version"), "version.so");
    case.put(&fixture("other_layout"), "layout.so");

    let wanted = [
        ("bare.so", "no plugin of fwp-host"),
        ("bits.so", "not a 64-bit library"),
        ("cut-01.so", "truncated"),
        ("cut-50.so", "truncated"),
        ("cut-99.so", "truncated"),
        ("cut-head.so", "truncated"),
        ("empty.so", "empty"),
        ("endian.so", "big-endian"),
        ("folder.so", "folder"),
        ("gone.so", "no such file"),
        ("layout.so", "laid out differently"),
        ("loop.so", "cannot be followed"),
        ("machine.so", "built for"),
        ("object.so", "not a shared library"),
        ("random.so", "no ELF header"),
        ("unresolved.so", "fwp_fixture_nobody_defines_this"),
        ("version.so", "for version 0.99.0 of the border"),
    ];
    let mut refused = case.refused();
    refused.sort();
    let names: Vec<&str> = refused.iter().map(|(f, _)| f.as_str()).collect();
    assert_eq!(names, wanted.map(|(f, _)| f));
    for ((file, cause), (_, words)) in refused.iter().zip(wanted) {
        assert!(cause.contains(words), "{file}: {cause}");
        assert!(!cause.contains('\n') && cause.len() < 400, "{file}: {cause}");
    }
    // None of them hides the one that is in order.
    assert_eq!(case.list()["parts"][0]["name"], "delta");
}

#[test]
fn the_long_dump_of_a_layout_is_for_verbose_only() {
    let case = Case::new();
    case.put(&fixture("other_layout"), "layout.so");
    let short = text(&case.run(&["plugins", "list"]).stdout);
    let long = text(&case.run(&["plugins", "list", "-v"]).stdout);
    assert!(short.lines().count() < 12, "{short}");
    assert!(long.lines().count() > 40, "{long}");
}

#[test]
fn a_constructor_that_misbehaves_ends_in_a_message_and_hides_nobody() {
    let case = Case::new();
    case.put(&fixture("twin_a"), "a.so");
    for mode in ["abort", "segfault", "exit-0", "exit-1", "loop"] {
        case.put(&fixture("hostile"), &format!("hostile-open-{mode}.so"));
    }
    case.put(&fixture("twin_b"), "z.so");
    let start = Instant::now();
    let refused = case.refused();
    // Only the loop takes its time limit, in a child with others and in one of its own.
    assert!(start.elapsed() < Duration::from_secs(40), "{:?}", start.elapsed());
    let causes: Vec<String> = refused.iter().map(|(f, c)| format!("{f}: {c}")).collect();
    for (mode, words) in [
        ("abort", "SIGABRT"),
        ("segfault", "SIGSEGV"),
        ("exit-0", "exit code 0"),
        ("exit-1", "exit code 1"),
        ("loop", "within 5 s"),
    ] {
        let start = format!("hostile-open-{mode}.so: ");
        assert!(causes.iter().any(|c| c.starts_with(&start) && c.contains(words)), "{mode}: {causes:?}");
    }
    let list = case.list();
    let names: Vec<&str> = list["parts"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["twin-a", "twin-b"]);
}

#[test]
fn what_a_constructor_prints_corrupts_nothing() {
    let case = Case::new();
    case.put(&fixture("hostile"), "hostile-open-print.so");
    let output = case.run(&["plugins", "list"]);
    assert!(text(&output.stdout).contains("hostile"));
    assert!(!text(&output.stdout).contains("printed by a constructor") && output.stderr.is_empty());
    let output = case.run(&["plugins", "list", "-v"]);
    assert!(text(&output.stderr).contains("printed by a constructor") || text(&output.stderr).contains("stderr line"));
}

#[test]
fn a_rule_that_fails_while_describing_itself_ends_in_a_message() {
    let case = Case::new();
    case.put(&fixture("hostile"), "hostile.so");
    for (mode, words) in [
        ("panic-str", "a panic with a plain text"),
        ("panic-string", "a panic with a number: 12"),
        ("panic-other", "with a value that is not text"),
        ("panic-payload", "with a value that is not text"),
        ("panic-in-drop", "a panic in drop"),
        ("panic-while-panicking", "SIGABRT"),
        ("abort", "SIGABRT"),
        ("segfault", "SIGSEGV"),
        ("exit-0", "exit code 0"),
        ("exit-1", "exit code 1"),
        ("memory", "more memory than the 2 GiB"),
        ("stack", "overflowed the stack"),
        ("garble", "garbled"),
        ("loop", "did not answer within 5 s"),
        ("sleep", "did not answer within 5 s"),
    ] {
        let start = Instant::now();
        let output = case.run(&["plugins", "show", "hostile", "--set", &format!("mode={mode}")]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(4), "{mode}: {said}");
        assert!(said.starts_with("error: update-rule `hostile`"), "{mode}: {said}");
        assert!(said.contains(words) && said.contains("  remedy: "), "{mode}: {said}");
        assert!(said.lines().count() <= 4 && !said.contains("stack backtrace"), "{mode}: {said}");
        assert!(output.stdout.is_empty(), "{mode}");
        assert!(start.elapsed() < Duration::from_secs(30), "{mode}: {:?}", start.elapsed());
    }
}

#[test]
fn chatter_and_children_do_not_disturb_an_answer() {
    let case = Case::new();
    case.put(&fixture("hostile"), "hostile.so");
    for mode in ["print", "child", "directory"] {
        let start = Instant::now();
        let output = case.run(&["plugins", "show", "hostile", "--json", "--set", &format!("mode={mode}")]);
        assert!(program(&output).contains("step"), "{mode}");
        assert!(output.stderr.is_empty(), "{mode}: {}", text(&output.stderr));
        assert!(start.elapsed() < Duration::from_secs(10), "{mode}: {:?}", start.elapsed());
    }
}

#[test]
fn answers_are_not_trusted() {
    let case = Case::new();
    case.put(&fixture("liar"), "liar.so");
    for (mode, words) in [
        ("random", "not a program"),
        ("empty", "not a program"),
        ("cut", "ends early"),
        ("kind", "describes feature-map `liar` instead"),
        ("no-entry", "no function `step`"),
        ("huge", "more than the 16 MiB"),
        ("control", "the terminal is mine"),
    ] {
        let output = case.run(&["plugins", "show", "liar", "--set", &format!("mode={mode}")]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(4), "{mode}: {said}");
        assert!(said.contains(words), "{mode}: {said}");
        assert!(!said.contains(['\u{1b}', '\u{7}', '\r']), "{mode}: {said:?}");
    }
}

#[test]
fn plugins_are_found_where_it_is_documented_and_never_in_the_working_directory() {
    let case = Case::new();
    let twin = fixture("twin_a");
    let root = case.folder.path();
    let found = |command: &mut Command| -> Option<String> {
        let output = command.output().unwrap();
        let list: Value = serde_json::from_slice(&output.stdout).unwrap();
        list["parts"].as_array().unwrap().first().map(|p| p["found_by"].as_str().unwrap().to_string())
    };
    let list = || case.command(&["plugins", "list", "--json"]);

    let here = root.join("here");
    std::fs::create_dir(&here).unwrap();
    std::fs::copy(&twin, here.join("libfwp_twin.so")).unwrap();
    assert_eq!(found(list().current_dir(&here)), None);
    assert_eq!(found(list().current_dir(&here).env("FWP_PLUGIN_PATH", ":.:")), None);
    assert_eq!(found(list().env("FWP_PLUGIN_PATH", format!("/nowhere:{}", here.display()))).as_deref(), Some("environment"));
    assert_eq!(found(list().current_dir(&here).args(["--plugin-path", "."])).as_deref(), Some("option"));

    let user = root.join("data/fwp-host/plugins");
    std::fs::create_dir_all(&user).unwrap();
    std::fs::copy(&twin, user.join("any name.so")).unwrap();
    assert_eq!(found(list().env("XDG_DATA_HOME", root.join("data"))).as_deref(), Some("user"));

    // Beside the executable only what says that it is a plugin.
    std::fs::copy(&twin, root.join("bin/libother.so")).unwrap();
    assert_eq!(found(&mut list()), None);
    std::fs::copy(&twin, root.join("bin/libfwp_twin.so")).unwrap();
    assert_eq!(found(&mut list()).as_deref(), Some("executable"));
}

#[test]
fn names_that_are_there_twice_are_shown_and_never_guessed() {
    let case = Case::new();
    case.put(&fixture("twin_a"), "a.so");
    case.put(&fixture("twin_again"), "b.so");
    let statuses = |list: Value| -> Vec<String> {
        list["parts"].as_array().unwrap().iter().map(|p| p["status"].as_str().unwrap().to_string()).collect()
    };
    assert_eq!(statuses(case.list()), ["ambiguous", "ambiguous"]);
    let output = case.run(&["plugins", "show", "twin-a"]);
    assert_eq!(output.status.code(), Some(4));
    assert!(text(&output.stderr).contains("is there twice"), "{}", text(&output.stderr));

    // In another folder of the search path the earlier one wins, and the later one is still shown.
    let later = case.folder.path().join("later");
    std::fs::create_dir(&later).unwrap();
    std::fs::rename(case.plugins().join("b.so"), later.join("b.so")).unwrap();
    let mut command = case.command(&["plugins", "list", "--json"]);
    let output = command.arg("--plugin-path").arg(case.plugins()).env("FWP_PLUGIN_PATH", &later).output().unwrap();
    assert_eq!(statuses(serde_json::from_slice(&output.stdout).unwrap()), ["ok", "shadowed"]);
    // A path says exactly which.
    let path = later.join("b.so");
    let again = program(&case.run(&["plugins", "show", path.to_str().unwrap(), "--json"]));
    assert!(again.contains("5 *"), "{again}");
}

#[test]
fn paths_with_spaces_and_other_bytes_are_opened() {
    use std::os::unix::ffi::OsStrExt;
    let case = Case::new();
    let name = std::ffi::OsStr::from_bytes(b"a \xff b.so");
    std::fs::copy(fixture("twin_a"), case.plugins().join(name)).unwrap();
    assert_eq!(case.list()["parts"][0]["name"], "twin-a");
}

#[test]
fn a_part_is_shown_with_everything_that_is_known_of_it() {
    let case = Case::new();
    case.put(&plugin("fwp-rule-delta"), "delta.so");
    let output = case.run(&["plugins", "show", "delta"]);
    let shown = text(&output.stdout);
    for words in ["Schlag, Irie, Schmidhuber 2021", "Configuration", "Signature", "beta", "Program", "step", "objective"] {
        assert!(shown.contains(words), "{words}: {shown}");
    }
    let output = case.run(&["plugins", "show", "delta", "--set", "size=1"]);
    assert!(text(&output.stderr).contains("unknown key `size`"), "{}", text(&output.stderr));
    let output = case.run(&["plugins", "show", "dellta"]);
    assert_eq!(output.status.code(), Some(4));
    assert!(text(&output.stderr).contains("did you mean `delta`?"), "{}", text(&output.stderr));
}

#[test]
fn a_path_says_what_is_wrong_with_the_library() {
    let case = Case::new();
    let path = case.put(&fixture("twin_a"), "a.so");
    let show = |name: &str| {
        let output = case.run(&["plugins", "show", "--kind", "update-rule", name]);
        (output.status.code(), text(&output.stderr))
    };
    let path = path.to_str().unwrap();
    assert_eq!(show(path).0, Some(0));
    assert_eq!(show(&format!("{path}#twin-a")).0, Some(0));
    let (code, said) = show(&format!("{path}#twin-x"));
    assert!(code == Some(4) && said.contains("no update-rule `twin-x`"), "{said}");
    let (code, said) = show("/nowhere/x.so");
    assert!(code == Some(4) && said.contains("no such file"), "{said}");
    let output = case.run(&["plugins", "show", "--kind", "slow-net", path]);
    assert!(text(&output.stderr).contains("it has update-rule `twin-a`"), "{}", text(&output.stderr));
}
