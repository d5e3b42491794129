//! A request that is decided and not sent: for `explain` and the file's own tests.
//!
//! Walks the chain of contract 4 with the very functions of the data path and notes what each said. Nothing is asked of a store
//! and nothing is charged, so quota and upstream have no say here.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use http::{HeaderMap, Method};

use super::output::counted;
use crate::config::model::Config;
use crate::management::call::Call;
use crate::policy::access::{Authenticated, Grant, KeyProfile, Scoped};
use crate::policy::key::Timestamp;
use crate::policy::network::Network;
use crate::policy::path::RequestPath;
use crate::policy::rejection::Rejection;
use crate::policy::resource::Kind;
use crate::policy::route::{Access, Match};
use crate::policy::values::{bound_values, needs_body};

/// The request.
#[derive(Debug)]
pub(super) struct Trial<'a> {
    /// Its method.
    pub(super) method: Method,
    /// Path and query.
    pub(super) target: &'a str,
    /// Its fields.
    pub(super) headers: HeaderMap,
    /// Its body.
    pub(super) body: Option<&'a [u8]>,
    /// The key it comes with, or why it is none; `None`: it comes without.
    pub(super) key: Option<Result<Arc<KeyProfile>, Rejection>>,
    /// Where it comes from; `None`: from where its key may be used.
    pub(super) client: Option<IpAddr>,
    /// The time of the decision.
    pub(super) now: Timestamp,
}

/// One check that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    /// Which.
    pub(super) name: &'static str,
    /// Whether it let the request pass.
    pub(super) passed: bool,
    /// Why.
    pub(super) why: String,
}

/// How the request fares.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It would be forwarded.
    Forwarded(Box<Grant>),
    /// Key and scope open this call of the management API, which then looks at the grant itself.
    Management,
    /// It would be refused.
    Refused(Rejection),
}

impl Outcome {
    /// `allowed`, or the code of the refusal.
    pub(super) fn code(&self) -> &'static str {
        match self {
            Self::Forwarded(_) | Self::Management => "allowed",
            Self::Refused(rejection) => rejection.problem().code,
        }
    }
}

impl Trial<'_> {
    /// Decides, and tells each check in the order it was made.
    pub(super) fn decide(&self, config: &Config) -> (Vec<Step>, Outcome) {
        let mut steps = Vec::new();
        let outcome = match self.walk(config, &mut steps) {
            Ok(Some(grant)) => Outcome::Forwarded(Box::new(grant)),
            Ok(None) => Outcome::Management,
            Err((name, rejection)) => {
                steps.push(Step { name, passed: false, why: rejection.problem().message.into_owned() });
                Outcome::Refused(rejection)
            }
        };
        (steps, outcome)
    }

    /// `None`: a call of the management API.
    fn walk(&self, config: &Config, steps: &mut Vec<Step>) -> Result<Option<Grant>, (&'static str, Rejection)> {
        let mut passed = |name, why: String| steps.push(Step { name, passed: true, why });
        let (path, query) =
            self.target.split_once('?').map_or((self.target, None), |(path, query)| (path, Some(query)));
        let path = RequestPath::parse(path).map_err(|rejection| ("well formed", rejection))?;
        passed("well formed", counted(path.segments().len(), "path segment"));
        if self.target.len() > config.limits.uri_bytes {
            return Err(("head", Rejection::UriTooLong));
        }
        passed("head", format!("{} of {} bytes of target", self.target.len(), config.limits.uri_bytes));
        if let Some(call) = Call::recognise(&config.management.base_path, &self.method, &path, query) {
            let call = call.map_err(|rejection| ("route", rejection))?;
            passed("route", format!("{}, of the management API", call.endpoint()));
            let access = call.scope().map_or(Access::Authenticated, |scope| Access::AnyScope(vec![scope]));
            self.admit(&access, &mut passed)?;
            return Ok(None);
        }
        let found = config.routes.find(&self.method, &path).map_err(|rejection| ("route", rejection))?;
        passed("route", route_line(&found));
        let limit = found.route.body_bytes.or(config.limits.body_bytes);
        let length = self.body.map_or(0, |body| body.len() as u64);
        if let Some(limit) = limit.filter(|limit| length > *limit) {
            return Err(("body", Rejection::BodyTooLarge(limit)));
        }
        if let Some(limit) = limit {
            passed("body", format!("{length} of {limit} bytes"));
        }
        let scoped = self.admit(&found.route.access, &mut passed)?;
        let inspected = needs_body(&found, &scoped, &self.headers).map_err(|rejection| ("resources", rejection))?;
        if inspected && length > config.limits.inspect_bytes as u64 {
            return Err(("resources", Rejection::BodyTooLarge(config.limits.inspect_bytes as u64)));
        }
        let values = bound_values(&found, &scoped, query, &self.headers, self.body);
        let grant = values.and_then(|values| scoped.check_resources(found, values));
        let grant = grant.map_err(|rejection| ("resources", rejection))?;
        passed("resources", resources_line(&grant));
        Ok(Some(grant))
    }
}

