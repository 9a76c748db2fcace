//! What README and documents show works.

use std::collections::HashMap;
use std::path::Path;

use fwp_test_support::repository;
use fwp_tests::documents::{all, blocks, calls, inline_code, linked_files, text, words};
use fwp_tests::{Case, folders};

/// What the host's own help knows.
struct Help<'a> {
    case: &'a Case,
    texts: HashMap<String, String>,
}

impl Help<'_> {
    /// The help of a command, by its words.
    fn of(&mut self, command: &str) -> &str {
        let case = self.case;
        self.texts.entry(command.into()).or_insert_with(|| case.ok(&format!("{command} --help")))
    }

    /// The names of the commands below a command.
    fn below(&mut self, command: &str) -> Vec<String> {
        let help = self.of(command).to_string();
        let section = help.split("Commands:\n").nth(1).unwrap_or_default();
        let lines = section.lines().take_while(|l| l.starts_with("  "));
        let first = lines.filter(|l| !l.starts_with("   ")).filter_map(|l| l.split_whitespace().next());
        first.filter(|n| *n != "help").map(str::to_string).collect()
    }

    /// The command of a call, and the words behind it.
    fn command<'w>(&mut self, call: &'w [String], place: &str) -> (String, &'w [String]) {
        let (mut command, mut rest) = (String::new(), call);
        loop {
            let below = self.below(&command);
            match rest.split_first() {
                Some((word, more)) if below.contains(word) => {
                    command = format!("{command} {word}").trim().to_string();
                    rest = more;
                }
                Some((word, _)) if !below.is_empty() && !word.starts_with('-') => {
                    panic!("{place}: there is no command `{command} {word}`")
                }
                _ => return (command, rest),
            }
        }
    }

    fn has_flag(&mut self, command: &str, flag: &str) -> bool {
        let help = self.of(command);
        help.split(|c: char| c.is_whitespace() || "[],<>=`".contains(c)).any(|w| w == flag)
    }

    /// Asserts that the command of a call exists, and every flag in it.
    fn check(&mut self, call: &[String], place: &str) -> String {
        let (command, rest) = self.command(call, place);
        for flag in rest.iter().filter(|w| w.starts_with('-') && w.len() > 1) {
            let flag = flag.split('=').next().unwrap_or(flag);
            assert!(self.has_flag(&command, flag), "{place}: `{command}` has no flag {flag}");
        }
        command
    }

    /// The names of all commands that do something.
    fn commands(&mut self) -> Vec<String> {
        let mut found = Vec::new();
        for first in self.below("") {
            let below = self.below(&first);
            if below.is_empty() {
                found.push(first);
            } else {
                found.extend(below.iter().map(|b| format!("{first} {b}")));
            }
        }
        found
    }
}

fn help(case: &Case) -> Help<'_> {
    Help { case, texts: HashMap::new() }
}

fn relative(path: &Path) -> String {
    path.strip_prefix(repository()).unwrap_or(path).display().to_string()
}

/// Every call of the host in a document: in blocks, and in running text.
fn shown(document: &Path) -> Vec<Vec<String>> {
    let mut shell: Vec<String> =
        blocks(document).into_iter().filter(|b| matches!(&*b.language, "" | "sh" | "bash" | "console")).map(|b| b.text).collect();
    shell.extend(inline_code(document));
    shell.iter().flat_map(|s| calls(s)).collect()
}

#[test]
fn every_command_and_flag_that_is_shown_exists() {
    let case = Case::new();
    let mut help = help(&case);
    let mut seen = Vec::new();
    for document in all() {
        for call in shown(&document) {
            seen.push(help.check(&call, &format!("{}: {}", relative(&document), call.join(" "))));
        }
    }
    // The test reads what it is meant to read.
    for command in ["train", "recipe show", "recipe check", "plugins list", "plugins show"] {
        assert!(seen.iter().any(|s| s == command), "{command} in {seen:?}");
    }
    // Flags in running text belong to some command.
    let commands = help.commands();
    for document in all() {
        for code in inline_code(&document).iter().filter(|c| c.starts_with("--")) {
            for flag in words(code).iter().filter(|w| w.starts_with("--")) {
                let flag = flag.split('=').next().unwrap();
                let cargo = ["--config", "--release", "--logdir"].contains(&flag);
                let known = commands.iter().any(|c| help.has_flag(c, flag));
                assert!(known || cargo, "{}: no command has {flag}", relative(&document));
            }
        }
    }
}

#[test]
fn every_command_has_an_example_that_exists() {
    let case = Case::new();
    let mut help = help(&case);
    let commands = help.commands();
    assert!(commands.len() >= 9, "{commands:?}");
    for command in commands {
        let text = help.of(&command).to_string();
        let examples = text.split("Example").nth(1).unwrap_or_else(|| panic!("{command} has no example"));
        let calls = calls(examples);
        assert!(!calls.is_empty(), "{command} has no example: {text}");
        for call in calls {
            let found = help.check(&call, &format!("help of {command}: {}", call.join(" ")));
            assert_eq!(found, command);
        }
    }
}

