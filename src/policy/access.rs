//! From a key to a grant: is the key in force, does it hold the scope, is it meant for this resource.
//!
//! The chain [`Authenticated`] → [`Scoped`] → [`Grant`] can only be walked in this order: each is made by the check before it
//! and by nothing else, so code that skips a check does not compile. A public route walks the same chain without a key.

use std::net::IpAddr;
use std::sync::Arc;

use http::HeaderValue;

use super::key::{Account, Environment, KeyRecord, QuotaLimits, Timestamp};
use super::quota::{InFlightLimit, Subject};
use super::rejection::{MissingScope, Rejection};
use super::resource::{Kind, LimitedKeys, ValueSource, check_resource};
use super::route::{Access, Match, Route};
use super::scope::Grants;

/// A key with everything worked out that does not change from request to request.
#[derive(Debug)]
pub struct KeyProfile {
    /// Under which configuration it was worked out.
    pub revision: u64,
    /// The record.
    pub record: KeyRecord,
    /// Its account.
    pub account: Account,
    /// The name of the plan in force.
    pub plan: Arc<str>,
    /// The limits in force.
    pub limits: QuotaLimits,
    /// How many requests of its account may be in flight; `None`: any number.
    pub in_flight: Option<InFlightLimit>,
    /// What its scopes amount to.
    pub grants: Grants,
    /// Whose quota it is charged to.
    pub subject: Subject,
    /// When the secret that was presented ends: the key's expiry or the end of a rotation's grace.
    pub secret_expires_at: Option<Timestamp>,
    /// Identity headers for the upstream, ready to be inserted.
    pub identity: Vec<(http::HeaderName, HeaderValue)>,
}

impl KeyProfile {
    /// When it ends, if it does: the key, or the secret that was presented.
    pub fn expires_at(&self) -> Option<Timestamp> {
        [self.record.expires_at, self.secret_expires_at].into_iter().flatten().min()
    }
}

/// A key, and the address that it came from.
#[derive(Debug, Clone)]
struct Presented {
    profile: Arc<KeyProfile>,
    client: IpAddr,
}

/// A key that is known, whose account is active, that is enabled, not expired and may come from where it came. `None` inside: no
/// key came.
#[derive(Debug, Clone)]
pub struct Authenticated(Option<Presented>);

impl Authenticated {
    /// No key: enough for a public route only.
    pub const fn anonymous() -> Self {
        Self(None)
    }

    /// Checks account, switch and expiry, in the order of contract 4; then whether the key may come from this address.
    pub fn check(profile: Arc<KeyProfile>, now: Timestamp, client: IpAddr) -> Result<Self, Rejection> {
        if profile.account.suspended {
            return Err(Rejection::AccountSuspended);
        }
        if profile.record.disabled {
            return Err(Rejection::DisabledKey);
        }
        if let Some(at) = profile.expires_at().filter(|at| *at <= now) {
            return Err(Rejection::ExpiredKey(at));
        }
        match &profile.record.allowed_addresses {
            Some(allowed) if !allowed.iter().any(|network| network.contains(client)) => {
                Err(Rejection::AddressNotAllowed(client))
            }
            _ => Ok(Self(Some(Presented { profile, client }))),
        }
    }

    /// The key, if there is one.
    pub fn profile(&self) -> Option<&Arc<KeyProfile>> {
        self.0.as_ref().map(|presented| &presented.profile)
    }

    /// Checks what a route, or a management call, asks for.
    pub fn check_scope(self, access: &Access) -> Result<Scoped, Rejection> {
        let Some(Presented { profile, .. }) = &self.0 else {
            return if *access == Access::Public { Ok(Scoped(None)) } else { Err(Rejection::MissingKey) };
        };
        let missing = match access {
            Access::Public | Access::Authenticated => None,
            Access::AnyScope(scopes) if scopes.iter().any(|scope| profile.grants.allows(scope)) => None,
            Access::AnyScope(scopes) => Some(MissingScope::AnyOf(scopes.clone())),
            Access::AllScopes(scopes) => {
                let missing: Vec<_> = scopes.iter().filter(|scope| !profile.grants.allows(scope)).cloned().collect();
                if missing.is_empty() { None } else { Some(MissingScope::AllOf(missing)) }
            }
        };
        match missing {
            Some(missing) => Err(Rejection::InsufficientScope(missing)),
            None => Ok(Scoped(self.0)),
        }
    }
}

