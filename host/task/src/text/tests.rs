use std::io::Write;

use super::*;

fn spec(context: usize, order: Order) -> TextSpec {
    TextSpec { path: None, level: Level::Byte, context, train_fraction: 0.5, order, eval_windows: None }
}

fn open(content: &[u8], spec: &TextSpec) -> Result<Text, String> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(content).unwrap();
    let spec = TextSpec { path: Some(file.path().into()), ..spec.clone() };
    Text::open(&spec).map_err(|e| {
        let path = file.path().display().to_string();
        e.to_string().replace(&path, "FILE")
    })
}

/// Bytes whose value says where they stand (up to 256).
fn ramp(len: usize) -> Vec<u8> {
    (0..len).map(|i| i as u8).collect()
}

/// The targets with weight, and the inputs before them.
fn pairs(batch: &Batch) -> Vec<(i64, i64)> {
    let ones = vec![1.0; batch.targets.len()];
    let weights = batch.weights.as_ref().unwrap_or(&ones);
    batch.inputs[0].1.iter().zip(&batch.targets).zip(weights).filter(|(_, w)| **w > 0.0).map(|((x, y), _)| (*x, *y)).collect()
}

#[test]
fn evaluation_covers_the_validation_part_exactly_once() {
    for order in [Order::Random, Order::Sequential] {
        for len in [4, 5, 20, 21, 22, 23, 100, 200, 201] {
            for context in [1, 2, 3, 7, 10] {
                for batch_size in [1, 2, 3, 5, 64] {
                    let Ok(text) = open(&ramp(len), &spec(context, order)) else {
                        assert!(len / 2 < context + 1);
                        continue;
                    };
                    let mut seen = Vec::new();
                    for i in 0..text.eval_len(batch_size) {
                        let batch = text.eval_batch(9, i, batch_size);
                        assert!(batch.size > 0 && batch.size <= batch_size);
                        assert_eq!(batch.target_shape, [batch.size, context]);
                        assert_eq!(batch.targets.len(), batch.size * context);
                        let real = pairs(&batch);
                        assert_eq!(batch.tokens, real.len());
                        assert!(!real.is_empty());
                        seen.extend(real);
                    }
                    seen.sort_unstable();
                    let want: Vec<(i64, i64)> = (len / 2..len - 1).map(|i| (i as i64, i as i64 + 1)).collect();
                    assert_eq!(seen, want, "{len} {context} {batch_size} {order:?}");
                    assert_eq!(text.eval_batch(9, text.eval_len(batch_size), batch_size).size, 0);
                }
            }
        }
    }
}

#[test]
fn evaluation_in_sequence_can_be_carried() {
    let text = open(&ramp(201), &spec(7, Order::Sequential)).unwrap();
    let mut ends: Vec<Option<i64>> = Vec::new();
    for i in 0..text.eval_len(4) {
        let batch = text.eval_batch(1, i, 4);
        let resets = batch.resets.clone().unwrap();
        ends.resize(batch.size, None);
        for row in 0..batch.size {
            let first = batch.inputs[0].1[row * 7];
            if resets[row] {
                // Only padding starts afresh after the first batch.
                let weights = batch.weights.as_ref();
                assert!(i == 0 || weights.unwrap()[row * 7] == 0.0);
            } else {
                assert_eq!(Some(first), ends[row]);
            }
            ends[row] = Some(batch.targets[row * 7 + 6]);
        }
    }
}

