//! The commands that ask a gateway: `carillon job`, `carillon execution`, `carillon schedule`. They are made of the descriptors of
//! the API, so that a call which is added there is a command here.
//!
//! The way of one: [`catalog`] says which there are, [`command`] makes clap's flags of them, [`request`] the request of what was
//! given, [`client`] asks, [`wait`] follows an execution, [`show`], [`results`], [`table`] and [`json`] print, [`failure`] says why not.
//! The gateway decides what is right; nothing is checked here that it would say better.

mod catalog;
mod cell;
mod client;
mod command;
mod failure;
mod json;
mod request;
mod results;
mod show;
mod table;
mod text;
mod value;
mod wait;

use std::io::{IsTerminal as _, Write as _};

use carillon_proto::comments::Comments;
use clap::ArgMatches;
use prost_reflect::DynamicMessage;

pub(crate) use catalog::Call;
use catalog::Noun;
use client::Client;
use command::{Manner, Output};
use failure::Failure;

use crate::exit::Exit;

/// Every command that the descriptors have.
pub(crate) struct Commands {
    nouns: Vec<Noun>,
    comments: Comments,
}

impl Commands {
    pub(crate) fn new() -> Self {
        let pool = carillon_proto::descriptors();
        Self { nouns: catalog::nouns(&pool), comments: Comments::of(&pool) }
    }

    /// Beside the commands that are there already.
    pub(crate) fn added_to(&self, root: clap::Command) -> clap::Command {
        self.nouns.iter().fold(root, |root, noun| root.subcommand(command::of_noun(noun, &self.comments)))
    }

    /// The one that was given, if it is of these.
    pub(crate) fn given<'a>(&self, matches: &'a ArgMatches) -> Option<(&Call, &'a ArgMatches)> {
        let (noun, matches) = matches.subcommand()?;
        let noun = self.nouns.iter().find(|known| known.name == noun)?;
        let (verb, matches) = matches.subcommand()?;
        Some((noun.calls.iter().find(|call| call.verb == verb)?, matches))
    }
}

/// Makes the call, prints what comes of it, and says how it ended.
pub(crate) async fn run(call: &Call, matches: &ArgMatches) -> Exit {
    match asked(call, matches).await {
        Ok(()) => Exit::Done,
        Err(failure) => {
            for line in failure.lines() {
                anstream::eprintln!("{line}");
            }
            failure.exit()
        }
    }
}

async fn asked(call: &Call, matches: &ArgMatches) -> Result<(), Failure> {
    let manner = command::manner(call, matches);
    let request = request::build(call, &command::given(call, matches), &mut request::reader());
    let request = request.map_err(Failure::Usage)?;
    let offset = request.get_field_by_name("offset").and_then(|offset| offset.as_u32()).unwrap_or(0);
    let client = Client::new(&manner.address, manner.ca.as_deref(), manner.timeout, manner.platform.as_deref())?;
    let answer = client.call(&call.method, request).await?;
    let (answer, outcome) = match manner.wait {
        Some(limit) => wait::until_final(&client, answer, limit).await,
        None => (answer, Ok(())),
    };
    print(&answer, &manner, offset.into())?;
    match results::refused(&answer) {
        Some((refused, of)) => Err(Failure::Partly { refused, of }),
        None => outcome,
    }
}

fn print(answer: &DynamicMessage, manner: &Manner, offset: u64) -> Result<(), Failure> {
    let is_terminal = std::io::stdout().is_terminal();
    let text = match manner.output {
        Output::Json => json::text(answer, is_terminal) + "\n",
        Output::Table => {
            let columns = terminal_size::terminal_size().map(|(width, _)| usize::from(width.0));
            let columns = columns.filter(|_| is_terminal);
            results::table(answer, columns).unwrap_or_else(|| show::answer(answer, columns, offset))
        }
    };
    let mut stdout = anstream::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        // A closed pipe (`| head`) is no failure.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::Local(format!("cannot write the answer: {error}")))
        }
        _ => Ok(()),
    }
}