/// A key that holds the scope of a route (or a public route).
#[derive(Debug, Clone)]
pub struct Scoped(Option<Presented>);

/// What the request names, for the dimensions that the route binds. `None`: it names nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Values {
    /// The model.
    pub model: Option<String>,
    /// The dataset.
    pub dataset: Option<String>,
    /// The organization.
    pub organization: Option<String>,
}

impl Values {
    /// The value of one kind.
    pub fn of(&self, kind: Kind) -> Option<&str> {
        match kind {
            Kind::Model => self.model.as_deref(),
            Kind::Dataset => self.dataset.as_deref(),
        }
    }
}

impl Scoped {
    /// The key, if there is one.
    pub fn profile(&self) -> Option<&Arc<KeyProfile>> {
        self.0.as_ref().map(|presented| &presented.profile)
    }

    /// Whether the key is limited in a dimension that the route takes from this source: only then is a body inspected.
    pub fn must_inspect(&self, route: &Route, wanted: impl Fn(&ValueSource) -> bool) -> bool {
        let Some(profile) = self.profile() else { return false };
        let limited =
            |kind: Kind| kind.limit(&profile.record).is_some() && route.bindings.of(kind).is_some_and(&wanted);
        Kind::ALL.into_iter().any(limited)
            || (profile.record.organization_id.is_some() && route.bindings.organization.as_ref().is_some_and(&wanted))
    }

    /// Checks models, datasets and organization.
    pub fn check_resources(self, found: Match, values: Values) -> Result<Grant, Rejection> {
        if let Some(profile) = self.profile() {
            let route = &found.route;
            for kind in Kind::ALL {
                let Some(allowed) = kind.limit(&profile.record) else { continue };
                if route.bindings.of(kind).is_some() {
                    check_resource(kind, allowed, values.of(kind))?;
                } else if route.touches.contains(kind) && route.limited_keys == LimitedKeys::Deny {
                    return Err(Rejection::ResourceNotAllowed(kind));
                }
            }
            if let (Some(mine), Some(_)) = (&profile.record.organization_id, &route.bindings.organization)
                && values.organization.as_deref() != Some(mine.as_str())
            {
                return Err(Rejection::OrganizationNotAllowed);
            }
        }
        Ok(Grant { presented: self.0, found, values })
    }
}

/// A request that may pass, but for its quota.
#[derive(Debug, Clone)]
pub struct Grant {
    presented: Option<Presented>,
    found: Match,
    values: Values,
}

impl Grant {
    /// Walks the same chain again with what is known of the key by now: an answer that lasts needs a grant that lasts.
    /// One without a key has nothing that could end.
    pub fn renew(&self, profile: Arc<KeyProfile>, now: Timestamp) -> Result<Self, Rejection> {
        let Some(Presented { client, .. }) = self.presented else { return Ok(self.clone()) };
        let scoped = Authenticated::check(profile, now, client)?.check_scope(&self.found.route.access)?;
        scoped.check_resources(self.found.clone(), self.values.clone())
    }

    /// The key; `None` on a public route.
    pub fn profile(&self) -> Option<&Arc<KeyProfile>> {
        self.presented.as_ref().map(|presented| &presented.profile)
    }

    /// The route.
    pub fn route(&self) -> &Arc<Route> {
        &self.found.route
    }

    /// What the request names.
    pub fn values(&self) -> &Values {
        &self.values
    }

    /// The environment whose upstream serves it; without a key: live.
    pub fn environment(&self) -> Environment {
        self.profile().map_or(Environment::Live, |profile| profile.record.environment)
    }
}