impl Trial<'_> {
    /// Key, then scope.
    fn admit(
        &self,
        access: &Access,
        passed: &mut impl FnMut(&'static str, String),
    ) -> Result<Scoped, (&'static str, Rejection)> {
        let authenticated = self.authenticate(access).map_err(|rejection| ("key", rejection))?;
        let key = self.key_line(&authenticated);
        let scoped = authenticated.check_scope(access).map_err(|rejection| match rejection {
            Rejection::MissingKey => ("key", rejection),
            _ => ("scope", rejection),
        });
        if !matches!(scoped, Err(("key", _))) {
            passed("key", key);
        }
        let scoped = scoped?;
        passed("scope", format!("open to: {access}"));
        Ok(scoped)
    }

    /// A public route looks at no key, as on the data path.
    fn authenticate(&self, access: &Access) -> Result<Authenticated, Rejection> {
        match &self.key {
            Some(_) if *access == Access::Public => Ok(Authenticated::anonymous()),
            Some(Ok(profile)) => Authenticated::check(profile.clone(), self.now, self.client_of(profile)),
            Some(Err(rejection)) => Err(rejection.clone()),
            None => Ok(Authenticated::anonymous()),
        }
    }
}

impl Trial<'_> {
    fn key_line(&self, authenticated: &Authenticated) -> String {
        match authenticated.profile() {
            Some(profile) => {
                let (id, account, plan) = (&profile.record.id, &profile.record.account_id, &profile.plan);
                let limited = profile.record.allowed_addresses.as_ref();
                let from = limited.map_or_else(String::new, |_| format!(", from {}", self.client_of(profile)));
                format!("{id} of account {account}, plan {plan}, in force{from}")
            }
            None if self.key.is_some() => "not looked at: the route is public".to_owned(),
            None => "none".to_owned(),
        }
    }

    fn client_of(&self, profile: &KeyProfile) -> IpAddr {
        let allowed = || profile.record.allowed_addresses.as_ref()?.first().map(Network::first);
        self.client.map(|client| client.to_canonical()).or_else(allowed).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
    }
}

fn route_line(found: &Match) -> String {
    format!("{}, line {}", found.route.label(), found.route.line)
}

fn resources_line(grant: &Grant) -> String {
    let named = Kind::ALL.into_iter().filter_map(|kind| Some(format!("{kind} {}", grant.values().of(kind)?)));
    let organization = grant.values().organization.iter().map(|id| format!("organization {id}"));
    let named: Vec<String> = named.chain(organization).collect();
    let limited = grant.profile().is_some_and(|profile| {
        let record = &profile.record;
        record.organization_id.is_some() || Kind::ALL.into_iter().any(|kind| kind.limit(record).is_some())
    });
    let named = named.join(", ");
    match (named.is_empty(), limited, grant.profile()) {
        (_, _, None) => "no key, no limits".to_owned(),
        (true, false, _) => "the key is not limited".to_owned(),
        (true, true, _) => "the route binds nothing that the key is limited in".to_owned(),
        (false, false, _) => format!("{named}; the key is not limited"),
        (false, true, _) => format!("{named}: within the key's limits"),
    }
}
