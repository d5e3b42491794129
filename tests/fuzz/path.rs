//! Paths: what is accepted means the same to a server that decodes once, takes `\` for `/`, drops `;parameters` and resolves dots.

use seeme_gateway::policy::path::RequestPath;

use super::mutation::run;

const WORDS: [&[u8]; 20] = [
    b"/",
    b"//",
    b"/./",
    b"/../",
    b"..",
    b"%2e",
    b"%2E%2e",
    b"..;",
    b";",
    b"\\",
    b"%5c",
    b"%2f",
    b"%252f",
    b"%00",
    b"%",
    b"#",
    b"?",
    b"%c0%ae",
    b"\xef\xbc\x8e",
    b"%ef%bc%8f",
];

/// Segments as such a server sees them after it has resolved the path; none when it climbs above the root.
fn resolved(raw: &str) -> Option<Vec<String>> {
    let decoded = percent_encoding::percent_decode_str(raw).decode_utf8().ok()?.replace('\\', "/");
    let mut segments: Vec<String> = Vec::new();
    for segment in decoded.strip_prefix('/')?.split('/') {
        match segment.split(';').next().unwrap() {
            "." => {}
            ".." => drop(segments.pop()?),
            _ => segments.push(segment.to_owned()),
        }
    }
    Some(segments)
}

#[test]
fn an_accepted_path_is_the_same_to_a_server_that_resolves_it() {
    run("path", &WORDS, |input, _| {
        let Ok(raw) = std::str::from_utf8(input) else { return };
        let Ok(path) = RequestPath::parse(raw) else { return };
        let ours: Vec<&str> = path.segments().iter().map(|segment| &**segment).collect();
        assert_eq!(resolved(raw).expect("a path that does not climb"), ours);
        assert!(!ours.iter().any(|segment| segment.chars().any(char::is_control)), "{ours:?}");
        let (_, inner) = ours.split_last().unwrap();
        assert!(!inner.iter().any(|segment| segment.is_empty()), "{ours:?}");
    });
}
