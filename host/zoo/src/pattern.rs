//! Names with `*` and `?`, as a shell has them.

/// Whether a name matches a pattern: `*` stands for any characters, `?` for one, everything else for itself.
pub fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    // Where the last star stands, and how far the name is that it has swallowed.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(c) if *c == '?' || *c == name[n] => (p, n) = (p + 1, n + 1),
            _ => match star {
                // The star swallows one character more.
                Some((at, swallowed)) => {
                    star = Some((at, swallowed + 1));
                    (p, n) = (at + 1, swallowed + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn stars_and_question_marks_are_those_of_a_shell() {
        for (pattern, yes, no) in [
            ("capacity-*", "capacity-dpfp1", "update-dpfp1"),
            ("*", "", "\0never"),
            ("*-keys", "20-keys", "20-keys-x"),
            ("?0-keys", "20-keys", "120-keys"),
            ("a*b*c", "a-b-b-c", "a-c-b"),
            ("deltanet", "deltanet", "deltanet-text"),
            ("", "", "x"),
            ("**", "xyz", "\0never"),
        ] {
            assert!(matches(pattern, yes), "{pattern} {yes}");
            assert!(no.starts_with('\0') || !matches(pattern, no), "{pattern} {no}");
        }
        // No pattern takes long.
        assert!(!matches(&"a*".repeat(50), &format!("{}b", "a".repeat(200))[1..].replace('a', "c")));
    }
}
