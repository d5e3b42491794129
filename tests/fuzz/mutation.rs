//! The corpus of a target, and what is made of it.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};

/// Rounds of a target in `cargo test`.
const ROUNDS: u64 = 4_000;
/// The longest input.
const LONGEST: usize = 16 * 1024;

/// xorshift64*: small, and the same everywhere for the same seed.
pub(crate) struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 33) as usize % limit.max(1)
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Tries every file of `corpus/TARGET`, then mutations of them; `words` are put in now and then.
pub(crate) fn run(target: &str, words: &[&[u8]], check: impl Fn(&[u8], &mut Random)) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let corpus: Vec<Vec<u8>> = files.iter().map(|file| std::fs::read(file).unwrap()).collect();
    assert!(!corpus.is_empty(), "no corpus in {}", folder.display());
    let rounds = number("SEEME_FUZZ_ROUNDS").unwrap_or(ROUNDS);
    let seed = number("SEEME_FUZZ_SEED").unwrap_or(1);
    let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let attempt = |input: &[u8], random: &mut Random| {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| check(input, random))) {
            let kept =
                Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{target}-{}", blake3::hash(input).to_hex()));
            std::fs::write(&kept, input).unwrap();
            eprintln!("seed {seed}: {:?}\nkept in {}", String::from_utf8_lossy(input), kept.display());
            resume_unwind(panic);
        }
    };
    corpus.iter().for_each(|input| attempt(input, &mut random));
    for _ in 0..rounds {
        let mut input = corpus[random.below(corpus.len())].clone();
        for _ in 0..=random.below(4) {
            mutate(&mut input, &corpus, words, &mut random);
        }
        input.truncate(LONGEST);
        attempt(&input, &mut random);
    }
}

fn mutate(input: &mut Vec<u8>, corpus: &[Vec<u8>], words: &[&[u8]], random: &mut Random) {
    let at = random.below(input.len() + 1);
    let end = at + random.below((input.len() - at).min(32) + 1);
    match random.below(8) {
        0 => input.insert(at, random.next() as u8),
        1 if at < input.len() => input[at] = random.next() as u8,
        2 if at < input.len() => input[at] ^= 1 << random.below(8),
        3 => drop(input.drain(at..end)),
        4 => {
            let again = input[at..end].to_vec();
            input.splice(at..at, again);
        }
        5 => {
            let other = &corpus[random.below(corpus.len())];
            let from = random.below(other.len() + 1);
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
        6 => input.truncate(at),
        _ => {
            let word = words[random.below(words.len())];
            // In the place of something, or between.
            let end = if random.below(2) == 0 { end } else { at };
            input.splice(at..end, word.iter().copied());
        }
    }
}
