//! gateway.yaml: from text to [`model::Config`], with every mistake at once.
//!
//! `raw` reads YAML into a tree with positions (the only file that names `serde_yaml`), `compile` turns the tree into the model
//! and collects [`diagnostic::Diagnostic`]s. Nothing below `cli` prints; nothing here touches the network or the store.

pub mod model;
