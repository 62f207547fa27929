//! Who asks for something, and what that lets them ask for.

use crate::caller::Caller;
use crate::problem::Problem;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use postrider_model::control::{Application, Control, Environment, Scope, Scopes};
use postrider_model::{ApplicationId, TenantId};

/// Someone who asks. Every route of the control plane is written against this, whichever way the request came.
#[derive(Clone, Debug)]
pub(crate) struct Actor {
    /// For the audit log: `operator`, or the id of a key.
    name: String,
    /// Whose things it sees; `None` is the operator, who sees all.
    tenant: Option<TenantId>,
    /// The one application it sees, if it stands for one.
    application: Option<ApplicationId>,
    /// `None` is the operator, bound by neither.
    environment: Option<Environment>,
    scopes: Scopes,
}

impl Actor {
    /// Whoever may open the admin socket.
    pub(crate) fn operator() -> Self {
        Actor {
            name: "operator".to_owned(),
            tenant: None,
            application: None,
            environment: None,
            scopes: Scopes::ALL,
        }
    }

    /// Whoever shows this key.
    pub(crate) fn of(caller: &Caller) -> Self {
        Actor {
            name: caller.key.id.to_string(),
            tenant: Some(caller.key.tenant),
            application: caller.key.application,
            environment: Some(caller.key.environment),
            scopes: caller.key.scopes,
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn scopes(&self) -> Scopes {
        self.scopes
    }

    /// It may do that.
    ///
    /// # Errors
    /// It may not; says which scope is missing.
    pub(crate) fn must(&self, scope: Scope) -> Result<(), Problem> {
        if self.scopes.has(scope) {
            return Ok(());
        }
        let detail = format!("the API key lacks the scope {scope}; make one that has it");
        Err(Problem::forbidden("key.scopes", detail))
    }

    /// It may do that to a whole tenant: a key that stands for one application may not.
    pub(crate) fn must_for_all(&self, scope: Scope) -> Result<(), Problem> {
        self.must(scope)?;
        if self.application.is_none() {
            return Ok(());
        }
        let detail = "the API key stands for one application; use one that was made without an application";
        Err(Problem::forbidden("key.application", detail))
    }

    /// It may do that to the whole instance, which belongs to no tenant.
    pub(crate) fn must_for_instance(&self, scope: Scope) -> Result<(), Problem> {
        self.must_for_all(scope)?;
        if self.environment != Some(Environment::Test) {
            return Ok(());
        }
        Err(Problem::forbidden("key.environment", "a test key changes nothing for the instance"))
    }

    /// It may make keys for this environment.
    pub(crate) fn may_make(&self, environment: Environment) -> bool {
        self.environment != Some(Environment::Test) || environment == Environment::Test
    }

    /// The application is one that it sees. What it does not see is not there for it.
    pub(crate) fn sees(&self, application: &Application) -> bool {
        self.tenant.is_none_or(|tenant| tenant == application.tenant)
            && self.application.is_none_or(|only| only == application.id)
    }

    /// The tenant's things are its own.
    pub(crate) fn sees_tenant(&self, tenant: TenantId) -> bool {
        self.tenant.is_none_or(|own| own == tenant)
    }

    /// The tenant in which it makes things: its own, or the first.
    pub(crate) fn home(&self, control: &Control) -> Option<TenantId> {
        self.tenant.or_else(|| control.tenants().next().map(|tenant| tenant.id))
    }

    pub(crate) fn application(&self) -> Option<ApplicationId> {
        self.application
    }

    pub(crate) fn tenant(&self) -> Option<TenantId> {
        self.tenant
    }
}

/// As an argument of a route; whoever made the router has put it there.
impl<S: Send + Sync> FromRequestParts<S> for Actor {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Response> {
        let actor = parts.extensions.get::<Actor>().cloned();
        actor.ok_or_else(|| Problem::unauthorized("this route needs an API key").into_response())
    }
}
