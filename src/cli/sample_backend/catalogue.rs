//! The objects behind `/api/v1` and `/admin`: the seed, and what clients have written over it.
//!
//! A collection is known by its kind (`datasets/versions/labels`, the names along the path) and by its path (with the
//! ids). A path nobody has written to shows the seed of its kind, whatever the ids on the way, so that every id works;
//! the first write copies the seed and changes the copy. Nothing is written to disk and the memory is bounded.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::clock::Clock;

/// A JSON object.
pub(super) type Object = Map<String, Value>;

type Written = HashMap<String, Vec<Object>>;

/// The time at which the seeded objects say they were made.
const SEEDED_AT: &str = "2024-01-01T00:00:00Z";

/// `seed.json`.
#[derive(Deserialize)]
struct Seed {
    /// Kind to its first objects; the first one is the model of every made-up object.
    collections: HashMap<String, Vec<Object>>,
    /// Kind to the child collections that its objects carry inside.
    embedded: HashMap<String, Vec<String>>,
    /// `METHOD path` with `{}` for any one segment, to an answer that is not an object of a collection.
    answers: HashMap<String, Value>,
}

/// The objects of a running sample backend.
pub(super) struct Catalogue {
    clock: Arc<dyn Clock>,
    seed: Seed,
    written: Mutex<Written>,
    next_id: AtomicU64,
}

/// Where a path leads: a collection, one object of it, or an action on that object.
#[derive(Clone, Default)]
pub(super) struct Place {
    /// The names along the path: `datasets/versions`.
    pub(super) kind: String,
    path: String,
    /// The objects on the way, from the outermost: singular name and id.
    parents: Vec<(String, String)>,
    /// The object, when the path names one.
    pub(super) id: Option<String>,
    /// What follows the object and is no collection: `logo`, `download/pkl`.
    pub(super) action: Option<String>,
}

impl Place {
    /// The child collection `name` of the object `id`.
    pub(super) fn child(&self, id: &str, name: &str) -> Self {
        let mut parents = self.parents.clone();
        parents.push((self.singular(), id.to_owned()));
        Self {
            kind: format!("{}/{name}", self.kind),
            path: format!("{}/{id}/{name}", self.path),
            parents,
            ..Self::default()
        }
    }

    /// `datasets/versions` is `version`, `admin/plan-features` is `plan_feature`.
    fn singular(&self) -> String {
        let name = self.kind.rsplit('/').next().unwrap_or_default();
        name.strip_suffix('s').unwrap_or(name).replace('-', "_")
    }

    /// `dataset_id`, `version_id` and `dataset_version_id` for an object below a dataset version.
    fn add_parents(&self, object: &mut Object) {
        let mut outer: Option<&str> = None;
        for (name, id) in &self.parents {
            object.insert(format!("{name}_id"), id.as_str().into());
            if let Some(outer) = outer {
                object.insert(format!("{outer}_{name}_id"), id.as_str().into());
            }
            outer = Some(name);
        }
    }
}

impl Catalogue {
    /// Objects kept for one collection; the oldest give way.
    const OBJECTS: usize = 200;
    /// Collections that keep what is written to them; later ones answer as if they did.
    const COLLECTIONS: usize = 500;
    /// Longest object that is kept; a longer one is answered all the same.
    const OBJECT_BYTES: usize = 8 * 1024;

