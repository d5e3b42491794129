//! What a head that came over HTTP/2 must be, beyond what the library insists on, before the checks that all heads pass.
//!
//! Afterwards it looks like one of HTTP/1: a Host, one Cookie. So nothing behind has two cases, and what goes to an upstream
//! that speaks HTTP/1 is what was decided about (RFC 9113 sections 8.2 and 8.3).

use http::header::{CONTENT_LENGTH, COOKIE, EXPECT, HOST, HeaderValue};
use http::request::Parts;
use http::uri::PathAndQuery;

use super::connection::ConnInfo;
use crate::policy::rejection::Rejection;

/// Refuses what is malformed; gives the rest its Host and one Cookie.
pub(super) fn normalize(head: &mut Parts, conn: &ConnInfo) -> Result<(), Rejection> {
    if conn.take_malformed(head.uri.path_and_query().map_or("", PathAndQuery::as_str)) {
        return Err(Rejection::bad_request("Fragment in :path, or a :scheme that is not HTTP"));
    }
    // A library that trims would see another value than one that does not (RFC 9113 section 8.2.1).
    let padded = |value: &HeaderValue| value.as_bytes().trim_ascii().len() != value.len();
    if head.headers.values().any(padded) {
        return Err(Rejection::bad_request("White space around a field value"));
    }
    // Two lengths that agree are still two for whoever reads what goes out.
    let mut lengths = head.headers.get_all(CONTENT_LENGTH).iter();
    if lengths.next().is_some_and(|length| !length.as_bytes().iter().all(u8::is_ascii_digit))
        || lengths.next().is_some()
    {
        return Err(Rejection::bad_request("More than one Content-Length, or no number"));
    }
    // What an expectation asks for is not passed on, so it must be one that is met here (RFC 9110 section 10.1.1).
    if head.headers.get_all(EXPECT).iter().any(|expected| !expected.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        return Err(Rejection::ExpectationFailed);
    }
    if !head.headers.contains_key(HOST)
        && let Some(authority) = head.uri.authority()
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        head.headers.insert(HOST, host);
    }
    join_cookies(head);
    Ok(())
}

/// Clients split a Cookie so that its parts compress; in HTTP/1 there is one (RFC 9113 section 8.2.3).
fn join_cookies(head: &mut Parts) {
    let mut crumbs = head.headers.get_all(COOKIE).iter();
    if let (Some(first), Some(_)) = (crumbs.next(), crumbs.next()) {
        let mut joined = first.as_bytes().to_vec();
        for crumb in head.headers.get_all(COOKIE).iter().skip(1) {
            joined.extend(b"; ");
            joined.extend(crumb.as_bytes());
        }
        if let Ok(cookie) = HeaderValue::from_bytes(&joined) {
            head.headers.insert(COOKIE, cookie);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    use crate::policy::instant::Mono;

    fn normalized(fields: &[(&str, &str)]) -> Result<Parts, Rejection> {
        let mut request = Request::builder().uri("https://a.example:8443/x");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let mut head = request.body(()).unwrap().into_parts().0;
        let conn = ConnInfo::new([127, 0, 0, 1].into(), false, Mono(0));
        normalize(&mut head, &conn).map(|()| head)
    }

    #[test]
    fn the_authority_becomes_the_host_and_crumbs_one_cookie() {
        let head = normalized(&[("cookie", "a=1"), ("cookie", "b=2"), ("cookie", "c=3")]).unwrap();
        assert_eq!(head.headers[HOST], "a.example:8443");
        assert_eq!(head.headers.get_all(COOKIE).iter().collect::<Vec<_>>(), ["a=1; b=2; c=3"]);
        // One that differs is left for the check that compares them.
        assert_eq!(normalized(&[("host", "b.example")]).unwrap().headers[HOST], "b.example");
    }

    #[test]
    fn there_is_one_length_and_it_is_a_number() {
        assert!(normalized(&[("content-length", "12")]).is_ok());
        for lengths in [&[("content-length", "1"), ("content-length", "1")][..], &[("content-length", "+1")]] {
            assert!(normalized(lengths).is_err(), "{lengths:?}");
        }
    }

    #[test]
    fn an_expectation_that_nobody_meets_is_refused() {
        assert!(normalized(&[("expect", "100-Continue")]).is_ok());
        assert_eq!(normalized(&[("expect", "x")]).map(drop), Err(Rejection::ExpectationFailed));
    }

    #[test]
    fn white_space_around_a_value_is_malformed() {
        for value in [" a", "a ", "\ta", " "] {
            assert!(normalized(&[("x-a", value)]).is_err(), "{value:?}");
        }
        assert!(normalized(&[("x-a", ""), ("x-b", "a b")]).is_ok());
    }
}
