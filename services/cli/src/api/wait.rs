//! `--wait`: follows an execution until it is final. By asking again, as any client can; soon at first, since most end soon.
//!
//! A gateway that goes away meanwhile is asked again until it is back: the execution runs on without it. What the last answer was is
//! shown in any case.

use std::io::IsTerminal as _;
use std::time::Duration;

use carillon_core::execution::Status;
use prost_reflect::{DynamicMessage, MethodDescriptor, ReflectMessage as _};
use tokio::time::Instant;

use super::cell::{DIM, RESET, text_of};
use super::client::Client;
use super::failure::Failure;
use super::request;
use super::text::visible;
use crate::exit::Exit;

/// The message that can be waited for, and the call that answers with it again.
const EXECUTION: &str = "carillon.v1.Execution";
const SERVICE: &str = "carillon.v1.ExecutionService";
const GET: &str = "GetExecution";
/// Between two looks: at first, and at most.
const LOOK_FIRST: Duration = Duration::from_millis(50);
const LOOK_MAX: Duration = Duration::from_secs(1);
/// No look is begun that must be over within so little.
const LOOK_LEAST: Duration = Duration::from_millis(10);
/// After so long a person at a terminal is told what is waited for.
const SAY_AFTER: Duration = Duration::from_millis(500);
/// How long a gateway may be away in one go.
const AWAY_MAX: Duration = Duration::from_secs(60);

/// Whether what a call answers can be waited for.
pub(crate) fn can_wait(method: &MethodDescriptor) -> bool {
    method.output().full_name() == EXECUTION
}

/// The execution as it was last seen, and what is to be said of it besides. `limit`: none waits as long as it takes.
pub(crate) async fn until_final(
    client: &Client,
    execution: DynamicMessage,
    limit: Option<Duration>,
) -> (DynamicMessage, Result<(), Failure>) {
    let begun = Instant::now();
    let mut execution = execution;
    let mut pause = LOOK_FIRST;
    let mut away_since: Option<Instant> = None;
    let id = field(&execution, "id");
    let mut is_said = !std::io::stderr().is_terminal();
    loop {
        let status = field(&execution, "status");
        if is_final(&status) {
            let outcome =
                if status == Status::Success.as_str() { Ok(()) } else { Err(Failure::NotSuccess { id, status }) };
            return (execution, outcome);
        }
        let waited = begun.elapsed();
        let left = limit.map(|limit| limit.saturating_sub(waited));
        if left.is_some_and(|left| left < LOOK_LEAST) {
            return (execution, Err(Failure::NotFinal { id, status, waited: limit.unwrap_or(waited) }));
        }
        if !is_said && waited >= SAY_AFTER {
            // Whoever interrupts it knows what goes on.
            let text =
                format!("waiting for execution {id}, which is {status}; Ctrl-C ends the waiting, not the execution");
            anstream::eprintln!("{DIM}{}{RESET}", visible(&text));
            is_said = true;
        }
        // The last looks come closer: each has what is left then, and no more.
        tokio::time::sleep(left.map_or(pause, |left| pause.min(left / 2))).await;
        pause = (pause * 3 / 2).min(LOOK_MAX);
        let looking = look(client, &execution, &id);
        let seen = match limit {
            None => looking.await,
            Some(limit) => match tokio::time::timeout(limit.saturating_sub(begun.elapsed()), looking).await {
                Ok(seen) => seen,
                Err(_) => continue,
            },
        };
        match seen {
            Ok(seen) => {
                execution = seen;
                away_since = None;
            }
            Err(failure) => {
                let since = *away_since.get_or_insert_with(Instant::now);
                if failure.exit() != Exit::Unavailable || since.elapsed() > AWAY_MAX {
                    return (execution, Err(failure));
                }
            }
        }
    }
}

async fn look(client: &Client, execution: &DynamicMessage, id: &str) -> Result<DynamicMessage, Failure> {
    let pool = execution.descriptor().parent_pool().clone();
    let service = pool.get_service_by_name(SERVICE);
    let method = service.and_then(|service| service.methods().find(|method| method.name() == GET));
    let request = method.as_ref().and_then(|method| request::of_text(&method.input(), "id", id.to_owned()));
    match method.zip(request) {
        Some((method, request)) => client.call(&method, request).await,
        None => Err(Failure::Local(format!("there is no {SERVICE}.{GET} to wait by"))),
    }
}

fn field(message: &DynamicMessage, name: &str) -> String {
    message.descriptor().get_field_by_name(name).map(|field| text_of(message, &field)).unwrap_or_default()
}

fn is_final(status: &str) -> bool {
    status.parse::<Status>().is_ok_and(Status::is_final)
}

#[cfg(test)]
mod tests {
    use super::*;
    use carillon_proto::descriptors;

    /// It was waited for as long as any other call may take.
    #[tokio::test]
    async fn a_gateway_that_does_not_answer_is_waited_for_no_longer_than_was_said() {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = silent.local_addr().unwrap().to_string();
        let for_a_call = Duration::from_secs(60);
        let client = Client::new(&address, None, for_a_call, None).unwrap_or_else(|_| panic!("{address}"));
        let of = descriptors().get_message_by_name(EXECUTION).unwrap();
        let mut execution = DynamicMessage::new(of);
        execution.set_field_by_name("id", prost_reflect::Value::String("i".into()));
        let begun = Instant::now();
        let (seen, outcome) = until_final(&client, execution.clone(), Some(Duration::from_millis(300))).await;
        assert!(matches!(outcome, Err(Failure::NotFinal { waited, .. }) if waited == Duration::from_millis(300)));
        assert_eq!(seen, execution);
        assert!(begun.elapsed() < for_a_call / 2, "{:?}", begun.elapsed());
    }

    #[test]
    fn what_is_waited_for_is_in_the_protos() {
        let pool = descriptors();
        let service = pool.get_service_by_name(SERVICE).unwrap();
        let get = service.methods().find(|method| method.name() == GET).unwrap();
        assert!(can_wait(&get) && request::of_text(&get.input(), "id", "i".into()).is_some());
        let of = pool.get_enum_by_name("carillon.v1.ExecutionStatus").unwrap();
        let words = carillon_proto::words::words(&of);
        let finals: Vec<&str> = words.iter().map(|word| word.word.as_str()).filter(|word| is_final(word)).collect();
        assert_eq!(finals, ["SUCCESS", "FAILED", "TIMEOUT", "CANCELLED", "SKIPPED"]);
    }
}
