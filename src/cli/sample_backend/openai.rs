//! `/v1/*` in the shape of the OpenAI API: models, chat completions, completions and embeddings.
//!
//! The answer repeats the question, so that a test sees whose answer it got. Streams leave chunk by chunk, one about
//! every 50 ms. Must not be clever: what it says is fixed by what it is asked. `/v1/responses` is in [`super::responses`].

use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Method, Response, StatusCode, header};
use http_body::Frame;
use serde_json::{Value, json};

use super::body::{Drained, ResponseBody, json, pause, with_type};
use super::catalogue::Catalogue;
use super::{crud, responses};

/// The time at which everything here says it was made: 2024-01-01.
pub(super) const CREATED: u64 = 1_704_067_200;

/// The time between two chunks of a stream.
const STEP: Duration = Duration::from_millis(50);

/// The length of an embedding.
const DIMENSIONS: usize = 8;

/// What a request for text asks for.
pub(super) struct Question<'a> {
    /// The model, as the client called it.
    pub(super) model: &'a str,
    /// Whether the answer is wanted chunk by chunk.
    pub(super) stream: bool,
    /// What the answer says.
    pub(super) reply: String,
    /// Words asked, standing in for tokens.
    pub(super) asked: usize,
}

impl<'a> Question<'a> {
    fn new(body: &'a Value, text: &str) -> Self {
        let model = body["model"].as_str().unwrap_or("sample");
        Self {
            model,
            stream: body["stream"] == true,
            reply: format!("This is {model} of the sample backend. You said: {text}"),
            asked: text.split_whitespace().count(),
        }
    }

    /// The words of the reply, each but the first with the space before it.
    pub(super) fn words(&self) -> impl Iterator<Item = &str> {
        let mut starts: Vec<usize> = self.reply.match_indices(' ').map(|(at, _)| at).collect();
        starts.insert(0, 0);
        let ends = starts[1..].to_vec();
        let ends = ends.into_iter().chain([self.reply.len()]);
        starts.into_iter().zip(ends).map(|(start, end)| &self.reply[start..end])
    }

    fn usage(&self) -> Value {
        let said = self.words().count();
        json!({ "prompt_tokens": self.asked, "completion_tokens": said, "total_tokens": self.asked + said })
    }
}

/// Answers a call below `/v1/`; none when there is no such call.
pub(super) fn answer(catalogue: &Catalogue, head: &Parts, body: &Drained) -> Option<Response<ResponseBody>> {
    let call = head.uri.path().strip_prefix("/v1/")?;
    let reads = matches!(head.method, Method::GET | Method::HEAD);
    if call == "models" && reads {
        return Some(models(catalogue, head));
    }
    if let (Some(id), true) = (call.strip_prefix("models/"), reads) {
        return Some(json(StatusCode::OK, &model(id)));
    }
    if head.method != Method::POST {
        return None;
    }
    let known = ["chat/completions", "completions", "embeddings", "responses"];
    known.contains(&call).then(|| {
        let Some(body) = body.json().filter(Value::is_object) else {
            return refusal("the body is not a JSON object of at most 4 MiB");
        };
        match call {
            "chat/completions" => chat(&body),
            "completions" => completion(&body),
            "embeddings" => embeddings(&body),
            _ => responses::answer(&Question::new(&body, &text(&body["input"]))),
        }
    })
}

fn refusal(message: &str) -> Response<ResponseBody> {
    let error = json!({ "message": message, "type": "invalid_request_error", "param": null, "code": null });
    json(StatusCode::BAD_REQUEST, &json!({ "error": error }))
}

fn model(id: &str) -> Value {
    json!({ "id": id, "object": "model", "created": CREATED, "owned_by": "sample" })
}

fn models(catalogue: &Catalogue, head: &Parts) -> Response<ResponseBody> {
    let limited_to = crud::model_ids(&head.headers);
    let place = catalogue.find("models");
    let objects = place.map(|place| catalogue.list(&place));
    let objects = objects.unwrap_or_default();
    let ids = objects.iter().filter_map(|object| object["id"].as_str());
    let shown = ids.filter(|id| limited_to.as_ref().is_none_or(|ids| ids.contains(id)));
    let data: Vec<Value> = shown.map(model).collect();
    json(StatusCode::OK, &json!({ "object": "list", "data": data }))
}

