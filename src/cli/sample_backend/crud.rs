//! The SeeMe API in general form: list, create, read, update and delete over the collections of the catalogue, and the
//! few actions on an object that are none of these.
//!
//! Must not know single routes: a new collection is a line of `seed.json`. Prediction is the exception, as it files its
//! result under the model.

use std::collections::HashSet;

use http::request::Parts;
use http::{HeaderMap, Method, Response, StatusCode};
use serde_json::{Value, json};

use super::body::{Drained, ResponseBody, json, with_type};
use super::catalogue::{Catalogue, Place, merge};
use super::dispatch::download;
use super::echo::knob;

/// A grey pixel.
const PNG: &[u8] = &[
    0x89, b'P', b'N', b'G', 0x0d, 0x0a, 0x1a, 0x0a, 0, 0, 0, 0x0d, b'I', b'H', b'D', b'R', 0, 0, 0, 1, 0, 0, 0, 1, 8,
    0, 0, 0, 0, 0x3a, 0x7e, 0x9b, 0x55, 0, 0, 0, 0x0a, b'I', b'D', b'A', b'T', 0x78, 0x9c, 0x63, 0x68, 0, 0, 0, 0x82,
    0, 0x81, 0x77, 0xcd, 0x72, 0xb6, 0, 0, 0, 0, b'I', b'E', b'N', b'D', 0xae, 0x42, 0x60, 0x82,
];

/// A ZIP archive without members: the end-of-directory record alone.
const ZIP: &[u8] = b"PK\x05\x06\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// Answers a call below `/api/v1/` or `/admin/`; none when there is no such call.
pub(super) fn answer(catalogue: &Catalogue, head: &Parts, body: &Drained) -> Option<Response<ResponseBody>> {
    let path = match head.uri.path().strip_prefix("/api/v1/") {
        Some(path) => Some(path).filter(|path| !path.starts_with("admin/")),
        None => head.uri.path().strip_prefix('/').filter(|path| path.starts_with("admin/")),
    }?;
    let method = match head.method {
        Method::HEAD => Method::GET, // hyper leaves the body out
        ref method => method.clone(),
    };
    let sent = body.json();
    if let Some(mut fixed) = catalogue.fixed_answer(method.as_str(), path) {
        overlay(&mut fixed, sent.as_ref());
        return Some(json(StatusCode::OK, &fixed));
    }
    let place = catalogue.find(path)?;
    match (&place.id, &place.action) {
        (None, _) => collection(catalogue, &method, &place, &head.headers, sent.as_ref()),
        (Some(id), None) if place.kind == "inferences" && method == Method::POST => predict(catalogue, id, None, body),
        (Some(id), None) => object(catalogue, &method, &place, id, sent.as_ref()),
        (Some(id), Some(action)) if place.kind == "inferences" && method == Method::POST => {
            match action.strip_prefix("versions/") {
                Some(version) => predict(catalogue, id, Some(version), body),
                None => act(catalogue, &method, &place, (id, action), head, sent.as_ref()),
            }
        }
        (Some(id), Some(action)) => act(catalogue, &method, &place, (id, action), head, sent.as_ref()),
    }
}

/// The ids that the gateway says the key is limited to; none when it is not limited.
pub(super) fn model_ids(headers: &HeaderMap) -> Option<HashSet<&str>> {
    let values = headers.get_all("x-seeme-model-ids");
    let mut values = values.iter().filter_map(|value| value.to_str().ok()).peekable();
    values.peek()?;
    Some(values.flat_map(|value| value.split(',')).map(str::trim).collect())
}

fn collection(
    catalogue: &Catalogue,
    method: &Method,
    place: &Place,
    headers: &HeaderMap,
    sent: Option<&Value>,
) -> Option<Response<ResponseBody>> {
    match *method {
        Method::GET => {
            let mut objects = catalogue.list(place);
            if let Some(ids) = model_ids(headers).filter(|_| place.kind == "models") {
                objects.retain(|object| ids.contains(object["id"].as_str().unwrap_or_default()));
            }
            Some(json(StatusCode::OK, &Value::from(objects)))
        }
        Method::POST => {
            let made = catalogue.create(place, sent);
            Some(json(StatusCode::CREATED, &Value::Object(made)))
        }
        _ => None,
    }
}

