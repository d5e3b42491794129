//! `cors`: which web pages may read answers.

use http::HeaderValue;

use super::reader::{Map, Value};
use crate::policy::cors::{Cors, parse_origin};

/// `None` where the section is absent: then browsers let no page of another origin read anything.
pub(super) fn cors(root: &Map<'_>) -> Option<Cors> {
    let cors = root.get("cors")?.mapping(&["allowed_origins"])?;
    let mend = "name the origins of your pages: allowed_origins: [\"https://app.seeme.ai\"]";
    let origins = cors.require("allowed_origins", mend)?;
    let items = origins.items()?;
    if items.is_empty() {
        return origins.mistake("the list is empty: no page could use it", "name an origin, or remove cors");
    }
    if let Some(any) = items.iter().find(|item| item.peek() == Some("*")) {
        return match items.len() {
            1 => Some(Cors::any()),
            _ => any.mistake("`*` allows every origin, with others beside it", "write \"*\" alone, or remove it"),
        };
    }
    let origins: Vec<_> = items.iter().map(origin).collect();
    origins.into_iter().collect::<Option<Vec<_>>>().map(Cors::of)
}

fn origin(value: &Value<'_>) -> Option<HeaderValue> {
    match parse_origin(value.text()?) {
        Ok(origin) => Some(origin),
        Err(error) => value.misread(&error, ""),
    }
}
