//! `/v1/responses` of the OpenAI API, whose objects and events differ from those of the completions.
//!
//! Must not keep a response: there is no `GET /v1/responses/{id}`.

use bytes::Bytes;
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::body::{ResponseBody, json};
use super::openai::{CREATED, Question, event_stream};

/// Answers `POST /v1/responses`.
pub(super) fn answer(question: &Question<'_>) -> Response<ResponseBody> {
    if question.stream {
        return event_stream(events(question));
    }
    json(StatusCode::OK, &response(question, "completed", &[message(&question.reply)]))
}

fn message(text: &str) -> Value {
    let part = json!({ "type": "output_text", "text": text, "annotations": [] });
    json!({ "id": "msg-1", "type": "message", "role": "assistant", "status": "completed", "content": [part] })
}

fn response(question: &Question<'_>, status: &str, output: &[Value]) -> Value {
    let said = question.words().count();
    json!({
        "id": "resp-1", "object": "response", "created_at": CREATED, "model": question.model, "status": status,
        "output": output, "error": null, "incomplete_details": null, "instructions": null, "metadata": {},
        "parallel_tool_calls": false, "temperature": 1.0, "tool_choice": "auto", "tools": [], "top_p": 1.0,
        "usage": {
            "input_tokens": question.asked, "input_tokens_details": { "cached_tokens": 0 },
            "output_tokens": said, "output_tokens_details": { "reasoning_tokens": 0 },
            "total_tokens": question.asked + said,
        },
    })
}

fn events(question: &Question<'_>) -> Vec<Bytes> {
    let place = json!({ "item_id": "msg-1", "output_index": 0, "content_index": 0 });
    let empty = json!({ "type": "output_text", "text": "", "annotations": [] });
    let begun = json!({
        "id": "msg-1", "type": "message", "role": "assistant", "status": "in_progress", "content": [],
    });
    let mut events = vec![
        json!({ "type": "response.created", "response": response(question, "in_progress", &[]) }),
        json!({ "type": "response.output_item.added", "output_index": 0, "item": begun }),
        with(&place, json!({ "type": "response.content_part.added", "part": empty })),
    ];
    events.extend(
        question
            .words()
            .map(|word| with(&place, json!({ "type": "response.output_text.delta", "delta": word, "logprobs": [] }))),
    );
    let done = message(&question.reply);
    let text = &question.reply;
    events.extend([
        with(&place, json!({ "type": "response.output_text.done", "text": text, "logprobs": [] })),
        with(&place, json!({ "type": "response.content_part.done", "part": done["content"][0] })),
        json!({ "type": "response.output_item.done", "output_index": 0, "item": done }),
        json!({ "type": "response.completed", "response": response(question, "completed", std::slice::from_ref(&done)) }),
    ]);
    let numbered = events.into_iter().enumerate();
    numbered.map(|(number, event)| frame(number, event)).collect()
}

fn with(place: &Value, mut event: Value) -> Value {
    for (name, value) in place.as_object().into_iter().flatten() {
        event[name] = value.clone();
    }
    event
}

fn frame(number: usize, mut event: Value) -> Bytes {
    event["sequence_number"] = number.into();
    let name = event["type"].as_str().unwrap_or_default();
    format!("event: {name}\ndata: {event}\n\n").into()
}
