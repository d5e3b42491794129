//! What the published `seeme` and `openai` clients ask.

use std::time::Duration;

use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Running, request};

const ROUTES: &str = include_str!("../../../../tests/data/seeme-sdk-routes.tsv");

#[tokio::test]
async fn every_call_of_the_published_client_is_answered() {
    let backend = Running::start().await;
    let mut asked = 0;
    for line in ROUTES.lines().skip(1) {
        let (method, rest) = line.split_once('\t').unwrap();
        let (path, _) = rest.split_once('\t').unwrap();
        let path = path.replace('{', "").replace('}', "-7");
        let body = if matches!(method, "POST" | "PUT") { r#"{"name": "n", "id": null}"# } else { "" };
        let answer = backend.call(method, &path, body).await;
        if path.starts_with("/api/v1/me/apikeys") {
            assert_eq!(answer.status, 404, "{method} {path}: keys are the gateway's");
            continue;
        }
        assert!(answer.status.is_success(), "{method} {path}: {}", answer.status);
        if answer.headers["content-type"] == "application/json" {
            answer.json();
        } else {
            assert!(!answer.body.is_empty(), "{method} {path}");
        }
        asked += 1;
    }
    assert!(asked > 180, "only {asked} routes were asked");
}

#[tokio::test]
async fn an_object_is_created_read_changed_and_deleted() {
    let backend = Running::start().await;
    let made = backend.call("POST", "/api/v1/models", r#"{"name": "Mine", "notes": "x", "id": null}"#).await;
    assert_eq!(made.status, 201);
    let id = made.json()["id"].as_str().unwrap().to_owned();
    let path = format!("/api/v1/models/{id}");
    assert_eq!(backend.get(&path).await.json()["name"], "Mine");

    let changed = backend.call("PUT", &path, r#"{"name": "Ours", "notes": null}"#).await.json();
    assert_eq!((&changed["name"], &changed["notes"]), (&json!("Ours"), &json!("x")), "a null says nothing");

    let ids = |list: Value| list.as_array().unwrap().iter().map(|m| m["id"].clone()).collect::<Vec<_>>();
    assert!(ids(backend.get("/api/v1/models").await.json()).contains(&json!(id)));
    assert_eq!(backend.call("DELETE", &path, "").await.json()["id"], json!(id));
    assert_eq!(ids(backend.get("/api/v1/models").await.json()), ["m-1", "m-2", "m-3"]);
}

#[tokio::test]
async fn any_id_works_and_carries_the_ids_of_its_path() {
    let backend = Running::start().await;
    let label = backend.get("/api/v1/datasets/d-9/versions/v-8/labels/l-7").await.json();
    assert_eq!(
        (&label["id"], &label["dataset_id"], &label["version_id"]),
        (&json!("l-7"), &json!("d-9"), &json!("v-8"))
    );
    let escaped = backend.get("/api/v1/models/a%20b").await.json();
    assert_eq!(escaped["id"], "a b");
}

#[tokio::test]
async fn a_workflow_carries_its_versions_with_their_nodes() {
    let backend = Running::start().await;
    let nodes = "/api/v1/workflows/w-1/versions/version-1/nodes";
    let made = backend.call("POST", nodes, r#"{"name": "Third"}"#).await.json();
    let workflow = backend.get("/api/v1/workflows/w-1").await.json();
    let version = &workflow["versions"][0];
    assert_eq!(version["id"], workflow["active_version_id"]);
    assert_eq!(version["nodes"][2]["id"], made["id"]);
}

#[tokio::test]
async fn unknown_paths_are_404_in_json() {
    let backend = Running::start().await;
    for path in
        ["/", "/api/v1/nothing", "/api/v1/models/", "/api/v1/models/m-1/nothing", "/api/v1/admin/plans", "/v1/nothing"]
    {
        let answer = backend.get(path).await;
        assert_eq!(answer.status, 404, "{path}");
        assert!(answer.json()["error"].as_str().unwrap().contains(path));
    }
}

#[tokio::test]
async fn models_are_filtered_by_the_header_of_a_limited_key() {
    let backend = Running::start().await;
    for (path, members) in [("/api/v1/models", ""), ("/v1/models", "/data")] {
        let limited = request("GET", path).header("X-SeeMe-Model-Ids", "m-2,m-9").body(Full::default()).unwrap();
        let list = backend.send(limited).await.json();
        let shown = list.pointer(members).unwrap().as_array().unwrap();
        assert_eq!(shown.iter().map(|model| &model["id"]).collect::<Vec<_>>(), ["m-2"], "{path}");
    }
    assert_eq!(backend.get("/api/v1/models").await.json().as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn a_prediction_names_the_file_and_is_filed_under_the_model() {
    let backend = Running::start().await;
    let form = "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"tom.png\"\r\n\r\nimage\r\n--b--\r\n";
    let made = backend.call("POST", "/api/v1/inferences/m-5", form).await.json();
    assert_eq!(
        (&made["name"], &made["extension"], &made["model_id"]),
        (&json!("tom.png"), &json!("png"), &json!("m-5"))
    );
    assert_eq!(made["inference_items"][0]["prediction"], "cat");
    let filed = backend.get("/api/v1/models/m-5/inferences?pageSize=25").await.json();
    assert_eq!(filed[1]["id"], made["id"]);

    let version = "/api/v1/inferences/m-5/versions/v-2";
    let made = backend.call("POST", version, r#"{"input_text": "hello"}"#).await.json();
    assert_eq!((&made["model_version_id"], &made["result"]), (&json!("v-2"), &json!("You said: hello")));
}

#[tokio::test]
async fn login_greets_whoever_comes() {
    let backend = Running::start().await;
    let reply = backend.call("POST", "/api/v1/login", r#"{"username": "eve", "password": "secret"}"#).await;
    assert_eq!(reply.json()["username"], "eve");
    assert!(!reply.json().to_string().contains("secret"));
    assert_eq!(backend.get("/api/v1/me/context").await.json()["user_id"], "u-1");
}

#[tokio::test]
async fn a_chat_completion_repeats_the_question() {
    let backend = Running::start().await;
    let question = json!({ "model": "m-3", "messages": [{ "role": "user", "content": "hello there" }] });
    let answer = backend.call("POST", "/v1/chat/completions", question.to_string()).await.json();
    assert_eq!(answer["choices"][0]["message"]["content"], "This is m-3 of the sample backend. You said: hello there");
    assert_eq!(answer["usage"]["prompt_tokens"], 2);
    let refused = backend.call("POST", "/v1/chat/completions", "{").await;
    assert_eq!((refused.status.as_u16(), &refused.json()["error"]["type"]), (400, &json!("invalid_request_error")));
}

#[tokio::test]
async fn a_stream_leaves_chunk_by_chunk_and_ends_with_done() {
    let backend = Running::start().await;
    for (path, body) in [
        ("/v1/chat/completions", json!({ "stream": true, "messages": [{ "role": "user", "content": "hi" }] })),
        ("/v1/completions", json!({ "stream": true, "prompt": "hi" })),
    ] {
        let begun = Instant::now();
        let request = request("POST", path).body(Full::from(body.to_string())).unwrap();
        let answer = backend.open(request).await.unwrap();
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        let (mut body, mut frames) = (answer.into_body(), Vec::new());
        while let Some(frame) = body.frame().await {
            frames.push(String::from_utf8(frame.unwrap().into_data().unwrap().to_vec()).unwrap());
        }
        assert!(frames.len() >= 8, "{path}: {} chunks", frames.len());
        let pauses = 50 * (frames.len() as u64 - 1);
        assert!(begun.elapsed() >= Duration::from_millis(pauses), "{path}: {:?}", begun.elapsed());
        assert!(frames[0].starts_with("data: {"));
        assert!(frames.concat().ends_with("data: [DONE]\n\n"));
    }
}

#[tokio::test]
async fn embeddings_and_responses_have_the_shapes_the_client_reads() {
    let backend = Running::start().await;
    let body = r#"{"model": "m-3", "input": ["a", "b"], "encoding_format": "base64"}"#;
    let answer = backend.call("POST", "/v1/embeddings", body).await.json();
    assert_eq!(answer["data"][1]["embedding"].as_array().unwrap().len(), 8);
    assert_ne!(answer["data"][0]["embedding"], answer["data"][1]["embedding"]);

    let answer = backend.call("POST", "/v1/responses", r#"{"model": "m-3", "input": "hey"}"#).await.json();
    assert!(answer["output"][0]["content"][0]["text"].as_str().unwrap().ends_with("You said: hey"));
    let stream = backend.call("POST", "/v1/responses", r#"{"input": "hey", "stream": true}"#).await;
    let text = String::from_utf8(stream.body.to_vec()).unwrap();
    assert!(text.starts_with("event: response.created\ndata: {"));
    assert!(text.contains("event: response.completed\n"));
}
