//! Two tiny readers of HTTP/1 to hold the gate against: a strict one that knows only what is beyond doubt, and one as lenient as
//! hyper. Written without a look at the gate's own code, and for whole inputs only.

/// A message as a reader understands it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    /// Method and target, or the status.
    pub(crate) start: String,
    pub(crate) fields: Vec<(String, Vec<u8>)>,
    pub(crate) body: Vec<u8>,
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// All whole requests up to the first doubt about where one ends.
pub(crate) fn strict(mut rest: &[u8]) -> Vec<Message> {
    let mut messages = Vec::new();
    while let Some((message, after)) = strict_one(rest) {
        messages.push(message);
        rest = after;
    }
    messages
}

fn strict_one(octets: &[u8]) -> Option<(Message, &[u8])> {
    let octets = octets.strip_prefix(b"\r\n").unwrap_or(octets);
    let end = find(octets, b"\r\n\r\n")?;
    let (head, mut rest) = (&octets[..end], &octets[end + 4..]);
    let text = head.iter().map(|byte| char::from(*byte)).collect::<String>();
    let mut lines = text.split("\r\n");
    let line = lines.next()?;
    let words: Vec<&str> = line.split(' ').collect();
    let [method, target, "HTTP/1.1" | "HTTP/1.0"] = words[..] else { return None };
    let mut fields = Vec::new();
    for line in lines {
        let (name, value) = line.split_once(':')?;
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_graphic() && !b"\"(),/:;<=>?@[\\]{}".contains(&b)) {
            return None;
        }
        let value: Vec<u8> = value.trim_matches([' ', '\t']).chars().map(|c| c as u8).collect();
        fields.push((name.to_ascii_lowercase(), value));
    }
    if text.chars().any(|c| c.is_ascii_control() && !"\r\n\t".contains(c))
        || text.replace("\r\n", "").contains(['\r', '\n'])
    {
        return None;
    }
    let all = |name: &str| fields.iter().filter(|(n, _)| n == name).map(|(_, value)| value).collect::<Vec<_>>();
    let body = match (&all("content-length")[..], &all("transfer-encoding")[..]) {
        ([], []) => Vec::new(),
        ([length], []) => {
            let length = std::str::from_utf8(length).ok().filter(|l| l.bytes().all(|b| b.is_ascii_digit()))?;
            let length: usize = length.parse().ok()?;
            let body = rest.get(..length)?;
            rest = &rest[length..];
            body.to_vec()
        }
        ([], [coding]) if coding.eq_ignore_ascii_case(b"chunked") && words[2] == "HTTP/1.1" => {
            let (body, after) = strict_chunks(rest)?;
            rest = after;
            body
        }
        _ => return None,
    };
    Some((Message { start: format!("{method} {target}"), fields, body }, rest))
}

fn strict_chunks(mut rest: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut body = Vec::new();
    loop {
        let end = find(rest, b"\r\n")?;
        let line = &rest[..end];
        if line.contains(&b'\n') || line.contains(&b'\r') {
            return None;
        }
        let digits = line.split(|byte| *byte == b';').next()?;
        let digits = if digits.len() < line.len() { digits.trim_ascii_end() } else { digits };
        if digits.is_empty() || !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        let size = usize::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        rest = &rest[end + 2..];
        if size == 0 {
            break;
        }
        body.extend_from_slice(rest.get(..size)?);
        rest = rest[size..].strip_prefix(b"\r\n")?;
    }
    loop {
        let end = find(rest, b"\r\n")?;
        let line = &rest[..end];
        rest = &rest[end + 2..];
        if line.is_empty() {
            return Some((body, rest));
        }
        if line.contains(&b'\n') || !line.contains(&b':') {
            return None;
        }
    }
}

/// All whole requests as hyper's parser reads them; panics where it would refuse: the gate must not have let that pass.
pub(crate) fn lenient(mut rest: &[u8]) -> Vec<Message> {
    let mut messages = Vec::new();
    while !rest.is_empty() {
        let mut fields = [httparse::EMPTY_HEADER; 100];
        let mut request = httparse::Request::new(&mut fields);
        let parsed = request.parse(rest).expect("hyper's parser takes what passes");
        let httparse::Status::Complete(length) = parsed else { break };
        let (method, target) = (request.method.unwrap(), request.path.unwrap());
        http::Method::from_bytes(method.as_bytes()).expect("a method that hyper takes");
        http::Uri::try_from(target).expect("a target that hyper takes");
        let start = format!("{method} {target}");
        let fields: Vec<(String, Vec<u8>)> =
            request.headers.iter().map(|field| (field.name.to_ascii_lowercase(), field.value.to_vec())).collect();
        rest = &rest[length..];
        let value = |name: &str| fields.iter().find(|(n, _)| n == name).map(|(_, value)| value);
        let body = if value("transfer-encoding").is_some() {
            lenient_chunks(&mut rest)
        } else {
            let length = value("content-length").map_or(0, |l| String::from_utf8_lossy(l).parse::<usize>().unwrap());
            let body = rest.get(..length).map(<[u8]>::to_vec);
            rest = rest.get(length..).unwrap_or_default();
            body
        };
        let Some(body) = body else { break };
        messages.push(Message { start, fields, body });
    }
    messages
}

/// Sizes up to anything that is no digit, lines up to a line feed.
fn lenient_chunks(rest: &mut &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = rest.iter().position(|byte| *byte == b'\n')?;
        let digits = rest[..end].iter().take_while(|byte| byte.is_ascii_hexdigit()).map(|b| char::from(*b));
        let size = usize::from_str_radix(&digits.collect::<String>(), 16).expect("a size that hyper takes");
        *rest = &rest[end + 1..];
        if size == 0 {
            break;
        }
        body.extend_from_slice(rest.get(..size)?);
        *rest = rest.get(size + 2..)?;
    }
    loop {
        let end = rest.iter().position(|byte| *byte == b'\n')?;
        let line = &rest[..end];
        *rest = &rest[end + 1..];
        if line.trim_ascii().is_empty() {
            return Some(body);
        }
    }
}
