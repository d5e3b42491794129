//! gateway.yaml: no text panics or takes long, and every mistake has a place in the file.

use std::path::Path;

use seeme_gateway::config;

use super::mutation::run;

const WORDS: [&[u8]; 20] = [
    b": ",
    b"- ",
    b"{ ",
    b" }",
    b"[",
    b"]",
    b"\n",
    b"\n  ",
    b"&a ",
    b"*a",
    b"<<: *a",
    b"${X}",
    b"${X:-y}",
    b"!!str ",
    b"|",
    b"\"",
    b"'",
    b"999999999999999999999",
    b"routes:",
    b"# ",
];

#[test]
fn any_text_is_a_configuration_or_mistakes_with_places() {
    run("yaml", &WORDS, |input, _| {
        let text = String::from_utf8_lossy(input);
        let env = |name: &str| (name == "X").then(|| "x".to_owned());
        if let Err(error) = config::parse(Path::new("gateway.yaml"), &text, &env) {
            assert!(!error.0.is_empty(), "refused without a reason");
            let lines = text.split('\n').count().max(1);
            for mistake in error.0 {
                assert!((1..=lines + 1).contains(&mistake.line) && mistake.column >= 1, "{mistake:?} of {lines} lines");
            }
        }
    });
}
