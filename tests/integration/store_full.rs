//! The disk under the store is full: keys that are known go on working, nothing is promised that is not stored.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use super::support::{Stand, eventually, wait_for};

/// A file system of a few hundred kilobytes, unmounted at the end.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path) -> Option<Self> {
        fs::create_dir_all(at).ok()?;
        let done =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=1500k,mode=700", "tmpfs"]).arg(at).output().ok()?;
        done.status.success().then(|| Self(at.to_owned()))
    }

    /// Takes what is left, to the last byte.
    fn fill(&self) {
        use std::io::Write;
        let mut file = fs::OpenOptions::new().append(true).create(true).open(self.0.join("filler")).unwrap();
        for size in [65_536, 4096, 512, 1] {
            while file.write_all(&vec![0; size]).is_ok() {}
        }
    }

    fn free(&self) {
        fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the gateway may still hold files there.
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

#[test]
fn a_full_disk_stops_no_known_key_and_makes_none_that_is_not_stored() {
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(&folder.path().join("disk")) else {
        println!("skipped: this user may not mount a tmpfs");
        return;
    };
    let stand = Stand::new().store_in(&disk.0).start();
    let key = stand.key().scope("*").scope("api-keys:*").create();
    let request = stand.get("/echo/x").bearer(&key);
    request.send().expect_status(200);
    let unseen: Vec<_> = (0..3).map(|_| stand.key().create()).collect();
    disk.fill();

    let body = json!({"name": "not stored", "scopes": ["models:read"]});
    let create = stand.post("/api/v1/api-keys").bearer(&key).json(&body);
    // The write-ahead log may have room for a few more.
    let mut made = Vec::new();
    let (refusal, _) = wait_for("the disk is felt", Duration::from_secs(10), || {
        let response = create.send();
        if response.status() == 201 {
            made.push(response.json()["id"].as_str().unwrap().to_owned());
            disk.fill();
            return None;
        }
        Some(response)
    });
    let refusal = refusal.expect_refusal(503, "store_unavailable");
    assert!(refusal.number("retry-after") >= 1);
    assert!(refusal.json().get("key").is_none());
    for _ in 0..200 {
        request.send().expect_status(200);
    }
    create.send().expect_refusal(503, "store_unavailable");
    stand.gateway.admin("/livez").expect_status(200);
    eventually("operators are told", Duration::from_secs(2), || {
        stand.gateway.admin("/readyz").expect_status(200).text().contains("degraded")
            && stand.gateway.metric("gateway_store_outage", "") == Some(1.0)
            && stand.gateway.metric("gateway_store_breaker_opened_total", "") >= Some(1.0)
    });
    // What cannot be written can be read: keys that this gateway has not met are looked up.
    eventually("what they may be admitted is told", Duration::from_secs(5), || {
        for key in &unseen {
            stand.get("/echo/x").bearer(key).send().expect_status(200);
        }
        stand.gateway.metric("gateway_outage_admission_bound", "") >= Some(3.0)
    });
    let refused = stand.cli(&["keys", "create", "--name", "not stored", "--account", "a", "--scope", "a:b", "--json"]);
    assert!(refused.code == Some(1) && refused.stdout.is_empty(), "{refused:?}");

    disk.free();
    let start = Instant::now();
    let id = wait_for("recovery", Duration::from_secs(10), || {
        let response = create.send();
        (response.status() == 201).then(|| response.json()["id"].as_str().unwrap().to_owned())
    });
    println!("recovered {:?} after there was space again", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    request.send().expect_status(200);
    eventually("no longer degraded", Duration::from_secs(5), || {
        stand.gateway.admin("/readyz").text().trim() == "ready"
            && stand.gateway.metric("gateway_store_outage", "") == Some(0.0)
            && stand.gateway.metric("gateway_outage_admission_bound", "") == Some(0.0)
    });

    // Exactly the keys whose creation was answered 201 exist.
    made.extend([id.0, key.id.clone()]);
    made.sort();
    let listed = stand.get("/api/v1/api-keys").bearer(&key).send().expect_status(200).json();
    let mut stored: Vec<&str> = listed.as_array().unwrap().iter().map(|key| key["id"].as_str().unwrap()).collect();
    stored.sort_unstable();
    assert_eq!(stored, made);
    let all = stand.cli(&["keys", "list", "--json", "--account", "a"]).expect_success().json();
    assert_eq!(all, json!([]));
    // And what was served meanwhile is counted.
    let usage = stand.usage(&key);
    assert!(usage["by_endpoint"]["GET /echo/{*rest}"]["successful"].as_u64().unwrap() >= 202, "{usage}");
}