    /// The seed alone.
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        let seed = serde_json::from_str(include_str!("seed.json"))
            .expect("seed.json is compiled in, and every test of this module parses it");
        Self { clock, seed, written: Mutex::default(), next_id: AtomicU64::new(100) }
    }

    /// The fixed answer for a call, when it has one. `path` is without `/api/v1/`.
    pub(super) fn fixed_answer(&self, method: &str, path: &str) -> Option<Value> {
        let fits = |pattern: &str| {
            let mut segments = path.split('/');
            let Some((named, pattern)) = pattern.split_once(' ') else {
                return false;
            };
            let same = pattern.split('/').all(|wanted| segments.next().is_some_and(|s| wanted == "{}" || wanted == s));
            named == method && same && segments.next().is_none()
        };
        let answers = &self.seed.answers;
        answers.iter().find(|(pattern, _)| fits(pattern)).map(|(_, answer)| answer.clone())
    }

    /// Where `path` (without `/api/v1/`) leads; none when it begins with no collection.
    pub(super) fn find(&self, path: &str) -> Option<Place> {
        let (prefix, path) = match path.strip_prefix("admin/") {
            Some(rest) => ("admin/", rest),
            None => ("", path),
        };
        let decoded = |segment: &str| percent_decode_str(segment).decode_utf8_lossy().into_owned();
        let mut segments = path.split('/');
        let first = format!("{prefix}{}", segments.next()?);
        let mut place = Place { kind: first.clone(), path: first, ..Place::default() };
        self.seed.collections.get(&place.kind)?;
        loop {
            let id = match segments.next() {
                None => return Some(place),
                Some("") => return None, // a trailing slash is a path of its own
                Some(id) => decoded(id),
            };
            let Some(name) = segments.next() else {
                place.id = Some(id);
                return Some(place);
            };
            let child = place.child(&id, name);
            if !self.seed.collections.contains_key(&child.kind) {
                let rest = segments.fold(name.to_owned(), |all, next| format!("{all}/{next}"));
                (place.id, place.action) = (Some(id), Some(rest));
                return Some(place);
            }
            place = child;
        }
    }

    /// The objects of a collection.
    pub(super) fn list(&self, place: &Place) -> Vec<Object> {
        self.all(&self.lock(), place)
    }

    /// One object; made up when there is none of that id.
    pub(super) fn get(&self, place: &Place, id: &str) -> Object {
        self.one(&self.lock(), place, id)
    }

    /// A new object: the seed's first, with the members of `body` over it and an id of its own.
    pub(super) fn create(&self, place: &Place, body: Option<&Value>) -> Object {
        let number = self.next_id.fetch_add(1, Ordering::Relaxed);
        let id = format!("{}-{number}", place.singular().replace('_', "-"));
        let mut object = self.made_up(place, &id);
        object.insert("created_at".to_owned(), self.now().into());
        self.write(place, &id, object, body)
    }

    /// An object with the members of `body` over it.
    pub(super) fn update(&self, place: &Place, id: &str, body: Option<&Value>) -> Object {
        let object = self.get(place, id);
        self.write(place, id, object, body)
    }

    /// Removes an object and returns it, as the client expects of some deletions.
    pub(super) fn delete(&self, place: &Place, id: &str) -> Object {
        let mut written = self.lock();
        let object = self.one(&written, place, id);
        if let Some(objects) = self.own(&mut written, place) {
            objects.retain(|object| object.get("id").and_then(Value::as_str) != Some(id));
        }
        object
    }

    fn write(&self, place: &Place, id: &str, mut object: Object, body: Option<&Value>) -> Object {
        merge(&mut object, body);
        object.insert("id".to_owned(), id.into());
        object.insert("updated_at".to_owned(), self.now().into());
        place.add_parents(&mut object);
        let small = Value::Object(object.clone()).to_string().len() <= Self::OBJECT_BYTES;
        let mut written = self.lock();
        if let Some(objects) = self.own(&mut written, place).filter(|_| small) {
            let same = |object: &Object| object.get("id").and_then(Value::as_str) == Some(id);
            match objects.iter().position(same) {
                Some(index) => objects[index] = object.clone(),
                None => objects.push(object.clone()),
            }
            if objects.len() > Self::OBJECTS {
                objects.remove(0);
            }
        }
        self.embed(&written, place, object)
    }

    fn now(&self) -> String {
        self.clock.wall().to_string()
    }

    fn lock(&self) -> MutexGuard<'_, Written> {
        // Every write leaves the map whole, so a panic elsewhere under the lock does no harm.
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The written copy of a collection, made from the seed when it is the first write; none when there are too many.
    fn own<'w>(&self, written: &'w mut Written, place: &Place) -> Option<&'w mut Vec<Object>> {
        if !written.contains_key(&place.path) && written.len() >= Self::COLLECTIONS {
            return None;
        }
        let objects = written.entry(place.path.clone());
        Some(objects.or_insert_with(|| self.seeded(place)))
    }

    fn seeded(&self, place: &Place) -> Vec<Object> {
        let mut objects = self.seed.collections.get(&place.kind).cloned();
        for object in objects.iter_mut().flatten() {
            object.insert("created_at".to_owned(), SEEDED_AT.into());
            object.insert("updated_at".to_owned(), SEEDED_AT.into());
            place.add_parents(object);
        }
        objects.unwrap_or_default()
    }

    fn made_up(&self, place: &Place, id: &str) -> Object {
        let mut object = self.seeded(place).into_iter().next().unwrap_or_default();
        object.insert("id".to_owned(), id.into());
        if object.contains_key("name") {
            object.insert("name".to_owned(), id.into());
        }
        object
    }

    fn one(&self, written: &Written, place: &Place, id: &str) -> Object {
        let same = |object: &Object| object.get("id").and_then(Value::as_str) == Some(id);
        let found = match written.get(&place.path) {
            Some(objects) => objects.iter().find(|object| same(object)).cloned(),
            None => self.seeded(place).into_iter().find(same),
        };
        let object = found.unwrap_or_else(|| self.made_up(place, id));
        self.embed(written, place, object)
    }

    fn all(&self, written: &Written, place: &Place) -> Vec<Object> {
        let objects = written.get(&place.path).cloned();
        let objects = objects.unwrap_or_else(|| self.seeded(place));
        objects.into_iter().map(|object| self.embed(written, place, object)).collect()
    }

    /// Puts the child collections that the client expects inside an object into it, as they are now.
    fn embed(&self, written: &Written, place: &Place, mut object: Object) -> Object {
        let id = object.get("id").and_then(Value::as_str);
        let id = id.unwrap_or_default().to_owned();
        for name in self.seed.embedded.get(&place.kind).into_iter().flatten() {
            let children = self.all(written, &place.child(&id, name));
            object.insert(name.clone(), Value::from(children));
        }
        object
    }
}

/// Lays the members of `body` over `object`; a null says nothing, as the published client sends one for every member
/// that was not set.
pub(super) fn merge(object: &mut Object, body: Option<&Value>) {
    let members = body.and_then(Value::as_object).into_iter().flatten();
    for (name, value) in members.filter(|(_, value)| !value.is_null()) {
        object.insert(name.clone(), value.clone());
    }
}
