//! The instance's mode: whether mail of applications may leave at all.

use super::{body, registry};
use crate::actor::Actor;
use crate::port::Relay;
use crate::problem::Problem;
use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use postrider_model::control::{Change, Control, InstanceMode, Scope};
use postrider_store::{Act, Entry};
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    mode: Option<InstanceMode>,
}

fn view(control: &Control, mode: InstanceMode) -> Value {
    json!({
        "mode": mode,
        "tenants": control.tenants().map(|tenant| json!(**tenant)).collect::<Vec<_>>(),
        "applications": control.applications().count(),
    })
}

pub(crate) async fn show<R: Relay>(State(relay): State<R>, actor: Actor) -> Result<Json<Value>, Problem> {
    actor.must_for_instance(Scope::WriteInstance)?;
    let control = registry(&relay)?.current();
    Ok(Json(view(&control, control.mode())))
}

pub(crate) async fn change<R: Relay>(
    State(relay): State<R>,
    actor: Actor,
    octets: Bytes,
) -> Result<Json<Value>, Problem> {
    actor.must_for_instance(Scope::WriteInstance)?;
    let Some(mode) = body::<Wanted>(&octets)?.mode else {
        return Err(Problem::bad_request("say which mode: {\"mode\": \"live\"} or {\"mode\": \"sandbox\"}"));
    };
    let act = registry(&relay)?.act(move |control, _| {
        let answer = view(control, mode);
        if control.mode() == mode {
            return Ok(Act { changes: vec![], entries: vec![], answer });
        }
        let action = match mode {
            InstanceMode::Live => "instance.live",
            InstanceMode::Sandbox => "instance.sandbox",
        };
        let entry = Entry::new(actor.name(), action, "instance");
        Ok(Act { changes: vec![Change::Mode(mode)], entries: vec![entry], answer })
    });
    Ok(Json(act.get().await?))
}