/// The recipes and changes that are shown can be trained: every key exists and every value is in its range.
#[test]
fn every_recipe_and_change_that_is_shown_is_in_order() {
    let case = Case::new();
    let check = |recipe: &str, call: &[String], place: &str| {
        let mut arguments = vec!["recipe".to_string(), "check".into(), recipe.into(), "--data".into(), "text.txt".into()];
        if !std::fs::read_to_string(repository().join(recipe).join("recipe.toml")).unwrap().contains("\"text\"") {
            arguments.truncate(3);
        }
        for pair in call.windows(2) {
            match pair[0].as_str() {
                // The library of the README is built by another test.
                "--set" if !pair[1].contains(".so") => arguments.extend_from_slice(pair),
                "--steps" => arguments.extend(["--set".into(), format!("train.steps={}", pair[1])]),
                _ => {}
            }
        }
        let root = repository();
        let absolute = root.join(recipe).display().to_string();
        arguments[2] = absolute;
        let output = case.command("").args(&arguments).output().unwrap();
        assert!(output.status.success(), "{place}: {}", fwp_tests::said(&output));
    };
    let mut checked = 0;
    for document in all() {
        for call in shown(&document) {
            let place = format!("{}: {}", relative(&document), call.join(" "));
            let recipe = call.windows(2).find(|w| w[0] == "--recipe").map(|w| w[1].clone());
            if let Some(recipe) = recipe.filter(|r| r.starts_with("zoo/")) {
                check(&recipe, &call, &place);
                checked += 1;
            }
        }
    }
    // In the zoo, changes alone are of the recipe beside them.
    for folder in folders(&repository().join("zoo")) {
        let readme = folder.join("README.md");
        for code in inline_code(&readme).iter().filter(|c| c.starts_with("--set ")) {
            check(&relative(&folder), &words(code), &format!("{}: {code}", relative(&readme)));
            checked += 1;
        }
        let own = format!("--recipe {}", relative(&folder));
        assert!(text(&readme).contains(&own), "{} does not say `{own}`", relative(&readme));
    }
    assert!(checked >= 6, "{checked}");
}

#[test]
fn the_recipe_of_the_readme_is_in_order() {
    let case = Case::new();
    let blocks = blocks(&repository().join("README.md"));
    let recipe = blocks.iter().find(|b| b.language == "toml" && b.text.contains("[slow_net]")).expect("a recipe");
    case.write("shown.toml", &recipe.text);
    case.ok("recipe check shown.toml");
}

#[test]
fn every_file_that_is_linked_to_is_there() {
    let mut documents = all();
    documents.extend(["ARCHITECTURE.md", "CHANGELOG.md"].map(|n| repository().join(n)));
    let mut missing = Vec::new();
    for document in documents {
        if !document.is_file() {
            missing.push(relative(&document));
            continue;
        }
        let files = linked_files(&document);
        missing.extend(files.iter().filter(|f| !f.exists()).map(|f| format!("{} in {}", relative(f), relative(&document))));
    }
    assert!(missing.is_empty(), "not there: {missing:#?}");
}

#[test]
fn what_is_out_of_scope_has_a_source_and_a_reason() {
    let rules = text(&repository().join("docs/rules.md"));
    let section = rules.split("### Out of scope").nth(1).and_then(|s| s.split("\n## ").next()).unwrap();
    let rows: Vec<Vec<&str>> = section
        .lines()
        .filter(|l| l.starts_with("| "))
        .skip(1)
        .map(|l| l.trim_matches('|').split(" | ").map(str::trim).collect())
        .collect();
    assert!(rows.len() >= 8, "{section}");
    for row in rows {
        let [_, source, reason] = row[..] else { panic!("{row:?}") };
        // A paper's number, or the code that has it.
        let is_number = |w: &str| {
            w.split_once('.').is_some_and(|(a, b)| {
                [(a, 4), (b, 5)].iter().all(|(p, n)| p.len() == *n && p.bytes().all(|c| c.is_ascii_digit()))
            })
        };
        assert!(source.split([' ', ';', ',']).any(is_number) || source.contains('`'), "{row:?}");
        assert!(!reason.is_empty(), "{row:?}");
    }
}

#[test]
fn published_values_of_a_readme_are_those_of_its_points() {
    let mut seen = 0;
    for readme in all().iter().filter(|d| d.file_name().is_some_and(|n| n == "README.md")) {
        let text = text(readme);
        let cells = |row: &str| -> Option<Vec<String>> {
            let row = text.lines().find_map(|l| l.strip_prefix(row))?;
            Some(row.trim_matches(['|', ' ']).split('|').map(|c| c.trim().to_string()).collect())
        };
        let (Some(keys), Some(values)) = (cells("| keys S |"), cells("| published loss |")) else { continue };
        let points: toml::Table = std::fs::read_to_string(readme.with_file_name("points.toml")).unwrap().parse().unwrap();
        let points: Vec<(i64, Option<f64>)> = points["point"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|p| p["name"].as_str().unwrap().ends_with("-keys"))
            .map(|p| {
                let keys = p["name"].as_str().unwrap().trim_end_matches("-keys");
                (keys.parse().unwrap(), p.get("published").and_then(toml::Value::as_float))
            })
            .collect();
        let value = |shown: &String| shown.parse::<f64>().ok().filter(|v| !v.is_nan());
        let shown: Vec<(i64, Option<f64>)> = keys.iter().map(|k| k.parse().unwrap()).zip(values.iter().map(value)).collect();
        assert_eq!(shown, points, "{}", relative(readme));
        seen += 1;
    }
    assert!(seen >= 15, "{seen}");
}

#[test]
fn nothing_is_left_to_be_filled_in() {
    let holes = ["MEASURE_ME", "TODO", "FIXME", "TBD"];
    let open: Vec<String> = all().iter().filter(|d| holes.iter().any(|h| text(d).contains(h))).map(|d| relative(d)).collect();
    assert!(open.is_empty(), "these still have holes ({}): {open:?}", holes.join(", "));
}