fn object(
    catalogue: &Catalogue,
    method: &Method,
    place: &Place,
    id: &str,
    sent: Option<&Value>,
) -> Option<Response<ResponseBody>> {
    let object = match *method {
        Method::GET => catalogue.get(place, id),
        Method::PUT | Method::PATCH => catalogue.update(place, id, sent),
        Method::DELETE => catalogue.delete(place, id),
        _ => return None,
    };
    Some(json(StatusCode::OK, &Value::Object(object)))
}

/// What can be asked of an object beside reading and writing it.
fn act(
    catalogue: &Catalogue,
    method: &Method,
    place: &Place,
    (id, action): (&str, &str),
    head: &Parts,
    sent: Option<&Value>,
) -> Option<Response<ResponseBody>> {
    let (action, _) = action.split_once('/').unwrap_or((action, ""));
    let object = match (method.as_str(), action) {
        ("GET", "download" | "logo" | "input-file") => {
            return Some(file(place, head));
        }
        ("DELETE", "logo") => return Some(json(StatusCode::OK, &json!({}))),
        // The file itself is read and forgotten.
        ("POST", "upload" | "logo" | "activate") | ("GET", "state" | "role") => catalogue.get(place, id),
        ("PUT", "state" | "role") => catalogue.update(place, id, sent),
        ("POST", "new" | "duplicate") => {
            let original = catalogue.get(place, id);
            catalogue.create(place, Some(&Value::Object(original)))
        }
        ("POST", "add") => catalogue.create(&inferences_of(catalogue, id)?, sent),
        _ => return None,
    };
    Some(json(StatusCode::OK, &Value::Object(object)))
}

/// The file of an object: `bytes=N` bytes when asked for, else the smallest that the client can open.
fn file(place: &Place, head: &Parts) -> Response<ResponseBody> {
    let path = head.uri.path();
    let (content_type, bytes) = if knob(head.uri.query(), "bytes").is_some() {
        return download(head.uri.query());
    } else if path.contains("/download/pkl") {
        return download(None);
    } else if place.kind == "datasets/versions" {
        ("application/zip", ZIP)
    } else {
        ("image/png", PNG)
    };
    with_type(StatusCode::OK, content_type, ResponseBody::Full(Some(bytes.into())))
}

/// Predicts, by always seeing a cat, and files the result under the model, where `get_inferences` finds it.
fn predict(
    catalogue: &Catalogue,
    model_id: &str,
    version: Option<&str>,
    body: &Drained,
) -> Option<Response<ResponseBody>> {
    let sent = body.json();
    let text = sent.as_ref().and_then(|sent| sent["input_text"].as_str());
    let name = file_name(body.prefix()).unwrap_or_else(|| "input.txt".to_owned());
    let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
    let told = json!({
        "name": name,
        "extension": extension,
        "model_version_id": version,
        "result": text.map(|text| format!("You said: {text}")),
    });
    let inference = catalogue.create(&inferences_of(catalogue, model_id)?, Some(&told));
    Some(json(StatusCode::OK, &Value::Object(inference)))
}

fn inferences_of(catalogue: &Catalogue, model_id: &str) -> Option<Place> {
    Some(catalogue.find("models")?.child(model_id, "inferences"))
}

/// The name of the file in a multipart body, as its first part tells it.
fn file_name(body: &[u8]) -> Option<String> {
    let head = String::from_utf8_lossy(&body[..body.len().min(1024)]);
    let (_, rest) = head.split_once("filename=\"")?;
    rest.split_once('"').map(|(name, _)| name.to_owned())
}

/// Lays those members of the request over a fixed answer that the answer has: who logs in as `eve` is `eve`.
fn overlay(answer: &mut Value, sent: Option<&Value>) {
    if let (Some(answer), Some(sent)) = (answer.as_object_mut(), sent.and_then(Value::as_object)) {
        let mut sent = sent.clone();
        sent.retain(|name, _| answer.contains_key(name));
        merge(answer, Some(&Value::Object(sent)));
    }
}