fn chat(body: &Value) -> Response<ResponseBody> {
    let last = body["messages"].as_array().and_then(|messages| messages.last());
    let question = Question::new(body, &last.map_or_else(String::new, |last| text(&last["content"])));
    if !question.stream {
        let message = json!({ "role": "assistant", "content": question.reply, "refusal": null });
        let choice = json!({ "index": 0, "message": message, "logprobs": null, "finish_reason": "stop" });
        return json(
            StatusCode::OK,
            &json!({
                "id": "chatcmpl-1", "object": "chat.completion", "created": CREATED, "model": question.model,
                "choices": [choice], "usage": question.usage(),
            }),
        );
    }
    let chunk = |choices: Value| {
        json!({
            "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": CREATED, "model": question.model,
            "choices": choices,
        })
    };
    let delta = |delta: Value, finish: Value| {
        chunk(json!([{ "index": 0, "delta": delta, "logprobs": null, "finish_reason": finish }]))
    };
    let mut events = vec![delta(json!({ "role": "assistant", "content": "" }), Value::Null)];
    let words = question.words();
    events.extend(words.map(|word| delta(json!({ "content": word }), Value::Null)));
    events.push(delta(json!({}), "stop".into()));
    if body["stream_options"]["include_usage"] == true {
        let mut last = chunk(json!([]));
        last["usage"] = question.usage();
        events.push(last);
    }
    event_stream(events.iter().map(data).chain([DONE]).collect())
}

fn completion(body: &Value) -> Response<ResponseBody> {
    let question = Question::new(body, &text(&body["prompt"]));
    let whole = |text: &str, finish: Value| {
        json!({
            "id": "cmpl-1", "object": "text_completion", "created": CREATED, "model": question.model,
            "choices": [{ "index": 0, "text": text, "logprobs": null, "finish_reason": finish }],
        })
    };
    if question.stream {
        let mut events: Vec<Value> = question.words().map(|word| whole(word, Value::Null)).collect();
        events.push(whole("", "stop".into()));
        return event_stream(events.iter().map(data).chain([DONE]).collect());
    }
    let mut answer = whole(&question.reply, "stop".into());
    answer["usage"] = question.usage();
    json(StatusCode::OK, &answer)
}

/// Numbers that are the same for the same text.
fn embeddings(body: &Value) -> Response<ResponseBody> {
    let texts: Vec<String> = match &body["input"] {
        Value::Array(items) if items.iter().all(Value::is_string) => items.iter().map(text).collect(),
        input => vec![text(input)],
    };
    let asked: usize = texts.iter().map(|text| text.split_whitespace().count()).sum();
    let data: Vec<Value> = texts
        .iter()
        .enumerate()
        .map(|(index, text)| {
            let hash = blake3::hash(text.as_bytes());
            let numbers = hash.as_bytes()[..DIMENSIONS].iter().map(|byte| f64::from(*byte) / 255.0);
            json!({ "object": "embedding", "index": index, "embedding": numbers.collect::<Vec<_>>() })
        })
        .collect();
    json(
        StatusCode::OK,
        &json!({
            "object": "list", "data": data, "model": body["model"].as_str().unwrap_or("sample"),
            "usage": { "prompt_tokens": asked, "total_tokens": asked },
        }),
    )
}

/// The text of a message: a string, or a list of parts or messages with the text inside.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().map(text).collect::<Vec<_>>().join(" "),
        Value::Object(part) => {
            let inner = part.get("text").or_else(|| part.get("content"));
            inner.map(text).unwrap_or_default()
        }
        _ => String::new(),
    }
}

/// The end of a stream, as the clients wait for it.
const DONE: Bytes = Bytes::from_static(b"data: [DONE]\n\n");

fn data(event: &Value) -> Bytes {
    format!("data: {event}\n\n").into()
}

/// A stream of server-sent events, one about every 50 ms.
pub(super) fn event_stream(events: Vec<Bytes>) -> Response<ResponseBody> {
    let body = ResponseBody::stream(None, |frames| async move {
        for (index, event) in events.into_iter().enumerate() {
            if index > 0 && !pause(&frames, STEP).await {
                return;
            }
            if frames.send(Ok(Frame::data(event))).await.is_err() {
                return;
            }
        }
    });
    let mut response = with_type(StatusCode::OK, "text/event-stream", body);
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}
