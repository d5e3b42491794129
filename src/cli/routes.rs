//! `routes`: the compiled table.

use std::io::{self, Write};

use crate::config::model::Config;
use crate::policy::resource::{Kind, LimitedKeys};
use crate::policy::route::{Route, UpstreamId};

/// Prints the table on stdout. A reader that went away (`| head`) is no failure; a table that is cut short otherwise is.
pub(super) fn run(config: &Config) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match table(config, &mut out).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome,
    }
}

/// A line for each route: method, path, access, bindings, upstream.
fn table(config: &Config, out: &mut dyn Write) -> io::Result<()> {
    let header = ["METHOD", "PATH", "ACCESS", "BINDINGS", "UPSTREAM"].map(str::to_owned);
    let rows: Vec<[String; 5]> =
        std::iter::once(header).chain(config.routes.routes().iter().map(|route| row(config, route))).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let [a, b, c, d] = [width(0), width(1), width(2), width(3)];
    for [method, path, access, bindings, upstream] in &rows {
        writeln!(out, "{method:a$}  {path:b$}  {access:c$}  {bindings:d$}  {upstream}")?;
    }
    Ok(())
}

fn row(config: &Config, route: &Route) -> [String; 5] {
    [
        route.methods.to_string(),
        route.pattern.template().to_string(),
        route.access.to_string(),
        bindings(route),
        upstream(config, route),
    ]
}

/// What the route binds, and what it does where it touches a kind and binds none.
fn bindings(route: &Route) -> String {
    let mut told = Vec::new();
    for kind in Kind::ALL {
        match route.bindings.of(kind) {
            Some(source) => told.push(format!("{kind}={source}")),
            None if route.touches.contains(kind) => told.push(match route.limited_keys {
                LimitedKeys::Deny => format!("no {kind}-limited keys"),
                LimitedKeys::Forward => format!("{kind}-limited keys forwarded"),
            }),
            None => {}
        }
    }
    told.extend(route.bindings.organization.iter().map(|source| format!("organization={source}")));
    if told.is_empty() { "-".to_owned() } else { told.join(", ") }
}

fn upstream(config: &Config, route: &Route) -> String {
    let name = |id: UpstreamId| config.upstreams[id.0].name.to_string();
    match (route.upstream, config.environments) {
        (Some(id), _) => name(id),
        (None, Some(by)) if by.live == by.test => name(by.live),
        (None, Some(by)) => format!("live: {}, test: {}", name(by.live), name(by.test)),
        (None, None) => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_what_was_compiled() {
        let text = "listen: { public: { address: 127.0.0.1:8080 } }
store: { url: \"sqlite:x\" }
upstreams: { seeme: { endpoints: [\"http://h:1\"] }, sandbox: { endpoints: [\"http://h:2\"] } }
environments: { live: seeme, test: sandbox }
routes:
  - under: /api/v1/models/{model_id}
    resources: { model: path.model_id }
    routes:
      - { match: PUT|DELETE /, access: { all_scopes: [models:write, models:delete] } }
  - { match: GET /api/v1/models, scope: models:read, limited_keys: forward }
  - { match: GET /api/v1/datasets, scope: datasets:read }
  - { match: POST /v1/x, scope: x:y, organization: body./a~1b/c, upstream: seeme }
  - { match: \"* /static/{*rest}\", access: public }
  - { match: GET /me, access: authenticated }
";
        let (config, _) = crate::config::parse("gateway.yaml".as_ref(), text, &|_| None).unwrap();
        let mut out = Vec::new();
        table(&config, &mut out).unwrap();
        insta::assert_snapshot!(String::from_utf8(out).unwrap());
    }
}