#[test]
fn a_part_of_the_windows_is_spread_evenly_and_fixed() {
    let text = open(&ramp(200), &TextSpec { eval_windows: Some(3), ..spec(10, Order::Random) }).unwrap();
    // The validation part is 100..200: ten windows, of which number 0, 3 and 6 are read.
    let firsts: Vec<i64> = (0..text.eval_len(2))
        .flat_map(|i| {
            let batch = text.eval_batch(i as u64, i, 2);
            (0..batch.size).map(|r| batch.inputs[0].1[r * 10]).collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(firsts, [100, 130, 160]);
    let all = TextSpec { eval_windows: Some(1000), ..spec(10, Order::Random) };
    assert_eq!(open(&ramp(200), &all).unwrap().eval_len(1), 10);
}

#[test]
fn training_windows_stay_in_the_training_part_and_reach_all_of_it() {
    let text = open(&ramp(60), &spec(7, Order::Random)).unwrap();
    let mut seen = [false; 60];
    for step in 0..200 {
        let batch = text.train_batch(1, step, 0, 8);
        assert!(batch.resets.is_none() && batch.weights.is_none());
        assert_eq!(batch.tokens, 56);
        for (x, y) in pairs(&batch) {
            assert_eq!(x + 1, y);
            seen[y as usize] = true;
        }
    }
    assert!(seen[1..30].iter().all(|s| *s), "{seen:?}");
    assert!(!seen[30..].iter().any(|s| *s), "{seen:?}");
}

#[test]
fn sequential_rows_continue_where_they_ended() {
    // 150 symbols train: 21 windows of 7, and two symbols left over.
    let text = open(&ramp(256), &TextSpec { train_fraction: 0.59, ..spec(7, Order::Sequential) }).unwrap();
    let windows = (text.split - 1) / 7;
    for micro in 0..3 {
        let mut ends = [None; 4];
        let mut read = vec![BTreeSet::new(); 4];
        let mut restarts = 0;
        for step in 0..windows as u64 {
            let batch = text.train_batch(5, step, micro, 4);
            let resets = batch.resets.as_ref().unwrap();
            for row in 0..4 {
                let first = batch.inputs[0].1[row * 7];
                if step == 0 {
                    assert!(resets[row]);
                } else if resets[row] {
                    assert_eq!(first, 0, "a row restarts at the beginning of the text");
                    restarts += 1;
                } else {
                    assert_eq!(Some(first), ends[row]);
                }
                ends[row] = Some(batch.targets[row * 7 + 6]);
                read[row].insert(first);
            }
        }
        assert!((3..=4).contains(&restarts), "{restarts}");
        for row in read {
            assert_eq!(row.len(), windows, "each row reads each window once");
        }
    }
    // Resuming at any step needs nothing but the step.
    assert_eq!(text.train_batch(5, 17, 1, 4), text.train_batch(5, 17, 1, 4));
    // Rows and micro-batches start at different places.
    let starts: BTreeSet<i64> = (0..2)
        .flat_map(|m| {
            let batch = text.train_batch(5, 0, m, 4);
            (0..4).map(|r| batch.inputs[0].1[r * 7]).collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(starts.len(), 8);
    assert_eq!(text.train_batch(5, u64::MAX, u64::MAX, 4).size, 4);
    assert_eq!(text.train_batch(5, 0, 0, 0).size, 0);
}

#[test]
fn the_alphabet_is_that_of_the_whole_file() {
    let chars = TextSpec { level: Level::Char, ..spec(2, Order::Random) };
    let text = open("abcabcabdé☃ba".as_bytes(), &chars).unwrap();
    // a b c d é ☃, sorted by code point; the last three stand in the validation part only.
    assert_eq!(text.io().values, 6);
    assert_eq!(text.split, 6);
    let last = text.eval_batch(0, 0, 16);
    assert_eq!(pairs(&last), [(0, 1), (1, 3), (3, 4), (4, 5), (5, 1), (1, 0)]);

    // More than 256 different characters need wider symbols.
    let many: String = (0..1000).map(|i| char::from_u32(0x4e00 + i).unwrap()).collect();
    let text = open(many.as_bytes(), &chars).unwrap();
    assert_eq!(text.io().values, 1000);
    assert_eq!(pairs(&text.eval_batch(0, 0, 1)), [(500, 501), (501, 502)]);
}

#[test]
fn unusable_files_are_refused_with_a_remedy() {
    let chars = TextSpec { level: Level::Char, ..spec(4, Order::Random) };
    for (content, spec, want) in [
        (&b""[..], &chars, "FILE is too short: it is empty"),
        (
            b"abcdef",
            &chars,
            "FILE is too short: 3 of its 6 chars train, and a window needs 5; lower task.context or give more text",
        ),
        (
            b"abcdefghij",
            &TextSpec { train_fraction: 0.95, ..chars.clone() },
            "FILE is too short: 1 of its 10 chars validate, and one target needs 2; lower task.train_fraction or give more text",
        ),
        (
            b"abc\xffdefghij",
            &chars,
            "FILE is not UTF-8: the byte at offset 3 (0xff) starts no valid character; read it as bytes with task.level = \"byte\"",
        ),
    ] {
        assert_eq!(open(content, spec).err().unwrap(), want);
    }
    let at =
        |path: Option<&Path>| Text::open(&TextSpec { path: path.map(Into::into), ..chars.clone() }).err().unwrap().to_string();
    let folder = tempfile::tempdir().unwrap();
    assert!(at(Some(folder.path())).ends_with("is a folder, not a file; give the path of one text file"));
    assert!(at(Some(Path::new("/dev/zero"))).contains("is a device, pipe or socket, not a file"));
    let missing = at(Some(&folder.path().join("none.txt")));
    assert!(missing.contains("none.txt") && missing.contains("--data"), "{missing}");
    assert!(at(None).contains("--data PATH"));
}

#[test]
fn the_fingerprint_follows_the_data() {
    let one = open(&ramp(100), &spec(4, Order::Random)).unwrap().fingerprint();
    let mut other = ramp(100);
    other[50] ^= 1;
    assert_ne!(one, open(&other, &spec(4, Order::Random)).unwrap().fingerprint());
    assert_ne!(one, open(&ramp(100), &spec(5, Order::Random)).unwrap().fingerprint());
    assert_eq!(one, open(&ramp(100), &spec(4, Order::Random)).unwrap().fingerprint());
}
